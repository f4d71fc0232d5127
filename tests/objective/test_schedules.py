"""Schedules are functions of the fraction that is done, with the values that the paper names at its corners."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from predistill.objective import WSD, Constant, Cosine, Linear, Period, Schedule

CORNERS = [
    (Constant(value=0.9), {0: 0.9, 500: 0.9, 1000: 0.9}),
    (Linear(start=0, end=1), {0: 0.0, 250: 0.25, 1000: 1.0}),
    (Linear(start=1, end=0), {0: 1.0, 250: 0.75, 1000: 0.0}),
    (Cosine(peak=2, warmup_frac=0.1, floor=0.1), {0: 0.0, 50: 1.0, 100: 2.0, 550: 1.1, 1000: 0.2}),
    (Cosine(peak=2), {0: 2.0, 500: 1.0, 1000: 0.0}),
    (Period(low=0.2, high=1.0, cycles=2), {0: 1.0, 125: 0.6, 250: 0.2, 500: 1.0, 750: 0.2, 1000: 1.0}),
    (WSD(peak=0.9, warmup_frac=0.1, decay_frac=0.2), {0: 0.0, 50: 0.45, 100: 0.9, 800: 0.9, 900: 0.45, 1000: 0.0}),
    (WSD(peak=0.9, warmup_frac=0.1, decay_frac=0.2, floor=0.5), {0: 0.0, 800: 0.9, 900: 0.675, 1000: 0.45}),
    (WSD(peak=0.9, warmup_frac=0.1, decay_frac=0.1, inverse=True), {0: 1.0, 50: 0.55, 500: 0.1, 1000: 1.0}),
    (WSD(peak=3e-3), {0: 3e-3, 1000: 3e-3}),
]


@pytest.mark.parametrize(("schedule", "corners"), CORNERS)
def test_a_schedule_passes_through_its_corners(schedule: Any, corners: dict[int, float]) -> None:
    for step, value in corners.items():
        assert schedule(step, 1000) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize("schedule", [schedule for schedule, _ in CORNERS])
def test_only_the_fraction_that_is_done_matters(schedule: Any) -> None:
    for done in range(101):
        assert schedule(done, 100) == pytest.approx(schedule(7 * done, 700), abs=1e-12)


@pytest.mark.parametrize("schedule", [schedule for schedule, _ in CORNERS])
def test_a_schedule_makes_no_jump_and_never_leaves_its_range(schedule: Any) -> None:
    values = [schedule(step, 1000) for step in range(1001)]
    assert all(0 <= value <= 2 for value in values)
    assert max(abs(b - a) for a, b in itertools.pairwise(values)) <= 0.0201  # 2 over a tenth of the run


@pytest.mark.parametrize("schedule", [schedule for schedule, _ in CORNERS])
def test_the_union_reads_back_what_it_wrote(schedule: Any) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(Schedule)
    assert adapter.validate_python(adapter.dump_python(schedule)) == schedule


def test_phases_longer_than_the_run_and_a_negative_share_are_refused() -> None:
    with pytest.raises(ValidationError, match="more than the whole run"):
        WSD(peak=1, warmup_frac=0.6, decay_frac=0.5)
    with pytest.raises(ValidationError, match="below 0"):
        WSD(peak=1.5, inverse=True)
