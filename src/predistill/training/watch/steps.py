"""What the step lines tell: numbers that are not finite, spikes, divergence, KL against LM, stalls.

`lm` and `kd` are looked at apart: their mix moves with alpha. A window is a share of the run, with a floor in steps.
"""

from __future__ import annotations

import math

from predistill.training.watch.finding import Finding, Record
from predistill.training.watch.window import Window, share

__all__ = ["Divergence", "NotFinite", "Opposed", "Spike", "Stall"]


class NotFinite:
    """A loss or the gradient's norm is NaN or infinite. Counted from the first step; over where all is finite again. It
    may be the work of the update before: the episode begins there."""

    def __init__(self) -> None:
        self._told = False

    def see(self, line: Record) -> Finding | None:
        """What this step or held-out line shows."""
        numbers = {name: line.get(name) for name in ("loss", "lm", "kd", "grad_norm", "loss_nats")}
        bad = {name: value for name, value in numbers.items() if value is not None and not math.isfinite(value)}
        if self._told or not bad:
            self._told = self._told and (bool(bad) or line["kind"] != "step")
            return None
        self._told = True
        step = line["step"]
        words = ", ".join(f"{name} {value}" for name, value in bad.items())
        return Finding(
            "not_finite", step, severe=True, value=float(len(bad)), limit=0.0,
            since=max(step - 1, 1) if line["kind"] == "step" else step,
            sentence=f"step {step:,}: not finite: {words}. Lower lr.peak or set optimizer.clip; where precision is "
            "bf16, try fp32. If it comes back at the same rows, look at their text and targets.",
        )  # fmt: skip


class Spike:
    """One step's `lm` or `kd` is above the median of those before it, by more than their noise and a tenth of the LM
    loss explain. Counted once the window is half full; over when the loss is halfway back."""

    RISE, NOISE = 0.1, 6.0  # of the LM loss; times the spread of the window

    def __init__(self, steps: int) -> None:
        size = share(steps, 0.02, least=20)
        self._least = size // 2
        self._windows = {"lm": Window(size), "kd": Window(size)}
        self._ends: dict[str, float] = {}  # the series whose spike is not over, and below what it will be

    def see(self, line: Record) -> Finding | None:
        """What this step shows; lm is told before kd."""
        if not math.isfinite(line["lm"]):
            return None
        found = None
        for name, window in self._windows.items():
            value = line[name]
            if value is None or not math.isfinite(value):
                continue
            finding = self._judge(name, window, value, line) if len(window) >= self._least else None
            found = found or finding
            window.add(value)
        return found

    def _judge(self, name: str, window: Window, value: float, line: Record) -> Finding | None:
        if name in self._ends:
            if value < self._ends[name]:
                del self._ends[name]
            return None
        usual = window.median
        rise = max(self.RISE * self._windows["lm"].median, self.NOISE * window.spread)
        if value <= usual + rise:
            return None
        self._ends[name] = usual + rise / 2
        if len(self._ends) > 1:  # both rise together: one spike
            return None
        step, lr = line["step"], line["lr"]
        return Finding(
            "spike", step, severe=False, value=value, limit=usual + rise, since=step,
            sentence=f"step {step:,}: {name} jumped to {value:.3f} nats from {usual:.3f}, at lr {lr:.3g} and gradient "
            f"norm {line['grad_norm']:.3g}. If it comes back, lower lr.peak or optimizer.clip, or look at the rows of "
            f"this step{' and their targets' if name == 'kd' else ''}.",
        )  # fmt: skip


class Divergence:
    """Every `lm` of the last steps is a tenth above the first one or the lowest median since, and `kd`, where there is
    one, has risen too, by half as many nats: a rising alpha may cost LM loss and be worth it in KD loss. Counted once
    there are so many steps; over when the loss is halfway back."""

    RISE = 0.1

    def __init__(self, steps: int) -> None:
        size = share(steps, 0.02, least=20)
        self._usual = {"lm": Window(size), "kd": Window(size)}
        self._last = {name: Window(share(steps, 0.01, least=6)) for name in self._usual}
        self._lowest: dict[str, float] = {}
        self._since: int | None = None  # the step before the first of the high ones in a row: its update made them so
        self.told = False  # and not over yet

    def see(self, line: Record) -> Finding | None:
        """What this step shows."""
        for name, window in self._usual.items():
            value = line[name]
            if value is None or not math.isfinite(value):
                continue
            window.add(value)
            self._last[name].add(value)
            lowest = self._lowest.setdefault(name, value)
            self._lowest[name] = min(lowest, window.median) if window.full else lowest
        return self._judge(line) if math.isfinite(line["lm"]) and self._last["lm"].full else None

    def _judge(self, line: Record) -> Finding | None:
        step, lowest = line["step"], self._lowest["lm"]
        limit = (1 + self.RISE) * lowest
        if line["lm"] <= limit:
            self._since = None
            self.told = self.told and line["lm"] > (limit + lowest) / 2
            return None
        self._since = max(step - 1, 1) if self._since is None else self._since
        value = self._last["lm"].lowest
        if self.told or value <= limit or self._kd_stays(line):
            return None
        self.told = True
        return Finding(
            "divergence", step, severe=True, value=value, limit=limit, since=self._since,
            sentence=f"step {step:,}: the LM loss is at least {value:.3f} nats after step {self._since:,}; its "
            f"lowest was {lowest:.3f}. Go back to a checkpoint before it, and lower lr.peak (lr is {line['lr']:.3g}), "
            "lengthen lr.warmup_frac, or set optimizer.clip to 1.",
        )  # fmt: skip

    def _kd_stays(self, line: Record) -> bool:
        if line["kd"] is None or not math.isfinite(line["kd"]):
            return False
        return self._last["kd"].median <= self._lowest["kd"] + self.RISE / 2 * self._lowest["lm"]


