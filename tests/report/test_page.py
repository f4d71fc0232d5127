from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from predistill.report import read_footprint, read_record, report_page
from predistill.report.table import table_rows
from predistill.runs import Run

from .made_measures import made_footprint, task_result
from .made_runs import made_run

VOID = {"meta", "link", "br"}


class _Page(HTMLParser):
    """Checks that tags nest, and keeps ids, references, attributes and the embedded data."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.data = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "script":
            self.data += data


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Run]:
    root = tmp_path_factory.mktemp("runs")
    paths = [made_run(root / f"lm-{seed}", name="lm", seed=seed, steps=40) for seed in range(2)]
    paths += [
        made_run(root / f"pd-{seed}", name="pd", seed=seed, steps=40, teacher=True, gain=0.2) for seed in range(2)
    ]
    paths += [made_run(root / "going", name="pd", seed=9, steps=40, teacher=True, ended=0.5)]
    return [Run(path) for path in paths]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A page with every section: three recipes, two seeds each, and a footprint."""
    root = tmp_path_factory.mktemp("whole")
    paths = [
        made_run(root / f"{name}-{seed}", name=name, seed=seed, steps=20, teacher=gain > 0, gain=gain, measures=True)
        for name, gain in (("lm", 0.0), ("pd", 0.2))
        for seed in range(2)
    ]  # fmt: skip
    footprint = read_footprint(made_footprint(root / "footprint.json"))
    return report_page([read_record(Run(path)) for path in paths], [footprint])


def test_the_same_records_make_the_same_bytes(runs: list[Run]) -> None:
    assert report_page([read_record(run) for run in runs]) == report_page([read_record(run) for run in runs])


def test_the_page_is_well_formed_and_every_reference_has_its_target(runs: list[Run]) -> None:
    page = _Page(report_page([read_record(run) for run in runs]))
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    for _, attributes in page.seen:
        named = (attributes.get("aria-labelledby") or "").split()
        targets = [*named, (attributes.get("href") or "").removeprefix("#")]
        assert all(target in page.ids for target in targets if target and not target.startswith("data:"))


def test_the_whole_page_is_well_formed_too(whole: str) -> None:
    page = _Page(whole)
    assert page.open == []
    assert len(set(page.ids)) == len(page.ids)
    for _, attributes in page.seen:
        assert all(target in page.ids for target in (attributes.get("aria-labelledby") or "").split())


@pytest.mark.parametrize(
    "heading",
    ["How sure the students are", "Where the loss is", "Whether the students copy", "What the students know"],
)
def test_a_section_is_shown_where_records_have_it_and_only_there(runs: list[Run], whole: str, heading: str) -> None:
    assert whole.count(f">{heading}</h2>") == 1
    assert heading not in report_page([read_record(run) for run in runs])


def test_the_embedded_data_hold_the_later_sections(whole: str) -> None:
    data = json.loads(_Page(whole).data)
    assert len(data["tasks"]) == 13 * 2
    assert {suite["suite"] for suite in data["suites"]} == {"paper8", "wide13"}
    changes = {(suite["suite"], suite["recipe"]): suite["change"] for suite in data["suites"]}
    assert changes["paper8", "lm"] is None
    assert len(changes["paper8", "pd"]["interval"]) == 2
    assert len(data["held_out"]) == len(data["copying"]) == 4
    assert len(data["held_out"][0]["reliability"]) == 15
    assert len(data["footprints"][0]["models"]) == 7
    assert [each["label"] for each in data["calibration"]] == ["lm", "pd"]


