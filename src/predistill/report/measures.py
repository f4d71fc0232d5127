"""What `evaluate` found of a run beyond its held-out loss: calibration by bins, loss in parts, copying, tasks.

Every part may be absent: records are as old as the version that wrote them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.report.reading import Reader

__all__ = ["Bin", "Copied", "Copying", "Example", "HeldOut", "Measures", "Part", "TaskResult", "read_measures"]


@dataclass(frozen=True)
class Bin:
    """Predictions of like confidence: their mean, the share that was right, and how many."""

    confidence: float
    accuracy: float
    count: int


@dataclass(frozen=True)
class Part:
    """The labels from `low` (inclusive) to `high` (exclusive) of what they are ordered by; losses in nats a token."""

    low: float
    high: float
    tokens: int
    loss_nats: float
    teacher_loss_nats: float | None


@dataclass(frozen=True)
class HeldOut:
    """The held-out text of one corpus. Entropies and divergences in nats a token."""

    corpus: str | None
    tokens: int | None
    loss_nats: float | None
    bits_per_byte: float | None
    ece: float | None
    ece_noise: float | None
    entropy_nats: float | None
    teacher_entropy_nats: float | None
    teacher_ece: float | None
    kl_nats: float | None
    reverse_kl_nats: float | None
    reliability: tuple[Bin, ...]
    by_position: tuple[Part, ...]
    by_frequency: tuple[Part, ...]
    by_teacher_entropy: tuple[Part, ...]


@dataclass(frozen=True)
class Copied:
    """Random ids written twice: loss of the first and of the second writing, and how much of the second was right."""

    length: int
    sequences: int
    first_loss_nats: float
    loss_nats: float
    accuracy: float


@dataclass(frozen=True)
class Copying:
    """The copying probe; `chance_nats` is the loss of a uniform guess."""

    vocab_size: int
    chance_nats: float
    lengths: tuple[Copied, ...]


@dataclass(frozen=True)
class Example:
    """One prompt of a task with its choices and their scores in nats, or with what was written."""

    prompt: str
    answer: tuple[int, ...] | str
    choices: tuple[str, ...]
    scores: tuple[float, ...]
    written: str | None


@dataclass(frozen=True)
class TaskResult:
    """A task's headline metric, a share; `correct` row by row where the record has it."""

    version: float
    shots: int
    n: int
    of: int | None
    headline: str
    value: float
    stderr: float | None
    correct: str | None
    rows: str | None
    cut: int
    context: int | None
    notes: tuple[str, ...]
    command: str | None
    example: Example | None
    others: Mapping[str, tuple[float, float | None]]  # the other metrics, with their errors

    @property
    def asked(self) -> tuple[float, int, str | None, str]:
        """What must be equal for two results to be of the same rows, asked and scored in the same way."""
        return self.version, self.shots, self.rows, self.headline

    @property
    def scores(self) -> npt.NDArray[np.float64] | None:
        """0 or 1 a row, in the order of the file."""
        if self.correct is None:
            return None
        return np.frombuffer(self.correct.encode(), np.uint8).astype(np.float64) - ord("0")


@dataclass(frozen=True)
class Measures:
    """All of it, of one run."""

    heldout: HeldOut | None = None
    corpora: Mapping[str, HeldOut] = field(default_factory=dict)
    copying: Copying | None = None
    tasks: Mapping[str, TaskResult] = field(default_factory=dict)
    suites: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # the tasks of each


def read_measures(evaluation: Reader) -> Measures:
    """The sections of an evaluation.json. Raises RunError naming what is broken."""
    return Measures(
        heldout=_held_out(evaluation.inner("heldout")),
        corpora={
            name: found
            for name, reader in evaluation.named("corpora").items()
            if (found := _held_out(reader)) is not None
        },
        copying=_copying(evaluation.inner("copying")),
        tasks={name: _task(reader) for name, reader in evaluation.named("tasks.results").items()},
        suites={name: reader.need("tasks", _names) for name, reader in evaluation.named("tasks.suites").items()},
    )


