"""What the held-out lines tell: a plateau, the student against its LM baseline at equal tokens, calibration.

The same rows every time: no noise of the batch, so one or two lines are enough. Each looks at one corpus.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Sequence

from predistill.training.watch.finding import Finding, Record

__all__ = ["Baseline", "CalibrationDrift", "Curve", "Plateau"]


class Plateau:
    """The held-out loss has fallen by less than a thousandth over a twelfth of the run, on two lines running, or on one
    that is a hundredth above the one before; or not by anything at all from one line to the next, which weights that
    move cannot do. Counted from a tenth to nine tenths of the run: before, warm-up explains it, and after, the decay of
    the learning rate. Over once it is half a hundredth lower than it was when it was told."""

    FALL, PART, RISE, OVER = 0.001, 1 / 12, 0.01, 0.005

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._seen: list[tuple[int, float]] = []
        self._flat = 0  # lines running
        self._told: float | None = None  # the loss when it was told

    def see(self, line: Record, *, lr: float) -> Finding | None:
        """What this line shows; `lr` is that of the last step."""
        step, loss = line["step"], line["loss_nats"]
        before, self._seen = self._seen, [*self._seen, (step, loss)]
        if not 0.1 * self._steps <= step <= 0.9 * self._steps:
            return None
        earlier = [seen for seen in before if step - seen[0] >= self.PART * self._steps]
        self._seen = [*earlier[-1:], *before[len(earlier) :], (step, loss)]
        still = before[-1] if before and before[-1][1] == loss else None
        since, there = still or (earlier[-1] if earlier else (step, math.inf))
        fall = (there - loss) / there if there < math.inf else math.inf
        rises = bool(before) and loss > before[-1][1] * (1 + self.RISE)
        self._flat = 0 if fall >= self.FALL else self._flat + 1
        if self._told is not None and loss < self._told * (1 - self.OVER):
            self._told = None
        if self._told is not None or not (self._flat > 1 or (self._flat and (still or rises))):
            return None
        self._told = loss
        change = (
            f"The weights do not move, at lr {lr:.3g}: look at the schedule, lr.peak and lr.decay_frac."
            if still
            else "It rises: the text is repeated too often, the held-out text is of another kind, or the targets "
            "mislead. Take more text or fewer tokens; a good teacher (alpha.peak .9) bears repetition better."
            if fall < -self.FALL
            else f"Decay the learning rate (now {lr:.3g}) sooner with a larger lr.decay_frac, raise lr.peak if it is "
            "low, or take a larger student.preset."
        )
        return Finding(
            "plateau", step, severe=False, value=fall, limit=self.FALL, since=since,
            sentence=f"step {step:,}: the held-out loss{_on(line)} is {loss:.3f} nats, and was {there:.3f} "
            f"at step {since:,}. {change}",
        )  # fmt: skip


class Curve:
    """The held-out loss of a finished run, at any number of tokens that it has seen."""

    def __init__(self, lines: Sequence[Record]) -> None:
        points: dict[int, float] = {
            line["tokens"]: line["loss_nats"] for line in lines if math.isfinite(line["loss_nats"])
        }
        self._tokens = sorted(points)
        self._losses: list[float] = [points[tokens] for tokens in self._tokens]

    def __call__(self, tokens: int) -> float | None:
        """Nats after `tokens`, on a line in their logarithm between the two nearest; None outside what was measured."""
        right = bisect_left(self._tokens, tokens)
        if right == len(self._tokens) or (right == 0 and self._tokens[0] != tokens):
            return None
        if self._tokens[right] == tokens:
            return self._losses[right]
        low, high = self._tokens[right - 1], self._tokens[right]
        done = math.log(tokens / low) / math.log(high / low)
        return self._losses[right - 1] * (1 - done) + self._losses[right] * done


class Baseline:
    """A taught student against the LM run at equal tokens, as a share of the LM run's loss; two lines in a row, or one
    that is twice as far behind.

    over_regularised: behind by two hundredths, counted from a tenth of the run, or by one, from half of it.
    under_regularised: neither so far behind nor ahead by five thousandths, counted from half: gains come late.
    """

    EARLY, BEHIND, AHEAD = 0.02, 0.01, 0.005

    def __init__(self, steps: int, curve: Curve) -> None:
        self._steps, self._curve = steps, curve
        self._behind, self._level = _Twice(), _Twice()

    def see(self, line: Record, *, alpha: float) -> Finding | None:
        """What this line shows; `alpha` is that of the last step."""
        step, loss, there = line["step"], line["loss_nats"], self._curve(line["tokens"])
        if there is None:
            return None
        gain, late = (there - loss) / there, step >= 0.5 * self._steps
        behind = self.BEHIND if late else self.EARLY
        found = None
        counted = step >= 0.1 * self._steps
        if self._behind.shown(step, counted and gain < -behind, at_once=counted and gain < -2 * behind):
            found = Finding(
                "over_regularised", step, severe=False, value=gain, limit=-behind, since=self._behind.since,
                sentence=f"step {step:,}: {loss:.3f} held-out nats{_on(line)}, {loss - there:.3f} behind the LM "
                f"baseline at equal tokens, with alpha {alpha:.2g}: the teacher harms. Lower alpha.peak (.9 where the "
                "teacher is strong, .1 where it is weak), keep more with truncation.k, or set tail.kind to ghost "
                "(as_sampled with a sampled store): a renormalised head is over-confident. Then temperature.value 1.",
            )  # fmt: skip
        if self._level.shown(step, late and -behind <= gain < self.AHEAD):
            found = Finding(
                "under_regularised", step, severe=False, value=gain, limit=self.AHEAD, since=self._level.since,
                sentence=f"step {step:,}: {loss:.3f} held-out nats{_on(line)}, the LM baseline {there:.3f} at "
                f"equal tokens: no gain from the teacher at alpha {alpha:.2g}. Raise alpha.peak (the paper's best is "
                ".9, with wsd for alpha and lr); if it is high, the teacher has nothing to give here: take one with a "
                "lower held-out loss, or a larger student.preset (under a tenth of the teacher's size little is "
                "gained).",
            )  # fmt: skip
        return found


class CalibrationDrift:
    """The calibration error is above the lowest it had, by more than `RISE` of probability, two lines in a row, or by
    twice as much at one. Counted from a tenth of the run; over when it is halfway back."""

    RISE = 0.04

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self._lowest = math.inf
        self._high = _Twice()

    def see(self, line: Record, *, taught: bool) -> Finding | None:
        """What this line shows."""
        step, ece = line["step"], line.get("ece")
        if ece is None or not math.isfinite(ece) or step < 0.1 * self._steps:
            return None
        self._lowest = lowest = min(self._lowest, ece)
        rise = ece - lowest
        if not self._high.shown(step, rise > self.RISE, at_once=rise > 2 * self.RISE, over=rise <= self.RISE / 2):
            return None
        change = (
            "set tail.kind to ghost, or as_sampled with a sampled store (renormalising makes over-confident), "
            "temperature.value to 1, or take more text or fewer tokens, so that it is repeated less often."
            if taught
            else "take more text or fewer tokens, so that it is repeated less often."
        )
        return Finding(
            "calibration_drift", step, severe=False, value=ece, limit=lowest + self.RISE, since=self._high.since,
            sentence=f"step {step:,}: the held-out calibration error{_on(line)} rose from {lowest:.3f} to {ece:.3f}: "
            f"{change}",
        )  # fmt: skip


class _Twice:
    """Something that is told when it shows at two lines in a row, and again only after it was over."""

    def __init__(self) -> None:
        self.since = 0  # the first of the lines in a row
        self._shows = self._told = False

    def shown(self, step: int, shows: bool, *, at_once: bool = False, over: bool | None = None) -> bool:
        """Whether to tell it at this line: at the second one that shows it, or `at_once`. What is told ends where it is
        `over` (default: wherever it does not show)."""
        before, self._shows = self._shows, shows
        if shows and not before:
            self.since = step
        if over or (over is None and not shows):
            self._told = False
        if self._told or not shows or not (before or at_once):
            return False
        self._told = True
        return True


def _on(line: Record) -> str:
    return f" on {line['corpus']}" if line.get("corpus") is not None else ""
