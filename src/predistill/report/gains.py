"""What the teacher was worth, and how sure that is: paired differences over seeds.

A difference is the distilled run's held-out loss less its matched baseline's, in nats a token: below zero, the teacher
helped.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from predistill.report.records import Record
from predistill.report.table import Group, Pair, matched_pairs

__all__ = ["Gain", "gains", "student_t_975"]


@dataclass(frozen=True)
class Gain:
    """One distilled recipe against its baselines: a matched pair a seed."""

    group: Group
    pairs: tuple[Pair, ...]

    @property
    def differences(self) -> list[float]:
        """Nats a token, one a pair."""
        return [pair.difference_nats for pair in self.pairs]

    @property
    def mean(self) -> float:
        """Mean difference in nats a token."""
        return fmean(self.differences)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % interval of the mean difference: mean -+ t(.975, n - 1) * sd / sqrt(n); None with one pair."""
        n = len(self.pairs)
        if n < 2:
            return None
        half = student_t_975(n - 1) * stdev(self.differences) / math.sqrt(n)
        return self.mean - half, self.mean + half

    @property
    def share(self) -> float:
        """Mean difference over the baselines' mean loss."""
        return self.mean / fmean(pair.baseline.loss_nats or math.nan for pair in self.pairs)


def student_t_975(freedom: int) -> float:
    """The .975 quantile of Student's t; bisection on the closed form of its CDF (Abramowitz & Stegun 26.7.3-4)."""
    assert freedom >= 1

    def within(t: float) -> float:  # P(-t < T < t)
        angle, odd = math.atan2(t, math.sqrt(freedom)), freedom % 2
        term, total = (math.cos(angle) if odd else 1.0), 0.0
        for j in range(1, freedom // 2 + 1):
            total += term
            term *= math.cos(angle) ** 2 * (2 * j - 1 + odd) / (2 * j + odd)
        return 2 / math.pi * (angle + math.sin(angle) * total) if odd else math.sin(angle) * total

    low, high = 0.0, 13.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within(middle) < 0.95 else (low, middle)
    return (low + high) / 2


def gains(groups: Sequence[Group], records: Sequence[Record]) -> list[Gain]:
    """The distilled recipes that have a matched pair, the largest gain first."""
    pairs = matched_pairs(records)
    found = []
    for group in groups:
        by_seed: dict[int, Pair] = {}  # a seed counts once: a run repeated at the same seed is no second observation
        for pair in pairs:
            if group.distilled and pair.distilled in group.records:
                by_seed.setdefault(pair.distilled.seed, pair)
        found.append(Gain(group, tuple(by_seed[seed] for seed in sorted(by_seed))))
    return sorted((gain for gain in found if gain.pairs), key=lambda gain: gain.mean)
