"""What the watch finds: nine kinds of failure, and one failure with the sentence that says what to change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = ["KINDS", "Finding", "Kind", "Record"]

Record = Mapping[str, Any]
Kind = Literal[
    "not_finite",
    "divergence",
    "spike",
    "plateau",
    "over_regularised",
    "under_regularised",
    "opposed",
    "stall",
    "calibration_drift",
]

KINDS: Mapping[Kind, str] = {
    "not_finite": "a loss or the gradient's norm is NaN or infinite",
    "divergence": "the LM loss is a tenth above the lowest it had, step after step, and the KD loss rises too",
    "spike": "one step's LM or KD loss is far above those before it",
    "plateau": "the held-out loss no longer falls",
    "over_regularised": "the student is behind the LM baseline at equal tokens: the teacher harms it",
    "under_regularised": "the student is no better than the LM baseline at equal tokens: the teacher gives it nothing",
    "opposed": "the KL to the teacher rises while the LM loss falls: teacher and text pull apart",
    "stall": "the steps wait for their batches",
    "calibration_drift": "the held-out calibration error rises above the lowest it had",
}
assert tuple(KINDS) == get_args(Kind)


@dataclass(frozen=True)
class Finding:
    """One failure, told once: when it was found, by which number, and what to change.

    `since` is the first step of the episode: a rollback skips the batches of steps `since` to `step`. `value` is the
    statistic that was held against `limit`. `severe`: the weights are, or are about to be, lost.
    """

    kind: Kind
    step: int
    severe: bool
    value: float
    limit: float
    sentence: str
    since: int
