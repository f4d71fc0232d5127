"""Ways of one thing measured in turns, in one process. Not a benchmark itself."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

Work = Callable[[int], object]


class Cost(NamedTuple):
    """CPU seconds, of the process and of those that work for it; seconds."""

    cpu: float
    wall: float


def paired(plain: Work, ours: Work, *, rounds: int) -> dict[str, float]:
    """Run both once a round, in the order AB, BA, AB ..., after one uncounted round; medians over the rounds."""
    costs = in_turns({"plain": plain, "ours": ours}, rounds=rounds)
    return {
        "rounds": rounds,
        **ratios(costs["ours"], costs["plain"]),
        "plain_cpu_seconds": round(statistics.median(cost.cpu for cost in costs["plain"]), 4),
        "plain_seconds": round(statistics.median(cost.wall for cost in costs["plain"]), 4),
        "cpu_seconds": round(statistics.median(cost.cpu for cost in costs["ours"]), 4),
        "seconds": round(statistics.median(cost.wall for cost in costs["ours"]), 4),
    }


def in_turns(works: Mapping[str, Work], *, rounds: int) -> dict[str, list[Cost]]:
    """What each costs in each round, after one uncounted round; the one that begins moves on."""
    names = list(works)
    costs: dict[str, list[Cost]] = {name: [] for name in names}
    for number in range(rounds + 1):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            cost = cost_of(works[name], number)
            if number:
                costs[name].append(cost)
    return costs


def cost_of(work: Work, number: int) -> Cost:
    """Of work(number). A work that others work for has a clock of its own, `cpu_seconds`."""
    clock = getattr(work, "cpu_seconds", time.process_time)
    cpu, wall = clock(), time.perf_counter()
    work(number)
    return Cost(clock() - cpu, time.perf_counter() - wall)


def ratios(ours: Sequence[Cost], plain: Sequence[Cost]) -> dict[str, float]:
    """Medians over the rounds of ours / plain."""
    both = list(zip(ours, plain, strict=True))
    return {
        "cpu_ratio": round(statistics.median(a.cpu / b.cpu for a, b in both), 3),
        "wall_ratio": round(statistics.median(a.wall / b.wall for a, b in both), 3),
    }
