from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from predistill.errors import RunError
from predistill.report import report_page
from predistill.report.measures import Measures
from predistill.report.records import Record, read_record
from predistill.runs import Run

from .made_runs import made_run


def _changed(path: Path, change: Callable[[dict[str, Any]], object]) -> Record:
    run = Run(made_run(path, steps=20, measures=True))
    evaluation = run.evaluation
    assert evaluation is not None
    change(evaluation)
    run.write_json("evaluation.json", evaluation)
    return read_record(run)


def test_everything_that_was_measured_is_read(tmp_path: Path) -> None:
    run = Run(made_run(tmp_path / "pd", teacher=True, gain=0.2, steps=20, measures=True))
    found, evaluation = read_record(run).measures, run.evaluation
    assert evaluation is not None
    assert found.heldout is not None
    assert len(found.heldout.reliability) == 15
    assert [part.low for part in found.heldout.by_position] == [0, 1, 2, 4, 8, 16, 32, 64, 128]
    assert found.heldout.ece_noise == evaluation["heldout"]["ece_noise"]
    assert found.copying is not None
    assert found.copying.chance_nats == math.log(found.copying.vocab_size)
    assert list(found.tasks) == list(evaluation["tasks"]["results"])
    assert found.suites["paper8"] == tuple(evaluation["tasks"]["suites"]["paper8"]["tasks"])
    scores = found.tasks["hellaswag"].scores
    assert scores is not None
    assert scores.mean() == pytest.approx(found.tasks["hellaswag"].value)


def test_a_run_of_before_has_none_of_it(tmp_path: Path) -> None:
    assert read_record(Run(made_run(tmp_path / "lm", steps=20))).measures.tasks == {}
    assert read_record(Run(made_run(tmp_path / "going", steps=20, ended=0.5, measures=True))).measures == Measures()


def test_a_run_that_only_answered_tasks_has_them_and_no_loss(tmp_path: Path) -> None:
    record = _changed(tmp_path / "run", lambda evaluation: evaluation.pop("heldout"))
    assert (record.state, record.loss_nats) == ("not evaluated", None)
    assert len(record.measures.tasks) == 13


def test_a_diverged_run_has_no_parts_to_draw(tmp_path: Path) -> None:
    def diverge(evaluation: dict[str, Any]) -> None:
        for part in (evaluation["heldout"], *evaluation["heldout"]["by_position"], *evaluation["copying"]["lengths"]):
            part["loss_nats"] = math.nan

    record = _changed(tmp_path / "run", diverge)
    assert record.state == "diverged"
    assert (record.measures.heldout, record.measures.copying) == (None, None)
    assert "diverged" in report_page([record])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda e: e["heldout"]["reliability"][3].pop("count"), "no heldout.reliability.3.count"),
        (lambda e: e["heldout"].update(by_position=4), "heldout.by_position cannot be 4"),
        (lambda e: e["heldout"]["by_frequency"][0].update(loss_nats="low"), "heldout.by_frequency.0.loss_nats cannot"),
        (lambda e: e["copying"]["lengths"][1].pop("accuracy"), "no copying.lengths.1.accuracy"),
        (lambda e: e["tasks"]["results"]["piqa"].update(correct="01x"), "tasks.results.piqa.correct cannot be 01x"),
        (lambda e: e["tasks"]["results"]["piqa"].update(headline="f1"), "no tasks.results.piqa.metrics.f1"),
        (lambda e: e["tasks"]["results"].update(piqa=1), "tasks.results cannot"),
        (lambda e: e["tasks"]["results"]["c3"]["example"].pop("prompt"), "no tasks.results.c3.example.prompt"),
        (lambda e: e["tasks"]["suites"]["paper8"].update(tasks="all"), "tasks.suites.paper8.tasks cannot be all"),
    ],
)  # fmt: skip
def test_what_is_broken_is_named_with_its_file(
    tmp_path: Path, change: Callable[[dict[str, Any]], object], named: str
) -> None:
    with pytest.raises(RunError) as caught:
        _changed(tmp_path / "run", change)
    assert named in str(caught.value)
    assert str(tmp_path / "run" / "evaluation.json") in str(caught.value)
