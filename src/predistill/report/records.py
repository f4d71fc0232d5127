"""One run as the report reads it: every file once, every key checked here, so that the rest may rely on them.

Nothing is guessed: what a run has not measured is None, and a run that has not ended is shown as unfinished.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from predistill.errors import RunError
from predistill.report.measures import Measures, read_measures
from predistill.report.reading import Reader
from predistill.runs import Run

__all__ = ["Capture", "Record", "StoreUse", "read_record"]

State = Literal["finished", "diverged", "not evaluated", "unfinished"]


@dataclass(frozen=True)
class Capture:
    """What a teacher's pass over a corpus took, from the store's costs/."""

    command: str
    seconds: float
    cpu_seconds: float | None
    tokens: int


@dataclass(frozen=True)
class StoreUse:
    """A teacher store that a run read: its totals, where its bytes went, and its capture while the store is there."""

    path: str
    positions: int
    entries: int
    bytes_by_stream: Mapping[str, int]
    vocabulary: int | None
    capture: Capture | None


@dataclass(frozen=True)
class Record:
    """A run's records. Losses in nats, times in seconds, shares as fractions; None = not measured."""

    path: Path
    name: str
    seed: int
    distilled: bool
    recipe: Mapping[str, Any]
    corpora: tuple[str, ...]
    state: State
    tokens: int
    planned_tokens: int
    steps: tuple[Mapping[str, Any], ...]
    heldouts: tuple[Mapping[str, Any], ...]
    heldout_tokens: int | None
    loss_nats: float | None
    bits_per_byte: float | None
    ece: float | None
    accuracy: float | None
    teacher: str | None
    teacher_loss_nats: float | None
    kl_nats: float | None
    agreement: float | None
    samples: tuple[tuple[str, str], ...]
    train_seconds: float | None
    train_cpu_seconds: float | None
    flops: float | None
    parameters: int | None
    train_command: str | None
    evaluate_command: str | None
    stores: tuple[StoreUse, ...]
    versions: Mapping[str, Any]
    machine: Mapping[str, Any]
    live_teacher: str | None = None  # the name of the model that ran beside the student
    findings: tuple[Mapping[str, Any], ...] = ()  # what the watch found, in the order of steps
    planned_steps: int | None = None
    measures: Measures = field(default_factory=Measures)  # what else `evaluate` found

    @property
    def heldout_corpora(self) -> tuple[str | None, ...]:
        """The corpora whose held-out text was measured in training, the first the one that the report compares by; None
        where the run does not say."""
        return tuple(dict.fromkeys(line.get("corpus") for line in self.heldouts))

    def heldouts_of(self, corpus: str | None) -> list[Mapping[str, Any]]:
        """The held-out lines of one of them."""
        return [line for line in self.heldouts if line.get("corpus") == corpus]

    @property
    def main_heldouts(self) -> list[Mapping[str, Any]]:
        """The held-out lines of the first of them."""
        return self.heldouts_of(self.heldout_corpora[0]) if self.heldouts else []

    @property
    def on_cpu(self) -> bool:
        """Whether the processors did the training: then their time is the cost, whoever else kept them busy."""
        return str(self.machine.get("device", "")).startswith("cpu") and self.train_cpu_seconds is not None

    @property
    def cost_seconds(self) -> float | None:
        """Training time: of the processors where they did the work, else of the clock."""
        return self.train_cpu_seconds if self.on_cpu else self.train_seconds


