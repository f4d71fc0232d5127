from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from predistill.report.breakdowns import breakdown_charts, copying_chart, copying_words
from predistill.report.figures import colours
from predistill.report.gains import gains
from predistill.report.geometry import Chart
from predistill.report.records import Record, read_record
from predistill.report.table import group_records
from predistill.runs import Run

from .made_runs import made_run


def _record(path: Path, change: dict[str, Any] | None = None, **settings: Any) -> Record:
    made_run(path, **{"steps": 20, "measures": True, **settings})
    evaluation = json.loads((path / "evaluation.json").read_text(encoding="utf-8"))
    evaluation["heldout"] |= change or {}
    (path / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    return read_record(Run(path))


def _charts(records: list[Record]) -> dict[str, Chart]:
    groups = group_records(records)
    found = gains(groups, records)
    return {chart.id: chart for chart in breakdown_charts(groups, found, colours(groups, found))}


def _parts(*losses: float, tokens: int = 1000) -> list[dict[str, Any]]:
    return [
        {"from": 2**i, "to": 2 ** (i + 1), "tokens": tokens, "loss_nats": loss, "teacher_loss_nats": None}
        for i, loss in enumerate(losses)
    ]


def _heights(chart: Chart, colour: str) -> list[float]:
    (curve,) = (curve for curve in chart.curves if curve.colour == colour)
    return [float(y) for _, y in re.findall(r"([\d.]+) (-?[\d.]+)", curve.path)]


def test_a_change_is_the_distilled_loss_less_the_baselines_part_by_part(tmp_path: Path) -> None:
    plain = _record(tmp_path / "lm", {"by_position": _parts(6.0, 5.0, 4.0)}, name="lm")
    taught = _record(tmp_path / "pd", {"by_position": _parts(5.0, 5.0, 5.0)}, name="pd", teacher=True, gain=0.2)
    chart = _charts([plain, taught])["by-position-change"]
    assert chart.zero is not None
    helped, same, harmed = _heights(chart, "c1")
    assert same == pytest.approx(chart.zero, abs=0.01)
    assert helped - same == pytest.approx(same - harmed, abs=0.02)
    assert helped > same, "below the zero line the teacher helps"


def test_each_cut_shows_every_recipe_and_the_teacher(tmp_path: Path) -> None:
    charts = _charts([_record(tmp_path / "lm", name="lm"), _record(tmp_path / "pd", name="pd", teacher=True, gain=0.2)])
    cuts = ("by-position", "by-frequency", "by-teacher-entropy")
    assert list(charts) == [name for cut in cuts for name in (cut, f"{cut}-change")]
    for cut in cuts:
        assert {(curve.colour, curve.dash) for curve in charts[cut].curves} == {
            ("lm", False), ("c1", False), ("ink", True)
        }  # fmt: skip


def test_runs_measured_on_other_text_are_not_drawn_beside_it(tmp_path: Path) -> None:
    plain = _record(tmp_path / "lm", {"by_position": _parts(6.0, 5.0)}, name="lm")
    other = {"by_position": _parts(6.0, 5.0, tokens=999)}
    chart = _charts([plain, _record(tmp_path / "pd", other, name="pd", teacher=True, gain=0.2)])["by-position"]
    assert {curve.colour for curve in chart.curves} == {"lm"}


def test_a_part_of_few_labels_is_left_out(tmp_path: Path) -> None:
    parts = [*_parts(6.0, 5.0, 4.0), {"from": 8, "to": 16, "tokens": 33, "loss_nats": 40.0, "teacher_loss_nats": None}]
    chart = _charts([_record(tmp_path / "lm", {"by_position": parts}, name="lm")])["by-position"]
    assert len(_heights(chart, "lm")) == 3


def test_runs_of_before_have_none_of_these_figures(tmp_path: Path) -> None:
    records = [_record(tmp_path / "lm", measures=False)]
    groups = group_records(records)
    assert _charts(records) == {}
    assert copying_chart(groups, colours(groups, [])) is None
    assert copying_words(groups) == ""


@pytest.mark.parametrize(("most", "copies"), [(0.4, True), (0.01, False)])
def test_who_gets_hardly_any_of_a_second_copy_right_is_said_not_to_copy(
    tmp_path: Path, most: float, copies: bool
) -> None:
    made_run(tmp_path / "lm", name="lm", steps=20, measures=True)
    evaluation = json.loads((tmp_path / "lm" / "evaluation.json").read_text(encoding="utf-8"))
    for i, length in enumerate(evaluation["copying"]["lengths"]):
        length["accuracy"] = most / (i + 1)
    (tmp_path / "lm" / "evaluation.json").write_text(json.dumps(evaluation), encoding="utf-8")
    groups = group_records([read_record(Run(tmp_path / "lm"))])
    words = copying_words(groups)
    assert ("None of them copies" in words) != copies
    assert f"lm {100 * most:.1f}" in words
    chart = copying_chart(groups, colours(groups, []))
    assert chart is not None
    assert [tick.text for tick in chart.x] == ["8", "16", "32", "64", "128"]
