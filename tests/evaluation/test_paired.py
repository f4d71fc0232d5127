"""The bootstrap is the one of the book: rows drawn again, both models on the same ones."""

from __future__ import annotations

import itertools

import numpy as np
import numpy.typing as npt
import pytest

from predistill.evaluation.paired import paired, relative_change, standard_error

Scores = npt.NDArray[np.float64]


def answers(count: int, share: float, seed: int) -> Scores:
    return (np.random.default_rng(seed).random(count) < share).astype(np.float64)


def drawn_again(ours: Scores, theirs: Scores, draws: int) -> tuple[Scores, Scores]:
    """Row by row: the definition."""
    rows = np.random.default_rng(99).integers(0, len(ours), (draws, len(ours)))
    return ours[rows].mean(axis=1), theirs[rows].mean(axis=1)


@pytest.mark.parametrize("count", [40, 400])
def test_the_interval_of_a_difference_is_that_of_rows_drawn_again(count: int) -> None:
    ours = answers(count, 0.5, 1)
    theirs = np.where(answers(count, 0.8, 2) == 1, ours, answers(count, 0.3, 3))  # most rows alike, as models are
    found = paired(ours, theirs, draws=40_000)
    ours_D, theirs_D = drawn_again(ours, theirs, 40_000)
    assert found.n == count
    assert found.difference == pytest.approx(ours.mean() - theirs.mean())
    assert found.interval == pytest.approx(np.quantile(ours_D - theirs_D, [0.025, 0.975]), abs=1.01 / count)


def test_over_few_rows_it_is_the_whole_of_what_can_be_drawn() -> None:
    ours, theirs = np.array([1.0, 0.0, 1.0, 1.0, 0.5]), np.array([0.0, 0.0, 1.0, 0.0, 0.25])
    every = [(ours[list(rows)] - theirs[list(rows)]).mean() for rows in itertools.product(range(5), repeat=5)]
    found = paired(ours, theirs, draws=200_000)
    assert found.interval == pytest.approx(np.quantile(every, [0.025, 0.975]), abs=1e-9)


def test_the_change_of_a_mean_over_tasks_weighs_tasks_alike_and_draws_within_each() -> None:
    pairs = [(answers(50, 0.6, 1), answers(50, 0.4, 2)), (answers(500, 0.3, 3), answers(500, 0.35, 4))]
    found = relative_change(pairs, draws=40_000)
    assert found is not None
    means = [[scores.mean() for scores in pair] for pair in pairs]
    assert found.change == pytest.approx((means[0][0] + means[1][0]) / (means[0][1] + means[1][1]) - 1)
    drawn = [drawn_again(*pair, 40_000) for pair in pairs]
    change_D = (drawn[0][0] + drawn[1][0]) / (drawn[0][1] + drawn[1][1]) - 1
    assert found.interval == pytest.approx(np.quantile(change_D, [0.025, 0.975]), abs=0.01)


def test_an_interval_of_95_per_cent_holds_the_truth_about_as_often() -> None:
    held = 0
    for seed in range(300):
        random = np.random.default_rng(seed)
        ours, theirs = ((random.random(200) < share).astype(np.float64) for share in (0.5, 0.45))
        low, high = paired(ours, theirs, draws=1000).interval
        held += low <= 0.05 <= high
    assert 0.91 < held / 300 < 0.985


def test_nothing_is_relative_to_a_baseline_that_answers_nothing() -> None:
    assert relative_change([(answers(20, 0.5, 1), np.zeros(20))]) is None


def test_a_model_beside_itself_does_not_differ() -> None:
    scores = answers(30, 0.5, 1)
    assert paired(scores, scores).interval == (0.0, 0.0)


def test_other_rows_are_not_a_pair() -> None:
    with pytest.raises(ValueError, match="2 rows and 3"):
        paired(np.ones(2), np.ones(3))


def test_the_standard_error_is_of_the_mean() -> None:
    scores = answers(100, 0.3, 1)
    mean = sum(scores) / 100
    variance = sum((score - mean) ** 2 for score in scores) / 99
    assert standard_error(scores) == pytest.approx((variance / 100) ** 0.5)
    assert standard_error(np.ones(1)) == 0.0
