"""How far a run in training is, what it shows and how fast it goes, from its records as they come.

Time left and rates are of a trailing window: what the run does now, not what it did on average since it was made.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from predistill.runs import NUMBERS

__all__ = ["Cost", "Progress", "Record"]

WINDOW_SECONDS = 120.0  # long enough for an evaluation and a checkpoint to count in the time left
FINDINGS = 3
SPARK_CELLS = 24
SPARKS = "▁▂▃▄▅▆▇█"

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Cost:
    """FLOPs that a token takes, and FLOPs a second that all devices of the run have together at their peak."""

    flops_per_token: float
    peak_flops: float


class Progress:
    """What the records of a run have said so far: the newest values, and rates over the last two minutes."""

    def __init__(self, name: str, steps: int, cost: Callable[[], Cost | None] = lambda: None) -> None:
        self.name, self.steps = name, steps
        self.step: Record | None = None
        self.heldout: dict[str, tuple[Record, float | None]] = {}
        self.findings: deque[Record] = deque(maxlen=FINDINGS)
        self._ask_cost = cost
        self._cost: Cost | None = None
        # (clock, step, tokens, seconds in steps, seconds waited), a mark a second; the newest is kept beside them
        self._marks: deque[tuple[float, int, int, float, float]] = deque(maxlen=round(WINDOW_SECONDS))
        self._waited = 0.0
        self._now: tuple[float, int, int, float, float] | None = None
        self._course = _Course()

    def take(self, record: Record) -> None:
        """Take in a line of metrics.jsonl, or a finding of the watch."""
        record = {key: math.nan if value is None and key in NUMBERS else value for key, value in record.items()}
        if "sentence" in record:
            self.findings.append(record)
        elif record["kind"] == "heldout":
            corpus = str(record.get("corpus", ""))
            before = self.heldout.get(corpus)
            loss, old = record["loss_nats"], before[0]["loss_nats"] if before else None
            self.heldout[corpus] = record, None if old is None else loss - old
        elif record["kind"] == "step":
            self._take_step(record)

    def _take_step(self, record: Record) -> None:
        if self.step is None:
            self._cost = self._ask_cost()
        if self.step is not None and record["step"] <= self.step["step"]:  # the watch went back to a checkpoint
            self._marks.clear()
        now = time.monotonic()
        self._waited += record.get("stall_s") or 0.0
        self.step, self._now = record, (now, record["step"], record["tokens"], record["seconds"], self._waited)
        self._course.take(record["loss"])
        if not self._marks or now - self._marks[-1][0] >= 1.0:
            self._marks.append(self._now)
        while len(self._marks) > 2 and now - self._marks[0][0] > WINDOW_SECONDS:
            self._marks.popleft()

    def _window(self) -> tuple[float, int, int, float, float]:
        """Clock seconds, steps, tokens, seconds in steps and seconds waited, of the trailing window."""
        if self._now is None or not self._marks:
            return 0.0, 0, 0, 0.0, 0.0
        a, b = self._marks[0], self._now
        return b[0] - a[0], b[1] - a[1], b[2] - a[2], b[3] - a[3], b[4] - a[4]

    @property
    def share_done(self) -> float:
        """Steps taken over all steps."""
        return min(1.0, self.step["step"] / self.steps) if self.step and self.steps else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At the window's pace, evaluations and checkpoints included; None before there is one."""
        clock, steps, *_ = self._window()
        return clock / steps * (self.steps - self.step["step"]) if self.step and steps > 0 and clock > 0 else None

    @property
    def tokens_per_s(self) -> float | None:
        """In the steps of the window; of the run so far before there is one."""
        _, _, tokens, seconds, _ = self._window()
        if tokens > 0 and seconds > 0:
            return tokens / seconds
        return self.step.get("tokens_per_s") if self.step else None

    @property
    def mfu(self) -> float | None:
        """FLOPs of the model over those of the devices' peak; None where the peak is not known."""
        rate = self.tokens_per_s
        return self._cost.flops_per_token * rate / self._cost.peak_flops if self._cost and rate else None

    @property
    def stall_share(self) -> float | None:
        """Of the time in steps, what was spent waiting for the store."""
        _, _, _, seconds, waited = self._window()
        return min(1.0, waited / seconds) if seconds > 0 else None

    def course(self) -> str:
        """The loss so far as a row of blocks, oldest first; lower is better."""
        return self._course.drawn()


class _Course:
    """Means over equal stretches of steps: as many as fit, each twice as long whenever they would be too many."""

    def __init__(self) -> None:
        self._means: list[float] = []
        self._stretch, self._sum, self._count = 1, 0.0, 0

    def take(self, value: float) -> None:
        if not math.isfinite(value):
            return
        self._sum, self._count = self._sum + value, self._count + 1
        if self._count < self._stretch:
            return
        self._means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0
        if len(self._means) > SPARK_CELLS:
            pairs = zip(self._means[::2], self._means[1::2], strict=False)
            rest = self._means[2 * (len(self._means) // 2) :]
            self._means = [(a + b) / 2 for a, b in pairs]
            self._stretch *= 2
            self._sum, self._count = sum(rest) * self._stretch / 2, len(rest) * self._stretch // 2

    def drawn(self) -> str:
        """Blocks; the steep start is cut, as in the report, so that the rest has room."""
        settled = self._means[len(self._means) // 8 :]
        if len(settled) < 2:
            return ""
        low, high = min(settled), max(settled)
        cells = [min(1.0, (mean - low) / (high - low)) if high > low else 0.0 for mean in self._means]
        return "".join(SPARKS[round(cell * (len(SPARKS) - 1))] for cell in cells)
