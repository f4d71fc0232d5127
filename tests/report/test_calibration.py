from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from predistill.report.calibration import calibration_words, reliability_chart, surenesses
from predistill.report.figures import colours
from predistill.report.records import read_record
from predistill.report.table import Group, group_records
from predistill.runs import Run

from .made_runs import made_run


def _groups(*paths: Path) -> list[Group]:
    return group_records([read_record(Run(path)) for path in paths])


def _with(path: Path, **heldout: Any) -> Path:
    made_run(path, name=path.name, steps=20, measures=True)
    evaluation = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
    evaluation["heldout"] |= heldout
    (path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    return path


def test_a_student_that_is_as_sure_as_it_is_right_lies_on_the_diagonal(tmp_path: Path) -> None:
    bins = [{"confidence": c / 10, "accuracy": c / 10, "count": 100 * (1 + c)} for c in range(1, 10)]
    groups = _groups(_with(tmp_path / "lm", reliability=bins))
    chart = reliability_chart(groups, colours(groups, []))
    assert chart is not None
    assert chart.diagonal
    assert [dot.at[0] + dot.at[1] for dot in chart.dots] == pytest.approx([100.0] * 9, abs=0.02)
    radii = [dot.radius for dot in chart.dots]
    assert radii == sorted(radii), "more tokens, a larger dot"


def test_the_error_stands_beside_its_noise(tmp_path: Path) -> None:
    found = surenesses(_groups(_with(tmp_path / "lm", ece=0.011, ece_noise=0.004)))
    words = calibration_words(found).replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert words.startswith("lm has a calibration error of 1.1 %; a perfectly calibrated student would show 0.4 %")
    assert "The teacher itself has 0.7 %." in words


def test_without_noise_or_teacher_neither_is_spoken_of(tmp_path: Path) -> None:
    found = surenesses(_groups(_with(tmp_path / "lm", ece=0.011, ece_noise=None, teacher=None)))
    words = calibration_words(found).replace("\N{NARROW NO-BREAK SPACE}", " ")
    assert words == "lm has a calibration error of 1.1 %."


def test_runs_of_before_have_no_diagram(tmp_path: Path) -> None:
    groups = _groups(made_run(tmp_path / "lm", steps=20))
    assert reliability_chart(groups, colours(groups, [])) is None
    assert surenesses(groups) == []
