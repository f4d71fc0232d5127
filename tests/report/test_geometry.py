from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predistill.report.geometry import Line, line_chart, padded, series, shortened, smooth, thinned, ticks
from predistill.report.numbers import nats

finite = st.floats(-1e6, 1e6, allow_nan=False)


@settings(deadline=None)
@given(low=finite, size=st.floats(1e-3, 1e6), about=st.integers(3, 8))
def test_ticks_lie_inside_are_some_and_read_differently(low: float, size: float, about: int) -> None:
    marks = ticks((low, low + size), about, lambda value, digits: nats(value, digits))
    assert about / 2 - 1 <= len(marks) <= 2 * about + 1
    assert all(-1e-6 <= mark.at <= 100 + 1e-6 for mark in marks)
    assert len({mark.text for mark in marks}) == len(marks)


@settings(deadline=None)
@given(st.lists(finite, min_size=1))
def test_bounds_hold_every_value_and_have_height(values: list[float]) -> None:
    low, high = padded(values)
    assert low < min(values) <= max(values) < high


@settings(deadline=None)
@given(st.lists(st.floats(5.0, 6.0), min_size=1, max_size=8))
def test_labels_do_not_cover_each_other_and_stay_in_the_frame(ends: list[float]) -> None:
    lines = [Line(f"line {i}", f"line {i}", "c1", ([(0.0, 6.0), (1.0, end)],)) for i, end in enumerate(ends)]
    chart = line_chart(lines, id="x", title="", unit="", note="", bounds=(4.9, 6.1), y_text=nats)
    places = sorted(label.at for label in chart.labels)
    assert len(places) == len(ends)
    assert all(below - above >= 6.9 for above, below in itertools.pairwise(places))
    assert places[-1] <= 100


def test_a_label_stands_where_the_longest_of_its_curves_end() -> None:
    short, one, other = [(0.0, 9.0), (2.0, 8.0)], [(0.0, 9.0), (4.0, 5.0)], [(0.0, 9.0), (4.0, 6.0)]
    chart = line_chart(
        [Line("a", "a", "c1", (short, one, other))], id="x", title="", unit="", note="", bounds=(5.0, 9.0), y_text=nats
    )
    assert chart.labels[0].end == (100.0, 87.5)
    assert "a ends at 5.5" in chart.description


def test_series_leaves_out_what_is_not_a_finite_number() -> None:
    lines = [
        {"tokens": 1, "lm": 2.0},
        {"tokens": 2, "lm": None},
        {"tokens": 3},
        {"tokens": 4, "lm": float("inf")},
        {"tokens": 5, "lm": 1},
    ]
    assert series(lines, "lm") == [(1.0, 2.0), (5.0, 1.0)]


def test_smoothing_keeps_the_mean() -> None:
    points = [(float(x), float(x % 7)) for x in range(1, 701)]
    means = smooth(points, stretches=10)
    assert len(means) == 10
    assert sum(y for _, y in means) / 10 == pytest.approx(3.0, abs=0.01)
    assert smooth([]) == []


@pytest.mark.parametrize("length", [1, 5, 200, 201, 5000])
def test_thinning_keeps_the_ends_and_the_order(length: int) -> None:
    points = [(float(x), 0.0) for x in range(length)]
    kept = thinned(points)
    assert len(kept) <= 201
    assert (kept[0], kept[-1]) == (points[0], points[-1])
    assert kept == sorted(set(kept))


def test_a_long_text_keeps_both_its_ends() -> None:
    assert shortened("temperature 2.0, loss kld", 16) == "tempera…oss kld"
    assert shortened("nano-pd-star", 16) == "nano-pd-star"
