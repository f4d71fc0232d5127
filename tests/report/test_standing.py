"""A run that has not ended is shown at any moment, with how far it is and what the watch found on the way."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from predistill.report import read_record, report_page
from predistill.report.figures import colours, loss_chart, other_corpora_charts
from predistill.report.gains import gains
from predistill.report.records import Record
from predistill.report.standing import findings, standings
from predistill.report.table import group_records, matched_pairs
from predistill.runs import Run
from predistill.stages.report import report

from .made_runs import made_run

THIN = "\N{NARROW NO-BREAK SPACE}"


def record_of(path: Path) -> Record:
    return read_record(Run(path))


def test_how_far_a_run_is_and_what_it_shows_so_far(tmp_path: Path) -> None:
    record = record_of(made_run(tmp_path / "going", steps=200, ended=0.6))
    ended = record_of(made_run(tmp_path / "ended", steps=20))
    (shown,) = standings([record, ended], ["going", "ended"], ["c1", "lm"])
    assert (shown.run, shown.share) == ("going", 0.6)
    last, before = record.heldouts[-1], record.heldouts[-2]
    assert shown.words.startswith(
        f"Step 120 of 200, 492k tokens. Training loss on the next token {record.steps[-1]['lm']:.3f}."
    )
    assert f"Held-out loss {last['loss_nats']:.3f} at step 120, " in shown.words
    assert f"{abs(last['loss_nats'] - before['loss_nats']):.3f} since the one before." in shown.words
    assert shown.words.endswith(f"32{THIN}s of training so far, about 22{THIN}s to go.")


def test_the_page_can_be_made_after_any_byte_that_a_run_has_written(tmp_path: Path) -> None:
    whole = made_run(tmp_path / "whole", steps=6, ended=0.99, teacher=True, found={0.5: "spike"})
    metrics, found = ((whole / name).read_bytes() for name in ("metrics.jsonl", "findings.jsonl"))
    for cut in [*range(0, len(metrics), 97), len(metrics)]:
        (whole / "metrics.jsonl").write_bytes(metrics[:cut])
        (whole / "findings.jsonl").write_bytes(found[: cut % (len(found) + 1)])
        text = report([whole]).read_text(encoding="utf-8")
        assert '<h2 id="standing-heading">Not finished</h2>' in text
        steps = metrics[:cut].count(b'"kind": "step"') - (b'"kind": "step"' in metrics[:cut].rpartition(b"\n")[2])
        assert (f"Step {steps:,} of 6" if steps else "No step yet.") in text


def test_the_page_can_be_made_of_a_run_in_every_stage_of_its_life(tmp_path: Path) -> None:
    path = made_run(tmp_path / "run", steps=20)
    for gone in ("evaluation.json", "DONE", "metrics.jsonl", "environment.json"):
        (path / gone).unlink()
        text = report([path]).read_text(encoding="utf-8")
        assert ("Not finished" in text) == (not (path / "DONE").exists())
    assert "No step yet." in text


def test_a_run_without_steps_stands_beside_finished_ones(tmp_path: Path) -> None:
    paths = [made_run(tmp_path / "lm", steps=20), made_run(tmp_path / "pd", steps=20, teacher=True, gain=0.2)]
    paths += [made_run(tmp_path / "new", steps=20, teacher=True, ended=0.0, recipe={"loss": {"kind": "nll"}})]
    text = report_page([record_of(path) for path in paths])
    assert "No step yet." in text
    assert "0.200" in text


def test_findings_are_listed_in_order_with_what_was_done(tmp_path: Path) -> None:
    path = made_run(tmp_path / "run", steps=200, ended=0.6, found={0.55: "divergence", 0.2: "spike"})
    shown = findings([record_of(path)], ["run"], ["lm"])
    assert [(found.step, found.severe, found.action) for found in shown] == [
        (40, False, ""),
        (110, True, "The run was stopped here."),
    ]
    assert shown[0].sentence == "The LM loss is 6.50 and was 5.90 before it. Lower lr.peak, or set optimizer.clip."
    text = report_page([record_of(path)])
    for found in shown:
        assert f'<li id="{found.id}"' in text
        assert f'<a href="#{found.id}"' in text, "a ring on the curve leads to it"
    data = json.loads(re.findall(r'id="report-data">(.*?)</script>', text, flags=re.DOTALL)[0])
    assert [(found["run"], found["step"], found["kind"]) for found in data["findings"]] == [
        ("run", 40, "spike"),
        ("run", 110, "divergence"),
    ]


def test_of_very_many_findings_the_severe_and_the_newest_are_written_out(tmp_path: Path) -> None:
    many = {step / 200: "spike" for step in range(2, 100)} | {1 / 200: "divergence"}
    shown = findings([record_of(made_run(tmp_path / "run", steps=200, found=many))], ["run"], ["lm"])
    assert [found.step for found in shown] == [1, *range(61, 100)]


def test_a_finding_is_marked_on_the_curve_at_its_step(tmp_path: Path) -> None:
    record = record_of(made_run(tmp_path / "run", steps=200, found={0.5: "spike", 0.75: "divergence"}))
    groups = group_records([record])
    colour = colours(groups, gains(groups, [record]))
    chart = loss_chart(groups, colour, [(record, finding, f"f{finding['step']}") for finding in record.findings])
    assert chart is not None
    assert [(mark.target, mark.strong, mark.at[0]) for mark in chart.marks] == [
        ("f100", False, 50.0),
        ("f150", True, 75.0),
    ]
    (drawn,) = [curve for curve in chart.curves if curve.weight == "strong"]
    on_curve = [tuple(map(float, point.split())) for point in drawn.path.lstrip("M").split("L")]
    assert chart.marks[0].at == pytest.approx(on_curve[9], abs=0.02), "step 100 is the tenth that was measured"


def test_every_corpus_has_a_curve_of_its_own_and_runs_are_compared_by_the_first(tmp_path: Path) -> None:
    corpora = ("corpora/nano", "corpora/chinese", "corpora/code")
    recipe = {"heldout": list(corpora)}
    records = [
        record_of(made_run(tmp_path / "lm", corpora=corpora, steps=40, recipe=recipe)),
        record_of(made_run(tmp_path / "pd", corpora=corpora, steps=40, teacher=True, gain=0.2, recipe=recipe)),
    ]
    groups = group_records(records)
    colour = colours(groups, gains(groups, records))
    loss = loss_chart(groups, colour)
    assert loss is not None
    assert loss.unit == "held-out loss on corpora/nano, nats a token"
    assert [curve.path.count("L") for curve in loss.curves if curve.weight == "strong"] == [19, 19]
    others = other_corpora_charts(groups, colour)
    assert [chart.title for chart in others] == ["Loss on corpora/chinese", "Loss on corpora/code"]
    for number, chart in enumerate(others, 1):
        for record in records:
            last = record.heldouts_of(corpora[number])[-1]["loss_nats"]
            assert f"{last:.4g}" in chart.description
    assert all(f'id="{chart.id}"' in report_page(records) for chart in others)


def test_how_a_run_was_watched_and_computed_does_not_part_it_from_its_baseline(tmp_path: Path) -> None:
    recipe = {
        "heldout": ["a", "b"], "watch": {"policy": "stop", "baseline": "runs/lm"}, "compile": True, "shard": 2,
        "activation_checkpointing": True, "keep_every": 10,
    }  # fmt: skip
    lm = record_of(made_run(tmp_path / "lm", steps=20))
    pd = record_of(made_run(tmp_path / "pd", steps=20, teacher=True, recipe=recipe))
    assert len(matched_pairs([lm, pd])) == 1
