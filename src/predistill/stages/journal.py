"""What a run says of itself while it goes on: its metrics, what the watch found in them, and whoever listens."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from predistill.errors import RunError
from predistill.runs import NUMBERS, Findings, Metrics, Run
from predistill.training.watch import Finding, Watch, WatchChoice
from predistill.world import World

__all__ = ["Journal", "Record", "RollBack"]

Record = Mapping[str, Any]

LOST = 5  # steps that are not finite one after the other: it is the weights, not a batch
ROLLBACKS = 3
KEPT = ("not_finite", "spike")  # whose batch is named and kept


class RollBack(Exception):
    """The watch asks for the state before step `since`."""

    def __init__(self, since: int) -> None:
        super().__init__(since)
        self.since = since


class Journal:
    """The records of a run from `resume_step` on. Every process has one and sees every record, so that all of them
    decide alike; the first one writes. A context manager."""

    def __init__(
        self,
        run: Run,
        world: World,
        *,
        choice: WatchChoice,
        steps: int,
        taught: bool,
        corpora: Collection[str],
        resume_step: int,
        keep_batch: Callable[[int], Path],
        forget: Callable[[int], None],
        on_record: Callable[[Record], None] | None,
    ) -> None:
        """`corpora`: those that the run learns from, by path. `keep_batch(step)` writes the rows and tokens of a step
        (from 1) to a file, and names it; `forget(step)` drops the checkpoints of that step and after."""
        self._run, self._policy, self._on_record = run, choice.policy, on_record
        self._corpora, self._keep_batch, self._forget = corpora, keep_batch, forget
        self._metrics = Metrics(run, resume_step=resume_step) if world.first else None
        self._findings = Findings(run, resume_step=resume_step) if world.first else None
        history = world.share(run.metrics() if world.first else [])
        rolled_back = world.share(
            [line for line in run.findings if line["action"] == "rollback"] if world.first else []
        )
        self._rollbacks = len(rolled_back)
        # Steps (from 1) whose update is left out, and which are not judged again.
        self.skipped = {step for line in rolled_back for step in range(line["since"], line["step"] + 1)}
        baseline = () if choice.baseline is None else Run(choice.baseline).metrics()
        self._watch = Watch(choice, steps=steps, taught=taught, baseline=baseline)
        self._lost = 0
        for record in history:
            self._see(record)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *failure: object) -> None:
        if self._metrics is not None and self._findings is not None:
            self._metrics.close()
            self._findings.close()

    def write(self, record: Record) -> None:
        """Take in a record, and do what the watch's policy says of what it finds there.

        Raises RollBack, and RunError where the run must not go on.
        """
        record = {key: _finite(value) for key, value in record.items()}
        if self._metrics is not None:
            self._metrics.write(record)
            self._tell(record)
        findings = self._see(record)
        severe = min((finding for finding in findings if finding.severe), key=lambda each: each.since, default=None)
        rollback = severe is not None and self._policy == "rollback" and self._rollbacks < ROLLBACKS
        if severe is not None and rollback:
            self._forget(severe.since)  # before it is written down: what is not written is found again
        action = "rollback" if rollback else "warn" if self._policy == "warn" else "stop"
        for finding in findings if self._findings is not None else ():
            self._note(finding, action if finding.severe else "warn")
        if severe is not None and rollback:
            raise RollBack(severe.since)
        if severe is not None and self._policy != "warn":
            again = f" after {ROLLBACKS} times rolling back" if self._policy == "rollback" else ""
            raise RunError(f"{self._run.path}: stopped by its watch{again}. {severe.sentence}")
        if self._lost >= LOST:
            raise RunError(
                f"{self._run.path}: not finite at step {record['step']}, and {LOST} times in a row. The last "
                "checkpoint is untouched; lower lr.peak, or set optimizer.clip."
            )

    def sync(self) -> None:
        """Make every record durable: called before a checkpoint counts as complete."""
        if self._metrics is not None:
            self._metrics.sync()

    def _see(self, record: Record) -> list[Finding]:
        if record["step"] in self.skipped:
            return []
        if record["kind"] == "heldout" and record.get("corpus") not in self._corpora:
            return []  # text that it does not learn from may become less likely
        bad = [key for key in NUMBERS if key in record and record[key] is None]
        if record["kind"] == "step":
            self._lost = self._lost + 1 if bad else 0
        return self._watch.see({**record, **dict.fromkeys(bad, math.nan)})

    def _note(self, finding: Finding, action: str) -> None:
        """Write a finding, and its batch where that may be what is wrong."""
        assert self._findings is not None
        line = {**asdict(finding), "action": action}
        if finding.kind in KEPT:
            kept = self._keep_batch(finding.step).relative_to(self._run.path)
            line |= {"batch": str(kept), "sentence": f"{finding.sentence} Its rows are in {kept}."}
        self._findings.write(line)
        self._tell({**line, "kind": "finding", "finding": finding.kind})

    def _tell(self, record: Record) -> None:
        if self._on_record is not None:
            self._on_record(record)


def _finite(value: Any) -> Any:
    """JSON has no NaN: what is not finite is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
