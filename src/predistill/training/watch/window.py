"""The last values of a series, and where they lie: by the median, which a few bad steps do not move."""

from __future__ import annotations

import math
from collections import deque
from statistics import fmean, median

__all__ = ["Window", "share"]


class Window:
    """The last `size` values of a series."""

    def __init__(self, size: int) -> None:
        self._values: deque[float] = deque(maxlen=size)

    def add(self, value: float) -> None:
        """Take one value in, and the oldest out where there are `size`."""
        self._values.append(value)

    def clear(self) -> None:
        """Begin anew."""
        self._values.clear()

    def __len__(self) -> int:
        return len(self._values)

    @property
    def full(self) -> bool:
        """Whether there are `size` values."""
        return len(self._values) == self._values.maxlen

    @property
    def median(self) -> float:
        """The middle value."""
        return median(self._values)

    @property
    def spread(self) -> float:
        """The median distance to the median, as a standard deviation of normal noise."""
        middle = self.median
        return 1.4826 * median(abs(value - middle) for value in self._values)

    @property
    def lowest(self) -> float:
        """The least value."""
        return min(self._values)

    @property
    def highest(self) -> float:
        """The greatest value."""
        return max(self._values)

    @property
    def sum(self) -> float:
        """All values together."""
        return sum(self._values)

    @property
    def mean(self) -> float:
        """Their mean."""
        return fmean(self._values)

    @property
    def error(self) -> float:
        """The standard error of their mean."""
        mean = self.mean
        return math.sqrt(sum((value - mean) ** 2 for value in self._values)) / len(self._values)


def share(steps: int, part: float, *, least: int, most: int = 200) -> int:
    """So many steps as are `part` of the run, but at least `least`: a short run has noisy steps. And at most `most`."""
    return min(max(round(part * steps), least), most)