class Opposed:
    """The mean `kl` of a window is above the lowest it had, by more than its noise and two hundredths of the LM loss
    explain, while `lm` has fallen since. A falling alpha explains it too: the lowest is then forgotten. Counted once a
    window is full; over when the KL is halfway back."""

    RISE, NOISE, ALPHA = 0.02, 3.0, 0.95

    def __init__(self, steps: int) -> None:
        size = share(steps, 0.02, least=10)
        self._kl, self._lm = Window(size), Window(size)
        self._lowest: tuple[float, float, float, int] | None = None  # kl, lm and alpha there, and the step
        self._ends: float | None = None

    def see(self, line: Record) -> Finding | None:
        """What this step shows."""
        kl, lm = line["kl"], line["lm"]
        if kl is None:
            self._forget()
            return None
        if not (math.isfinite(kl) and math.isfinite(lm)):
            return None
        self._kl.add(kl)
        self._lm.add(lm)
        if self._lowest is not None and line["alpha"] < self.ALPHA * self._lowest[2]:
            self._forget()
        return self._judge(line) if self._kl.full else None

    def _forget(self) -> None:
        self._kl.clear()
        self._lm.clear()
        self._lowest = self._ends = None

    def _judge(self, line: Record) -> Finding | None:
        step, kl, lm = line["step"], self._kl.mean, self._lm.mean
        if self._lowest is None or kl <= self._lowest[0]:
            self._lowest = kl, lm, line["alpha"], step
        lowest, lm_there, _, since = self._lowest
        rise = max(self.RISE * lm, self.NOISE * self._kl.error)
        if self._ends is not None:
            self._ends = None if kl < self._ends else self._ends
            return None
        if kl <= lowest + rise or lm >= lm_there - 2 * self._lm.error:
            return None
        self._ends = lowest + rise / 2
        return Finding(
            "opposed", step, severe=False, value=kl, limit=lowest + rise, since=since,
            sentence=f"step {step:,}: since step {since:,} the KL to the teacher rose from {lowest:.3f} to {kl:.3f} "
            f"nats while the LM loss fell from {lm_there:.3f} to {lm:.3f}: teacher and text pull apart. Lower "
            "alpha.peak where the teacher is weak or from another domain, raise it where the text is repeated many "
            "times, and try temperature.value 1.",
        )  # fmt: skip


class Stall:
    """The steps of a window waited for their batches for more than a quarter of their time, the longest wait left out:
    whoever starts or resumes opens stores first. Counted once a window is full; over when the share is halved."""

    SHARE = 0.25

    def __init__(self, steps: int) -> None:
        size = share(steps, 0.02, least=8)
        self._waited, self._took = Window(size), Window(size)
        self._seconds = 0.0
        self._told = False

    def see(self, line: Record) -> Finding | None:
        """What this step shows."""
        seconds, waited = line["seconds"], line.get("stall_s")
        took, self._seconds = seconds - self._seconds, seconds
        if waited is None:
            return None
        self._waited.add(waited)
        self._took.add(took)
        longest = self._waited.highest
        rest = self._took.sum - longest
        if not self._took.full or rest <= 0:
            return None
        return self._judge(line["step"], (self._waited.sum - longest) / rest)

    def _judge(self, step: int, value: float) -> Finding | None:
        if self._told or value <= self.SHARE:
            self._told = self._told and value > self.SHARE / 2
            return None
        self._told = True
        since = step - len(self._took) + 1
        return Finding(
            "stall", step, severe=False, value=value, limit=self.SHARE, since=since,
            sentence=f"step {step:,}: {value:.0%} of the time since step {since:,} was spent waiting for batches. "
            "Raise readers where cores are free, bring the store nearer (a copy on a local disk), or keep less with "
            "truncation.k.",
        )  # fmt: skip
