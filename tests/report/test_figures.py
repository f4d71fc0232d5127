from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from predistill.report.figures import colours, difference_chart, gain_strip, loss_chart, schedule_chart, store_strip
from predistill.report.gains import Gain, gains
from predistill.report.records import Record, read_record
from predistill.report.table import Group, group_records
from predistill.runs import Run

from .made_runs import made_run


def _record(path: Path, **settings: Any) -> Record:
    return read_record(Run(made_run(path, **{"steps": 40, **settings})))


def _seen(records: list[Record]) -> tuple[list[Group], list[Gain], dict[str, str]]:
    groups = group_records(records)
    found = gains(groups, records)
    return groups, found, colours(groups, found)


def _ends(path: str) -> tuple[float, float]:
    x, y = re.split(r"[ L]", path)[-2:]
    return float(x), float(y)


def test_every_run_has_a_curve_and_every_recipe_a_label(tmp_path: Path) -> None:
    records = [
        _record(tmp_path / f"{name}-{seed}", name=name, seed=seed, teacher=name == "pd")
        for name in ("lm", "pd")
        for seed in range(2)
    ]
    groups, _, colour = _seen(records)
    chart = loss_chart(groups, colour)
    assert chart is not None
    assert sum(curve.weight == "strong" for curve in chart.curves) == 4
    assert sum(curve.weight == "faint" for curve in chart.curves) == 4
    assert {label.text for label in chart.labels} == {"lm", "pd"}
    assert chart.label_chars == 2


def test_an_unfinished_run_ends_where_it_is(tmp_path: Path) -> None:
    groups, _, colour = _seen(
        [_record(tmp_path / "lm", name="lm"), _record(tmp_path / "pd", name="pd", teacher=True, ended=0.5)]
    )
    chart = loss_chart(groups, colour)
    assert chart is not None
    assert {label.text: label.end[0] for label in chart.labels} == {"lm": 100.0, "pd": 50.0}


def test_the_difference_ends_at_the_mean_of_the_seeds_differences(tmp_path: Path) -> None:
    records = [
        _record(tmp_path / f"{n}-{s}", name=n, seed=s, teacher=n == "pd", gain=0.3 if n == "pd" else 0.0)
        for n in ("lm", "pd")
        for s in range(3)
    ]
    _, found, colour = _seen(records)
    chart = difference_chart(found, colour)
    assert chart is not None
    assert chart.zero is not None
    (strong,) = [curve for curve in chart.curves if curve.weight == "strong"]
    thin = [_ends(curve.path)[1] for curve in chart.curves if curve.weight == "faint"]
    assert len(thin) == 3
    assert _ends(strong.path)[1] == pytest.approx(sum(thin) / 3, abs=0.02)
    assert min(thin) > chart.zero, "below the zero line: the teacher helps"


def test_recipes_of_one_course_share_a_line_also_when_one_is_unfinished(tmp_path: Path) -> None:
    records = [
        _record(tmp_path / "a", name="a", teacher=True, recipe={"loss": {"kind": "nll"}}),
        _record(tmp_path / "b", name="b", teacher=True, ended=0.5),
        _record(tmp_path / "lm", name="lm"),
    ]
    groups, _, colour = _seen(records)
    rate = schedule_chart(groups, colour, key="lr", title="", unit="")
    assert rate is not None
    assert len(rate.curves) == 1
    assert rate.note == "The same for every recipe."
    weight = schedule_chart(
        [group for group in groups if group.distilled], colour, key="alpha", title="", unit="", top=1.0
    )
    assert weight is not None
    assert len(weight.curves) == 1
    assert weight.y[-1].at == 0.0, "the axis ends at 1"


def test_the_best_five_recipes_are_coloured_and_the_rest_is_grey(tmp_path: Path) -> None:
    records = [_record(tmp_path / "lm", name="lm", steps=20)]
    records += [
        _record(
            tmp_path / f"pd{i}",
            name=f"pd{i}",
            teacher=True,
            gain=0.05 * i,
            steps=20,
            recipe={"alpha": {"kind": "constant", "value": i / 10}},
        )
        for i in range(7)
    ]
    groups, found, colour = _seen(records)
    assert colour == {
        "lm": "lm",
        "pd6": "c1",
        "pd5": "c2",
        "pd4": "c3",
        "pd3": "c4",
        "pd2": "c5",
        "pd1": "other",
        "pd0": "other",
    }
    chart, strip = loss_chart(groups, colour), gain_strip(found, colour)
    assert chart is not None
    assert strip is not None
    assert "2 more recipes" in chart.note
    strong = [curve.colour for curve in chart.curves if curve.weight == "strong"]
    assert (strong.index("lm"), strong.count("other")) == (2, 2), "grey lies below"
    assert {label.text for label in chart.labels} == {"lm", "pd2", "pd3", "pd4", "pd5", "pd6"}
    assert [entry.name for entry in strip.entries] == [f"pd{i}" for i in reversed(range(7))]


def test_an_interval_is_drawn_around_its_seeds_and_mean(tmp_path: Path) -> None:
    records = [
        _record(tmp_path / f"{n}-{s}", name=n, seed=s, teacher=n == "pd", gain=0.1 * s, steps=20)
        for n in ("lm", "pd")
        for s in range(3)
    ]
    _, found, colour = _seen(records)
    strip = gain_strip(found, colour)
    assert strip is not None
    (entry,) = strip.entries
    assert entry.interval is not None
    assert entry.mean is not None
    assert 0 < entry.interval[0] < min(entry.dots) < entry.mean < max(entry.dots) < entry.interval[1] < 100
    assert gain_strip(found[:0], colour) is None


def test_the_bytes_of_a_store_add_up(tmp_path: Path) -> None:
    (store,) = _record(tmp_path / "pd", teacher=True, steps=20).stores
    strip = store_strip(store, 1)
    assert strip is not None
    assert sum(entry.bar or 0 for entry in strip.entries) == pytest.approx(100, abs=0.05)
    assert strip.entries[0].name == "Which tokens (ids)"
    assert len(strip.entries) == 7, "a stream without bytes is left out"


def test_runs_without_a_line_to_draw_draw_nothing(tmp_path: Path) -> None:
    groups, found, colour = _seen([_record(tmp_path / "new", ended=0.0)])
    assert loss_chart(groups, colour) is None
    assert difference_chart(found, colour) is None
    assert schedule_chart(groups, colour, key="lr", title="", unit="") is None