def read_record(run: Run) -> Record:
    """Every record of one run directory. Raises RunError naming the file that is broken."""
    try:
        recipe = run.recipe
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        reason = " ".join(str(error).split())
        raise RunError(
            f"{run.path / 'recipe.yaml'}: not readable as YAML ({reason}). Train into a new directory."
        ) from None
    try:
        metrics = run.metrics()
    except ValueError as error:
        raise RunError(
            f"{run.path / 'metrics.jsonl'}: a line is not JSON ({error}). Train into a new directory."
        ) from None
    asked = Reader(run.path / "recipe.yaml", recipe)
    environment = Reader(run.path / "environment.json", run.environment)
    evaluation = Reader(run.path / "evaluation.json", run.evaluation)
    done = Reader(run.path / "DONE", run.done)

    lines = [Reader(run.path / "metrics.jsonl", line) for line in metrics]
    for line in lines:
        line.need("tokens", int)
        line.need("kind", str)
    findings = [Reader(run.path / "findings.jsonl", line) for line in run.findings]
    last_tokens = max((line.content["tokens"] for line in lines), default=0)
    evaluated = done.content is not None and evaluation.content is not None
    only_tasks = evaluated and "tasks" in evaluation.content and "heldout" not in evaluation.content
    measured = evaluated and not only_tasks
    loss_nats = evaluation.need("heldout.loss_nats", float) if measured else None
    return Record(
        path=run.path,
        name=asked.get("name", str) or run.path.name,
        seed=asked.need("seed", int),
        distilled=asked.get("teacher.kind", str) not in (None, "none"),
        recipe=recipe,
        corpora=environment.get("inputs.corpus", _fingerprints) or (),
        state=_state(done=done.content is not None, loss_nats=loss_nats),
        tokens=done.get("tokens", int) or last_tokens,
        planned_tokens=(environment.get("steps", int) or 0) * (environment.get("batch_tokens", int) or 0)
        or asked.need("tokens", int),
        steps=tuple(line.content for line in lines if line.content["kind"] == "step"),
        heldouts=tuple(line.content for line in lines if line.content["kind"] == "heldout"),
        heldout_tokens=evaluation.need("heldout.tokens", int) if measured else None,
        loss_nats=loss_nats,
        bits_per_byte=evaluation.get("heldout.bits_per_byte", float) if measured else None,
        ece=evaluation.get("heldout.ece", float) if measured else None,
        accuracy=evaluation.get("heldout.accuracy", float) if measured else None,
        teacher=evaluation.get("heldout.teacher.name", str) if measured else None,
        teacher_loss_nats=evaluation.get("heldout.teacher.loss_nats", float) if measured else None,
        kl_nats=evaluation.get("heldout.teacher.kl_nats", float) if measured else None,
        agreement=evaluation.get("heldout.teacher.agreement", float) if measured else None,
        samples=(evaluation.get("samples", _samples) or ()) if measured else (),
        train_seconds=done.get("seconds", float),
        train_cpu_seconds=done.get("cpu_seconds", float),
        flops=done.get("flops", float),
        parameters=environment.get("parameters", int),
        train_command=environment.get("command", str),
        evaluate_command=evaluation.get("command", str),
        stores=tuple(
            _store(store, run.path, environment.path) for store in environment.get("inputs.store", _mappings) or ()
        ),
        versions=environment.get("versions", dict) or {},
        machine=environment.get("machine", dict) or {},
        live_teacher=environment.get("inputs.teacher.name", str),
        findings=tuple(sorted(map(_finding, findings), key=lambda finding: finding["step"])),
        planned_steps=environment.get("steps", int),
        measures=read_measures(evaluation) if evaluated else Measures(),
    )


def _state(*, done: bool, loss_nats: float | None) -> State:
    if not done:
        return "unfinished"
    if loss_nats is None:
        return "not evaluated"
    return "finished" if math.isfinite(loss_nats) else "diverged"


def _finding(finding: Reader) -> dict[str, Any]:
    """What the page says of a finding; `severe` and `action` may be missing."""
    return {
        "kind": finding.need("kind", str),
        "step": finding.need("step", int),
        "severe": bool(finding.get("severe", bool)),
        "sentence": finding.need("sentence", str),
        "action": finding.get("action", str) or "warn",
    }


def _store(content: Mapping[str, Any], run: Path, file: Path) -> StoreUse:
    store = Reader(file, content)
    path = store.need("path", str)
    return StoreUse(
        path=path,
        positions=store.need("totals.positions", int),
        entries=store.need("totals.entries", int),
        bytes_by_stream=store.need("bytes_by_stream", _byte_counts),
        vocabulary=store.get("manifest.tokenizer.vocab_size", int),
        capture=_capture(path, run),
    )


def _capture(store: str, run: Path) -> Capture | None:
    """What all its workers took. A store's path is as the trainer was given it: from the directory it worked in, most
    likely one above the run."""
    for root in (Path(), *run.resolve().parents):
        if files := sorted((root / store / "costs").glob("*.json")):
            try:
                costs = [Reader(file, json.loads(file.read_text(encoding="utf-8"))) for file in files]
            except ValueError as error:
                raise RunError(f"{files[0]}: not readable as JSON ({error}). Delete it: it tells only costs.") from None
            cpu_seconds = [cost.get("cpu_seconds", float) for cost in costs]
            return Capture(
                command=costs[0].need("command", str),
                seconds=sum(cost.need("seconds", float) for cost in costs),
                cpu_seconds=sum(s for s in cpu_seconds if s is not None) if None not in cpu_seconds else None,
                tokens=sum(cost.need("tokens", int) for cost in costs),
            )
    return None


def _mappings(value: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    if not isinstance(value, list) or not all(isinstance(item, Mapping) for item in value):
        raise TypeError
    return list(value)


def _fingerprints(value: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    return tuple(str(corpus["fingerprint"]) for corpus in _mappings(value))


def _samples(value: Sequence[Mapping[str, Any]]) -> tuple[tuple[str, str], ...]:
    return tuple((str(sample["prompt"]), str(sample["text"])) for sample in _mappings(value))


def _byte_counts(value: Mapping[str, Any]) -> dict[str, int]:
    return {str(stream): int(count) for stream, count in value.items()}
