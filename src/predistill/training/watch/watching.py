"""What the recipe says about failures, and everything that looks for them, over one run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from pydantic import ConfigDict
from pydantic.dataclasses import dataclass

from predistill.training.watch.finding import Finding, Record
from predistill.training.watch.heldout import Baseline, CalibrationDrift, Curve, Plateau
from predistill.training.watch.steps import Divergence, NotFinite, Opposed, Spike, Stall

__all__ = ["Watch", "WatchChoice"]


@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class WatchChoice:
    """What is done about a failure, and the LM run that a taught one is compared with at equal tokens.

    warn: every finding is told and kept. stop: a severe one ends the run, its checkpoints stay. rollback: a severe one
    takes the run back to a checkpoint before the episode, and the batches of its steps are left out.
    """

    policy: Literal["warn", "stop", "rollback"] = "warn"
    baseline: str | None = None


class Watch:
    """Sees the lines of a run's metrics.jsonl in order and tells each failure once an episode.

    `baseline`: lines of a finished LM run; without it nothing is said about what the teacher gains. All that it knows
    comes from the lines, so a run that is resumed shows it those that are kept.
    """

    def __init__(
        self, choice: WatchChoice, *, steps: int, taught: bool, baseline: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        self.choice = choice
        self._steps, self._taught = steps, taught
        self._not_finite, self._divergence = NotFinite(), Divergence(steps)
        self._of_steps: list[Spike | Divergence | Opposed | Stall]
        self._of_steps = [Spike(steps), self._divergence, *([Opposed(steps)] if taught else []), Stall(steps)]
        self._baseline = [line for line in baseline if line["kind"] == "heldout"] if taught else []
        self._of_corpora: dict[str | None, _Heldout] = {}
        self._step: Record = {"lr": 0.0, "alpha": 0.0}

    def see(self, record: Mapping[str, Any]) -> list[Finding]:
        """What this line of metrics.jsonl shows for the first time."""
        found = [self._not_finite.see(record)] if record["kind"] in ("step", "heldout") else []
        if record["kind"] == "step":
            self._step = record
            found += [detector.see(record) for detector in self._of_steps]
        elif record["kind"] == "heldout" and math.isfinite(record["loss_nats"]) and not self._divergence.told:
            # what a run that has diverged shows on held-out text is no news, and another advice than divergence's
            found += self._of_corpus(record.get("corpus")).see(record, step=self._step)
        return [finding for finding in found if finding is not None]

    def _of_corpus(self, corpus: str | None) -> _Heldout:
        if corpus not in self._of_corpora:
            same = [line for line in self._baseline if None in (corpus, line.get("corpus")) or line["corpus"] == corpus]
            self._of_corpora[corpus] = _Heldout(self._steps, taught=self._taught, baseline=same)
        return self._of_corpora[corpus]


class _Heldout:
    """What looks at the held-out lines of one corpus."""

    def __init__(self, steps: int, *, taught: bool, baseline: Sequence[Record]) -> None:
        self._taught = taught
        self._plateau, self._drift = Plateau(steps), CalibrationDrift(steps)
        self._baseline = Baseline(steps, Curve(baseline)) if baseline else None

    def see(self, line: Record, *, step: Record) -> list[Finding | None]:
        found = [self._plateau.see(line, lr=step["lr"]), self._drift.see(line, taught=self._taught)]
        return [*found, self._baseline.see(line, alpha=step["alpha"])] if self._baseline is not None else found
