"""How alpha and the learning rate move over a run: pure functions of the fraction of the run that is done."""

# ruff: noqa: ARG002  (schedules share one call)

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, NonNegativeFloat, PositiveFloat, model_validator
from pydantic.dataclasses import dataclass

__all__ = ["WSD", "Constant", "Cosine", "Linear", "Period", "Schedule"]

_choice = ConfigDict(extra="forbid")
Fraction = Annotated[float, Field(ge=0, le=1)]


@dataclass(frozen=True, config=_choice)
class Constant:
    """`value` at every step."""

    value: NonNegativeFloat
    kind: Literal["constant"] = "constant"

    def __call__(self, step: float, steps: float) -> float:
        """The value at `step` of `steps`, 0 <= step <= steps."""
        return self.value


@dataclass(frozen=True, config=_choice)
class Linear:
    """A straight line from `start` to `end` (arXiv 2410.16215: LinearInc 0 -> 1, LinearDec 1 -> 0)."""

    start: NonNegativeFloat
    end: NonNegativeFloat
    kind: Literal["linear"] = "linear"

    def __call__(self, step: float, steps: float) -> float:
        """The value at `step` of `steps`, 0 <= step <= steps."""
        return self.start + (self.end - self.start) * _done(step, steps)


@dataclass(frozen=True, config=_choice)
class Cosine:
    """Linear warm-up from 0 to `peak`, then half a cosine down to `floor * peak` (arXiv 1608.03983)."""

    peak: PositiveFloat
    warmup_frac: Fraction = 0.0
    floor: Fraction = 0.0
    kind: Literal["cosine"] = "cosine"

    def __call__(self, step: float, steps: float) -> float:
        """The value at `step` of `steps`, 0 <= step <= steps."""
        done = _done(step, steps)
        if done < self.warmup_frac:
            return self.peak * done / self.warmup_frac
        return self.peak * _half_cosine(done, start=self.warmup_frac, floor=self.floor)


@dataclass(frozen=True, config=_choice)
class Period:
    """`cycles` whole cosine waves between `high` and `low`, starting (and ending) high (arXiv 2410.16215: Period)."""

    low: NonNegativeFloat
    high: NonNegativeFloat
    cycles: PositiveFloat
    kind: Literal["period"] = "period"

    def __call__(self, step: float, steps: float) -> float:
        """The value at `step` of `steps`, 0 <= step <= steps."""
        wave = (1 + math.cos(2 * math.pi * self.cycles * _done(step, steps))) / 2
        return self.low + (self.high - self.low) * wave


@dataclass(frozen=True, config=_choice)
class WSD:
    """Warm-up, stable, decay: a line to `peak`, a plateau, half a cosine down to `floor * peak` (arXiv 2404.06395).

    `inverse` gives 1 - value: the schedule of alpha when the LM share follows WSD (arXiv 2410.16215: WSD-beta).
    """

    peak: PositiveFloat
    warmup_frac: Fraction = 0.0
    decay_frac: Fraction = 0.0
    floor: Fraction = 0.0
    inverse: bool = False
    kind: Literal["wsd"] = "wsd"

    @model_validator(mode="after")
    def _phases_fit(self) -> WSD:
        if self.warmup_frac + self.decay_frac > 1:
            raise ValueError(
                f"warmup_frac {self.warmup_frac} and decay_frac {self.decay_frac} add up to more than the whole run; "
                "make their sum at most 1"
            )
        if self.inverse and self.peak > 1:
            raise ValueError(f"inverse gives 1 - value, below 0 for a peak of {self.peak}; choose a peak of at most 1")
        return self

    def __call__(self, step: float, steps: float) -> float:
        """The value at `step` of `steps`, 0 <= step <= steps."""
        done = _done(step, steps)
        if done < self.warmup_frac:
            value = self.peak * done / self.warmup_frac
        else:
            value = self.peak * _half_cosine(done, start=1 - self.decay_frac, floor=self.floor)
        return 1 - value if self.inverse else value


Schedule = Annotated[Constant | Linear | Cosine | Period | WSD, Field(discriminator="kind")]


def _done(step: float, steps: float) -> float:
    """The fraction of the run that is done; a run of no steps is done."""
    return min(max(step / steps, 0.0), 1.0) if steps > 0 else 1.0


def _half_cosine(done: float, *, start: float, floor: float) -> float:
    """1 up to `start`, then half a cosine that reaches `floor` at 1."""
    if done <= start:
        return 1.0
    return floor + (1 - floor) * (1 + math.cos(math.pi * (done - start) / (1 - start))) / 2
