"""predistill train: a student from a recipe, LM alone or taught; resumes where it was, bit for bit."""

from __future__ import annotations

import math
import signal
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from predistill.errors import RunError, Stopped
from predistill.evaluation.heldout import heldout_loss
from predistill.recipe import Recipe
from predistill.runs import Metrics, Run
from predistill.stages.batches import Batches
from predistill.stages.inputs import Inputs, open_inputs, pick_device
from predistill.stages.teaching import observer, target_log
from predistill.students.build import build_student, load_model
from predistill.students.card import model_card
from predistill.students.export import export_student
from predistill.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from predistill.training.optim import adamw, set_lr
from predistill.training.step import StepResult, train_step

__all__ = ["train"]

HELDOUT_ROWS = 64  # of the cadence in training; `predistill evaluate` measures the whole split

Record = Mapping[str, Any]


def train(recipe: Recipe, *, out: str | Path, on_record: Callable[[Record], None] | None = None) -> Run:
    """Train the student of `recipe` in run directory `out`, or go on with it; a finished run is left alone.

    `on_record` sees every line of metrics.jsonl. Raises Stopped, with all saved, after SIGTERM or SIGINT.
    """
    inputs = open_inputs(recipe)
    run = Run.open(out, recipe=recipe.resolved(), environment=inputs.environment(recipe))
    if run.done is not None:
        return run
    device = pick_device()
    model = _student(recipe, inputs, device)
    optimizer = adamw(model, betas=recipe.optimizer.betas, weight_decay=recipe.optimizer.weight_decay)
    clock, logged = _resume(run, model, optimizer)
    batches = Batches(recipe, inputs, device)
    with (
        batches,
        target_log(recipe, inputs, run, logged) as log,
        _metrics(run, clock, on_record) as write,
        _stop_requested() as stop_requested,
    ):
        for step in range(clock.step, recipe.steps):
            alpha = recipe.alpha(step + 0.5, recipe.steps) if recipe.taught else 0.0
            lr = recipe.lr(step + 0.5, recipe.steps)  # the middle of the step: neither end of a schedule is lost
            set_lr(optimizer, lr)
            waited, read = batches.stall_seconds, batches.reader_cpu_seconds
            with clock:
                result = train_step(
                    model, optimizer, batches.window(step), objective=batches.objective, alpha=alpha,
                    clip=recipe.optimizer.clip, end_id=batches.end_id, autocast=batches.autocast,
                    observe=observer(log, step),
                )  # fmt: skip
            clock.cpu_seconds += batches.reader_cpu_seconds - read
            stall_s = batches.stall_seconds - waited
            record = _step_record(result, clock, batches.tokens(clock.step), alpha=alpha, lr=lr, run=run)
            write({**record, "stall_s": round(stall_s, 4)})
            if _due(clock.step, recipe.every(recipe.evaluate_every), recipe.steps):
                loss = heldout_loss(model, inputs.heldout, rows=HELDOUT_ROWS)
                write({"kind": "heldout", "step": clock.step, "tokens": batches.tokens(clock.step), "loss_nats": loss})
            stopping = stop_requested()
            if stopping or _due(clock.step, recipe.every(recipe.checkpoint_every), recipe.steps):
                write.sync()
                _save(run, model, optimizer, clock, keep=recipe.keep, logged=None if log is None else log.state())
            if stopping and clock.step < recipe.steps:
                raise Stopped(
                    f"{run.path}: stopped at step {clock.step} of {recipe.steps}, saved. Run it again to go on."
                )
        if log is not None:
            log.seal()
    return _finish(run, model, inputs, clock)


@dataclass
class _Clock:
    """Where the run is, and what its steps have cost over every time it was resumed; `with clock:` is one step."""

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def __exit__(self, *failure: object) -> None:
        if failure[0] is None:
            self.step += 1
        self.seconds += time.perf_counter() - self._started[0]
        self.cpu_seconds += time.process_time() - self._started[1]


class _Writer:
    """Writes a record to metrics.jsonl, and shows it to whoever watches."""

    def __init__(self, metrics: Metrics, on_record: Callable[[Record], None] | None) -> None:
        self._metrics, self._on_record = metrics, on_record
        self.sync = metrics.sync

    def __call__(self, record: Record) -> None:
        self._metrics.write(record)
        if self._on_record is not None:
            self._on_record(record)