def _held_out(found: Reader) -> HeldOut | None:
    """None where it was not measured, and of a student that has diverged: nothing of it is a number."""
    if not math.isfinite(found.get("loss_nats", float) or math.nan):
        return None
    return HeldOut(
        corpus=found.get("corpus", str),
        tokens=found.get("tokens", int),
        loss_nats=found.get("loss_nats", float),
        bits_per_byte=found.get("bits_per_byte", float),
        ece=found.get("ece", float),
        ece_noise=found.get("ece_noise", float),
        entropy_nats=found.get("entropy_nats", float),
        teacher_entropy_nats=found.get("teacher.entropy_nats", float),
        teacher_ece=found.get("teacher.ece", float),
        kl_nats=found.get("teacher.kl_nats", float),
        reverse_kl_nats=found.get("teacher.reverse_kl_nats", float),
        reliability=tuple(
            Bin(line.need("confidence", float), line.need("accuracy", float), line.need("count", int))
            for line in found.each("reliability")
        ),
        by_position=_parts(found, "by_position"),
        by_frequency=_parts(found, "by_frequency"),
        by_teacher_entropy=_parts(found, "by_teacher_entropy"),
    )


def _parts(found: Reader, key: str) -> tuple[Part, ...]:
    """Those that have a label."""
    parts = []
    for line in found.each(key):
        if line.need("tokens", int):
            loss_nats, teacher = line.need("loss_nats", float), line.get("teacher_loss_nats", float)
            bounds = line.need("from", float), line.need("to", float)
            parts.append(Part(*bounds, line.content["tokens"], loss_nats, teacher))
    return tuple(parts)


def _copying(found: Reader) -> Copying | None:
    """None where it was not measured, and of a student that has diverged."""
    lines = found.each("lengths")
    if not lines or any(not math.isfinite(line.get("loss_nats", float) or 0.0) for line in lines):
        return None
    return Copying(
        vocab_size=found.need("vocab_size", int),
        chance_nats=found.need("chance_nats", float),
        lengths=tuple(
            Copied(
                length=line.need("length", int),
                sequences=line.need("sequences", int),
                first_loss_nats=line.need("first_loss_nats", float),
                loss_nats=line.need("loss_nats", float),
                accuracy=line.need("accuracy", float),
            )
            for line in lines
        ),
    )


def _task(found: Reader) -> TaskResult:
    headline: str = found.need("headline", str)
    metrics = {
        name: (metric.need("value", float), metric.get("stderr", float))
        for name, metric in found.named("metrics").items()
    }
    if headline not in metrics:
        found.need(f"metrics.{headline}.value", float)
    value, stderr = metrics.pop(headline)
    return TaskResult(
        version=found.need("version", float),
        shots=found.need("shots", int),
        n=found.need("n", int),
        of=found.get("of", int),
        headline=headline,
        value=value,
        stderr=stderr,
        correct=found.get("correct", _right_and_wrong),
        rows=found.get("rows", str),
        cut=found.get("cut", int) or 0,
        context=found.get("context", int),
        notes=found.get("notes", _names) or (),
        command=found.get("command", str),
        example=_example(found.inner("example")) if found.get("example", dict) else None,
        others=metrics,
    )


def _example(found: Reader) -> Example:
    return Example(
        prompt=found.need("prompt", str),
        answer=found.need("answer", _answer),
        choices=found.get("choices", _names) or (),
        scores=found.get("scores", _numbers) or (),
        written=found.get("written", str),
    )


def _answer(value: Any) -> tuple[int, ...] | str:
    """The places of the right choices, or the text that is right."""
    places = value if isinstance(value, list) else [value]
    if places and all(isinstance(place, int) and not isinstance(place, bool) for place in places):
        return tuple(places)
    return str(value)


def _right_and_wrong(value: Any) -> str:
    if not isinstance(value, str) or not value or set(value) - {"0", "1"}:
        raise ValueError
    return value


def _names(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(map(str, value))


def _numbers(value: Any) -> tuple[float, ...]:
    if not isinstance(value, list):
        raise TypeError
    return tuple(map(float, value))
