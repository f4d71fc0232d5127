"""Two models that answered the same rows: the difference, and how sure it is, by a paired bootstrap over rows (Efron &
Tibshirani 1993, chapter 13: percentile intervals)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Change", "Paired", "paired", "relative_change", "standard_error"]

DRAWS = 10_000
Scores = npt.NDArray[np.float64]  # one a row, the same rows in the same order for both models


@dataclass(frozen=True)
class Paired:
    """`difference` of the means, ours less theirs, over `n` rows, with its 95 % interval."""

    difference: float
    interval: tuple[float, float]
    n: int


@dataclass(frozen=True)
class Change:
    """`change` of the unweighted mean over tasks, relative to theirs (0.016 = 1.6 % more), with its 95 % interval."""

    change: float
    interval: tuple[float, float]


def standard_error(scores: Scores) -> float:
    """Of the mean: sd / sqrt(n), with n - 1 in the variance; 0 for a single row, which says nothing."""
    return float(scores.std(ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else 0.0


def paired(ours: Scores, theirs: Scores, *, draws: int = DRAWS, seed: int = 0) -> Paired:
    """The difference over one task's rows. Raises ValueError unless both have the same rows, at least one."""
    ours_D, theirs_D = _resampled_means(ours, theirs, draws, np.random.default_rng(seed))
    return Paired(float(ours.mean() - theirs.mean()), _interval(ours_D - theirs_D), len(ours))


def relative_change(pairs: Sequence[tuple[Scores, Scores]], *, draws: int = DRAWS, seed: int = 0) -> Change | None:
    """The change of the mean over tasks, a pair (ours, theirs) a task; rows are drawn again within each task. None
    where theirs is 0, or may be: nothing is relative to that."""
    random = np.random.default_rng(seed)
    means = [_resampled_means(ours, theirs, draws, random) for ours, theirs in pairs]
    ours_D, theirs_D = (np.mean([mean[i] for mean in means], axis=0) for i in (0, 1))
    if not theirs_D.all():
        return None
    ours_mean, theirs_mean = (np.mean([pair[i].mean() for pair in pairs]) for i in (0, 1))
    return Change(float(ours_mean / theirs_mean - 1), _interval(ours_D / theirs_D - 1))


def _resampled_means(
    ours: Scores, theirs: Scores, draws: int, random: np.random.Generator
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Means of both over rows drawn with replacement, `draws` times.

    Only how often each kind of row is drawn matters, and those counts are multinomial: of right and wrong answers there
    are four kinds, so that 10,000 draws of 10,000 rows take no longer than of ten.
    """
    if len(ours) != len(theirs) or not len(ours):
        raise ValueError(f"{len(ours)} rows and {len(theirs)}: a pair has the same rows, at least one.")
    kinds, counts = np.unique(np.stack([ours, theirs]), axis=1, return_counts=True)
    drawn = random.multinomial(len(ours), counts / len(ours), size=draws) / len(ours)
    return drawn @ kinds[0], drawn @ kinds[1]


def _interval(values: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
