from __future__ import annotations

import json
from pathlib import Path

import pytest

from predistill.errors import RunError
from predistill.report.records import read_record
from predistill.runs import Run

from .made_runs import STORE, made_run


def test_a_finished_run_is_read_whole(tmp_path: Path) -> None:
    record = read_record(Run(made_run(tmp_path / "pd", name="pd", seed=3, teacher=True, gain=0.2, steps=40)))
    assert (record.state, record.distilled, record.seed, record.tokens) == ("finished", True, 3, 40 * 4096)
    assert (len(record.steps), len(record.heldouts)) == (40, 20)
    assert record.loss_nats is not None
    assert record.kl_nats is not None
    assert record.stores[0].bytes_by_stream == STORE["bytes_by_stream"]
    assert record.stores[0].capture is None
    assert record.samples[2][0] == "人"


def test_a_capture_is_found_from_any_directory_above_the_run(tmp_path: Path) -> None:
    store = tmp_path / STORE["path"]
    (store / "costs").mkdir(parents=True)
    capture = {"command": "predistill capture", "seconds": 94.2, "cpu_seconds": 180.0, "tokens": 1 << 20}
    for worker in range(2):
        (store / "costs" / f"{worker:05d}.json").write_text(json.dumps(capture), encoding="utf-8")
    record = read_record(Run(made_run(tmp_path / "runs" / "deep" / "pd", teacher=True, steps=20)))
    found = record.stores[0].capture
    assert found is not None
    assert (found.command, found.seconds, found.cpu_seconds, found.tokens) == (
        "predistill capture",
        188.4,
        360.0,
        1 << 21,
    )


def test_what_has_not_ended_or_was_not_measured_is_said_and_holds_no_figures(tmp_path: Path) -> None:
    going = read_record(Run(made_run(tmp_path / "going", steps=40, ended=0.5)))
    unmeasured = read_record(Run(made_run(tmp_path / "unmeasured", steps=40, evaluated=False)))
    assert (going.state, going.tokens, going.planned_tokens) == ("unfinished", 20 * 4096, 40 * 4096)
    assert unmeasured.state == "not evaluated"
    for record in (going, unmeasured):
        assert (record.loss_nats, record.kl_nats, record.samples) == (None, None, ())


def test_a_run_that_has_just_been_made_is_unfinished(tmp_path: Path) -> None:
    path = made_run(tmp_path / "new", steps=40, ended=0.0)
    (path / "metrics.jsonl").unlink()
    (path / "environment.json").unlink()
    record = read_record(Run(path))
    assert (record.state, record.tokens, record.planned_tokens) == ("unfinished", 0, 40 * 4096)


def test_a_loss_that_is_not_a_number_is_a_diverged_run(tmp_path: Path) -> None:
    path = made_run(tmp_path / "run", steps=20)
    evaluation = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
    evaluation["heldout"]["loss_nats"] = float("nan")
    (path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    assert read_record(Run(path)).state == "diverged"


@pytest.mark.parametrize(
    ("file", "content", "named"),
    [
        ("recipe.yaml", "seed: [0", "recipe.yaml"),
        ("recipe.yaml", "name: x\ntokens: 4096\n", "no seed"),
        ("recipe.yaml", "- a list\n", "recipe.yaml"),
        ("environment.json", "{", "environment.json"),
        ("environment.json", '{"inputs": {"corpus": [{"path": "c"}]}}', "inputs.corpus"),
        ("environment.json", '{"inputs": {"store": [{"path": "s", "totals": {"positions": 1}}]}}', "totals.entries"),
        ("metrics.jsonl", '{"kind": "step"\n{}\n', "metrics.jsonl"),
        ("metrics.jsonl", '{"kind": "step"}\n', "no tokens"),
        ("evaluation.json", '{"command": "x"}', "no heldout.loss_nats"),
        ("evaluation.json", '{"heldout": {"loss_nats": "low", "tokens": 1}}', "heldout.loss_nats cannot be low"),
        ("evaluation.json", '{"heldout": 3}', "heldout.loss_nats is not where it should be"),
        ("evaluation.json", '{"heldout": {"loss_nats": 1.0, "tokens": 1}, "samples": [{"text": "a"}]}', "samples"),
        ("DONE", "", "DONE"),
    ],
)  # fmt: skip
def test_a_broken_file_is_a_run_error_that_names_it(tmp_path: Path, file: str, content: str, named: str) -> None:
    path = made_run(tmp_path / "run", steps=20)
    (path / file).write_text(content, encoding="utf-8")
    with pytest.raises(RunError, match=named) as caught:
        read_record(Run(path))
    assert str(path / file) in str(caught.value)