@contextmanager
def _metrics(run: Run, clock: _Clock, on_record: Callable[[Record], None] | None) -> Iterator[_Writer]:
    metrics = Metrics(run, resume_step=clock.step)
    try:
        yield _Writer(metrics, on_record)
    finally:
        metrics.close()


@contextmanager
def _stop_requested() -> Iterator[Callable[[], bool]]:
    """SIGTERM and SIGINT ask for a stop after the step in hand; a second SIGINT interrupts at once."""
    asked: list[int] = []

    def ask(number: int, _frame: object) -> None:
        asked.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        old = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)}
    except ValueError:  # not the main thread: whoever runs us there has its own way to stop
        old = {}
    try:
        yield lambda: bool(asked)
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def _student(recipe: Recipe, inputs: Inputs, device: torch.device) -> PreTrainedModel:
    if recipe.student.from_ is None:
        model = build_student(inputs.config, seed=recipe.seed, device=device)
    else:
        start = Path(recipe.student.from_)
        model = load_model(start / "model" if (start / "recipe.yaml").exists() else start, device=device)
    model.train()
    return model


def _resume(run: Run, model: PreTrainedModel, optimizer: torch.optim.Optimizer) -> tuple[_Clock, dict[str, Any] | None]:
    """Where the run's newest whole checkpoint is, and what its log of targets had then."""
    path, damaged = latest_checkpoint(run.path / "checkpoints")
    for sentence in damaged:
        print(sentence, file=sys.stderr)  # stdout may be one JSON object
    if path is None:
        return _Clock(), None
    state = load_checkpoint(path, device=model.device)
    model.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return _Clock(**state["clock"]), state.get("logged")


def _save(
    run: Run,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    clock: _Clock,
    *,
    keep: int,
    logged: dict[str, Any] | None,
) -> None:
    counters = {"step": clock.step, "seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds}
    state = {
        "model": model.state_dict(), "optimizer": optimizer.state_dict(), "clock": counters, "logged": logged,
    }  # fmt: skip
    save_checkpoint(run.path / "checkpoints", step=clock.step, state=state, keep=keep)


def _step_record(
    result: StepResult, clock: _Clock, tokens: int, *, alpha: float, lr: float, run: Run
) -> dict[str, Any]:
    """The line of metrics.jsonl for one step: means over counted labels, kd and kl over taught positions."""
    count, kd_count = max(result.count, 1), max(result.kd_count, 1)
    if not math.isfinite(result.total) or not math.isfinite(result.grad_norm):
        raise RunError(
            f"{run.path}: not finite at step {clock.step} (loss {result.total / count:.4g}, gradient norm "
            f"{result.grad_norm:.4g}). The last checkpoint is untouched; lower lr.peak, or set optimizer.clip."
        )
    return {
        "kind": "step",
        "step": clock.step,
        "tokens": tokens,
        "loss": result.total / count,
        "lm": result.lm / count,
        "kd": result.kd / kd_count if result.kd_count else None,
        "kl": result.kl / kd_count if result.kd_count else None,
        "alpha": alpha,
        "lr": lr,
        "grad_norm": result.grad_norm,
        "seconds": round(clock.seconds, 3),
        "tokens_per_s": round(tokens / clock.seconds, 1),
    }


def _due(step: int, every: int | None, steps: int) -> bool:
    return step == steps or (every is not None and step % every == 0)


def _finish(run: Run, model: PreTrainedModel, inputs: Inputs, clock: _Clock) -> Run:
    export_student(
        model,
        out=run.model_path,
        tokenizer=inputs.corpora[0].tokenizer_path.parent,
        card=model_card(run.recipe, run.environment),
    )
    environment = run.environment
    stall_seconds = sum(line.get("stall_s", 0.0) for line in run.metrics() if line["kind"] == "step")
    run.write_json(
        "DONE",
        {
            "seconds": clock.seconds,
            "cpu_seconds": clock.cpu_seconds,
            "stall_seconds": stall_seconds,
            "stall_share": stall_seconds / clock.seconds,
            "tokens": environment["tokens"],
            "flops": environment["flops"],
            "model": "model",
        },
    )
    return run
