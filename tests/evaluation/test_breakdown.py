"""Parts of the held-out positions: each holds what its edges say, and together they are the whole."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from predistill.evaluation.breakdown import Losses, by_frequency, by_mass, by_position, equal_parts

POSITIONS = 1003
DRAW = np.random.default_rng(0)
LOSSES = Losses(*(DRAW.gamma(2.0, size=POSITIONS).astype(np.float32) for _ in range(3)))
PLACE = DRAW.integers(0, 100, size=POSITIONS)
COUNT = (10 ** (5 * DRAW.random(POSITIONS))).astype(np.int64) - 1
ENTROPY = DRAW.random(POSITIONS).astype(np.float32)

BREAKDOWNS: dict[str, Callable[[Losses], list[dict[str, Any]]]] = {
    "position": lambda losses: by_position(PLACE, losses, row_len=100),
    "frequency": lambda losses: by_frequency(COUNT, losses),
    "mass": lambda losses: by_mass(ENTROPY, losses),
}


def slow_mean(values: Any) -> float:
    return sum(float(value) for value in values) / len(values)


@pytest.mark.parametrize("name", BREAKDOWNS)
def test_the_means_of_the_parts_are_the_mean_of_the_whole(name: str) -> None:
    parts = BREAKDOWNS[name](LOSSES)
    assert len(parts) > 4
    assert sum(part["tokens"] for part in parts) == POSITIONS
    for key, values in (
        ("loss_nats", LOSSES.student_N),
        ("teacher_loss_nats", LOSSES.teacher_N),
        ("kl_nats", LOSSES.kl_N),
    ):
        whole = sum(part["tokens"] * part[key] for part in parts) / POSITIONS
        assert whole == pytest.approx(slow_mean(values), rel=1e-12)


@pytest.mark.parametrize("name", BREAKDOWNS)
def test_without_a_teacher_only_the_student_s_loss_is_told(name: str) -> None:
    taught, alone = BREAKDOWNS[name](LOSSES), BREAKDOWNS[name](Losses(LOSSES.student_N))
    assert alone == [{**part, "teacher_loss_nats": None, "kl_nats": None} for part in taught]


@pytest.mark.parametrize(
    ("parts", "keys", "edges"),
    [
        (BREAKDOWNS["position"](LOSSES), PLACE, [0, 1, 2, 4, 8, 16, 32, 64, 100]),
        (BREAKDOWNS["frequency"](LOSSES), COUNT, [0, 1, 10, 100, 1000, 10_000, 100_000]),
    ],
)
def test_a_part_holds_the_keys_between_its_edges(parts: list[dict[str, Any]], keys: Any, edges: list[int]) -> None:
    assert [part["from"] for part in parts] == edges[:-1]
    assert [part["to"] for part in parts] == edges[1:]
    for part in parts:
        within = [i for i, key in enumerate(keys) if part["from"] <= key < part["to"]]
        assert part["tokens"] == len(within)
        assert part["loss_nats"] == pytest.approx(slow_mean(LOSSES.student_N[within]), rel=1e-12)


def test_parts_of_equal_mass_are_the_sorted_keys_in_equal_numbers() -> None:
    parts, order = by_mass(ENTROPY, LOSSES), sorted(range(POSITIONS), key=lambda i: float(ENTROPY[i]))
    assert [part["tokens"] for part in parts] == [101] * 3 + [100] * 7
    start = 0
    for part in parts:
        within = order[start : start + part["tokens"]]
        start += part["tokens"]
        assert (part["from"], part["to"]) == (ENTROPY[within[0]], ENTROPY[within[-1]])
        assert part["kl_nats"] == pytest.approx(slow_mean(LOSSES.kl_N[within]), rel=1e-12)  # type: ignore[index]


@pytest.mark.parametrize(("row_len", "last"), [(1, (0, 1)), (2, (1, 2)), (64, (32, 64)), (65, (64, 65))])
def test_the_last_part_of_positions_ends_with_the_row(row_len: int, last: tuple[int, int]) -> None:
    place = np.arange(row_len)
    parts = by_position(place, Losses(np.ones(row_len)), row_len=row_len)
    assert (parts[-1]["from"], parts[-1]["to"]) == last
    assert sum(part["tokens"] or 0 for part in parts) == row_len


def test_a_power_of_ten_opens_a_part_and_empty_parts_are_left_out() -> None:
    parts = by_frequency(np.array([0, 10, 99, 100_000]), Losses(np.arange(4.0)))
    assert [(part["from"], part["to"], part["tokens"]) for part in parts] == [
        (0, 1, 1),
        (10, 100, 2),
        (100_000, 1_000_000, 1),
    ]
    assert by_frequency(np.zeros(3, np.int64), Losses(np.ones(3)))[0]["to"] == 1


def test_there_are_no_more_parts_than_positions() -> None:
    assert [part.tolist() for part in equal_parts(np.array([3.0, 1.0, 2.0]), 10)] == [[1], [2], [0]]
    assert equal_parts(np.zeros(0), 10) == []