def test_a_run_measured_on_two_corpora_has_both(tmp_path: Path) -> None:
    path = made_run(tmp_path / "lm", name="lm", steps=20, measures=True)
    evaluation = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
    evaluation["corpora"] = {name: {"loss_nats": loss} for name, loss in (("en", 4.125), ("zh", 5.25))}
    (path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    text = report_page([read_record(Run(path))])
    assert re.search(r">en</th><th scope=\"col\">zh</th>.*?<td>4\.125</td><td>5\.250</td>", text, flags=re.DOTALL)


def test_the_command_of_the_tasks_stands_with_its_run(whole: str) -> None:
    assert whole.count("<span>wide13</span>") == 4


def test_the_page_asks_for_nothing_from_outside_and_runs_no_script(runs: list[Run]) -> None:
    text = report_page([read_record(run) for run in runs])
    page = _Page(text)
    assert not re.search(r"https?:|url\(|@import|javascript:", text)
    assert all((attributes.get("href") or "#")[:1] in "#d" and "src" not in attributes for _, attributes in page.seen)
    assert [attributes["type"] for tag, attributes in page.seen if tag == "script"] == ["application/json"]
    assert not any(name.startswith("on") for _, attributes in page.seen for name in attributes)


def test_every_figure_says_in_words_what_it_shows(runs: list[Run]) -> None:
    text = report_page([read_record(run) for run in runs])
    figures = re.findall(r"<figure.*?</figure>", text, flags=re.DOTALL)
    assert len(figures) == 6, "loss, difference, every recipe, alpha, lr, the store"
    for figure in figures:
        assert re.search(
            r'<svg role="img" aria-labelledby="(\S+) (\S+)">|<svg role="img" aria-labelledby="(\S+) (\S+)" style',
            figure,
        )
        assert re.search(r"<title id=\S+>[^<]+</title>", figure)
        assert re.search(r"<desc id=\S+>[^<]{10,}</desc>", figure)


def test_the_embedded_data_are_the_tables_figures(runs: list[Run]) -> None:
    records = [read_record(run) for run in runs]
    data = json.loads(_Page(report_page(records)).data)
    rows = table_rows(records)
    assert [row["run"] for row in data["rows"]] == [row.run for row in rows]
    assert [row["loss_nats"] for row in data["rows"]] == [row.loss_nats for row in rows]
    (gain,) = data["gains"]
    assert gain["seeds"] == [0, 1]
    assert gain["mean_nats"] == pytest.approx(sum(gain["differences_nats"]) / 2)


def test_each_row_has_its_command_and_each_student_its_sample(runs: list[Run]) -> None:
    text = report_page([read_record(run) for run in runs])
    for run in runs:
        words = "".join(f"<span>{word}</span> " for word in run.environment["command"].split()).strip()
        assert words in text
    assert text.count("他想起了那座城市") == 4
    assert "50\N{NARROW NO-BREAK SPACE}% trained" in text


@pytest.mark.parametrize("text", ["</script><script>alert(1)</script>", '"><b>&amp;', "a {{ b }} {% c %}"])
def test_no_text_of_a_run_becomes_markup(tmp_path: Path, text: str) -> None:
    path = made_run(tmp_path / "run", name=text, steps=20, recipe={"note": text})
    evaluation = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
    evaluation["samples"] = [{"prompt": text, "text": text}]
    evaluation["command"] = text
    result = task_result(text, [True, False])
    result |= {
        "notes": [text],
        "command": text,
        "example": {"prompt": text, "answer": 0, "choices": [text], "scores": [1]},
    }
    evaluation["tasks"] = {"results": {text: result}, "suites": {text: {"tasks": [text]}}}
    (path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    page = _Page(report_page([read_record(Run(path))]))
    assert [tag for tag, _ in page.seen if tag in ("script", "b")] == ["script"]
    assert json.loads(page.data)["rows"][0]["recipe"] == text


def test_a_diverged_run_is_said_to_be_one_and_the_data_stay_json(tmp_path: Path) -> None:
    path = made_run(tmp_path / "run", steps=20)
    evaluation: dict[str, Any] = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
    evaluation["heldout"] |= {"loss_nats": math.nan, "bits_per_byte": math.inf}
    (path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    text = report_page([read_record(Run(path))])
    assert "diverged" in text
    data = json.loads(_Page(text).data, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["rows"][0]["loss_nats"] is None
