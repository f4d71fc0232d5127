from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from predistill.report.geometry import Line
from predistill.report.numbers import count, nats
from predistill.report.plot import linear, logarithmic, plot, steps

positive = st.floats(1e-3, 1e12)


@settings(deadline=None)
@given(st.lists(positive, min_size=1, max_size=8))
def test_every_value_and_tick_lies_on_a_logarithmic_axis(values: list[float]) -> None:
    axis = logarithmic("", values, count)
    assert all(0 <= axis.at(value) <= 100 for value in values)
    assert all(0 <= tick.at <= 100 for tick in axis.ticks)
    assert len({tick.text for tick in axis.ticks}) == len(axis.ticks)


def test_twice_as_much_is_the_same_way_everywhere() -> None:
    axis = logarithmic("", [1e5, 1e7], count)
    ways = [axis.at(2 * value) - axis.at(value) for value in (1e5, 1e6, 4e6)]
    assert ways == pytest.approx([ways[0]] * 3, abs=0.02)


def test_named_places_are_evenly_apart_and_not_all_named() -> None:
    axis = steps("", [str(i) for i in range(20)])
    ways = [axis.at(b) - axis.at(a) for a, b in itertools.pairwise(range(20))]
    assert ways == pytest.approx([ways[0]] * 19, abs=0.02)
    assert 3 <= len(axis.ticks) <= 6


def test_labels_of_neighbours_are_moved_apart_and_those_far_off_stay_where_they_are() -> None:
    points = {"a": (1.0, 5.0), "b": (1.02, 5.01), "c": (9.0, 5.0)}
    x, y = linear("", [0.0, 10.0], nats), linear("", [4.0, 6.0], nats)
    chart = plot(
        [Line(name, name, "c1", ([point],)) for name, point in points.items()],
        id="x", title="", unit="", description="", x=x, y=y,
    )  # fmt: skip
    at = {label.text: label.at for label in chart.labels}
    assert abs(at["a"] - at["b"]) >= 6.9
    assert at["c"] == 50.0
    assert chart.curves == (), "a single point is no curve"
