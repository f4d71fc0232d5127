"""predistill train: a student from a recipe, LM alone or taught; on one process or many; resumes where it was."""

from __future__ import annotations

import gc
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from predistill.errors import Stopped
from predistill.evaluation.heldout import heldout_in_training
from predistill.recipe import Recipe
from predistill.runs import Run
from predistill.stages.batches import Batches
from predistill.stages.beginning import run_opened, student_of, whole_model
from predistill.stages.inputs import Inputs, open_inputs, pick_device
from predistill.stages.journal import Journal, Record, RollBack
from predistill.stages.teaching import observer, target_log
from predistill.students.card import model_card
from predistill.students.export import export_student
from predistill.training.checkpoint import Checkpoints
from predistill.training.optim import adamw, set_lr
from predistill.training.step import StepResult, train_step
from predistill.training.student import Student
from predistill.world import World, joined

__all__ = ["train"]

HELDOUT_BATCH_ROWS = 16
HELDOUT_ROWS = 64  # of the cadence in training; `predistill evaluate` measures the whole split


def train(
    recipe: Recipe,
    *,
    out: str | Path,
    overwrite: bool = False,
    force: bool = False,
    on_record: Callable[[Record], None] | None = None,
) -> Run:
    """Train the student of `recipe` in run directory `out`, or go on with it; a finished run is left alone.

    Under torchrun every process calls this, and the first one writes. `overwrite`: delete the run that is there, once
    nothing is wrong with the new one. `force`: go on whatever the recipe or its inputs were before. `on_record` sees
    every line of metrics.jsonl, and what the watch finds. Raises Stopped, with all saved, after SIGTERM or SIGINT.
    """
    inputs = open_inputs(recipe)
    with (
        joined(pick_device()) as world,
        run_opened(recipe, inputs, world, Path(out), overwrite=overwrite, force=force) as run,
        _stop_requested() as stop_requested,
    ):
        done = world.share(run.done is not None)
        while not done:
            try:
                _train(recipe, inputs, run, world, stop_requested, on_record)
                done = True
            except RollBack:
                gc.collect()  # the student that is given up; go on from the checkpoint before, the newest now
    return run


def _train(
    recipe: Recipe,
    inputs: Inputs,
    run: Run,
    world: World,
    stop_requested: Callable[[], bool],
    on_record: Callable[[Record], None] | None,
) -> None:
    """From the newest checkpoint to the end."""
    with ExitStack() as opened:
        checkpoints = opened.enter_context(_checkpoints(recipe, run, world))
        newest = _newest(checkpoints, run, world)
        student = student_of(recipe, inputs, world)
        optimizer = adamw(student.model, betas=recipe.optimizer.betas, weight_decay=recipe.optimizer.weight_decay)
        clock, logged = _resume(newest, checkpoints, student, optimizer)
        checkpoints.forget(clock.step + 1)  # damaged ones, which would count as kept
        batches = opened.enter_context(Batches(recipe, inputs, world))
        log = opened.enter_context(target_log(recipe, inputs, run, logged, world))
        journal = opened.enter_context(_journal(recipe, run, world, batches, checkpoints, clock, on_record))
        micro_rows = min(HELDOUT_BATCH_ROWS, recipe.micro_batch_rows)
        for step in range(clock.step, recipe.steps):
            alpha = recipe.alpha(step + 0.5, recipe.steps) if recipe.taught else 0.0
            lr = recipe.lr(step + 0.5, recipe.steps)  # the middle of the step: neither end of a schedule is lost
            set_lr(optimizer, lr)
            world.seed(recipe.seed, step)
            waited, read = batches.stall_seconds, batches.reader_cpu_seconds
            with clock:
                result = train_step(
                    student, optimizer, batches.window(step), objective=batches.objective, alpha=alpha,
                    clip=recipe.optimizer.clip, world=world, update=step + 1 not in journal.skipped,
                    asked=stop_requested, observe=observer(log, step),
                )  # fmt: skip
            clock.own_cpu_seconds += batches.reader_cpu_seconds - read
            tokens = batches.tokens(clock.step)
            record = _step_record(result, clock, tokens, alpha=alpha, lr=lr)
            journal.write({**record, "stall_s": round(batches.stall_seconds - waited, 4)})
            if _due(clock.step, recipe.every(recipe.evaluate_every), recipe.steps):
                for path, corpus in inputs.heldout.items():
                    if measured := heldout_in_training(
                        student, corpus, rows=HELDOUT_ROWS, world=world, batch_rows=micro_rows
                    ):
                        which = {"kind": "heldout", "step": clock.step, "tokens": tokens, "corpus": path}
                        journal.write({**which, **measured})
            stopping = result.asked > 0
            if stopping or _due(clock.step, recipe.every(recipe.checkpoint_every), recipe.steps):
                journal.sync()
                clock.add_up(world)
                facts = {"clock": asdict(clock), "logged": None if log is None else log.state()}
                checkpoints.save(student, optimizer, facts, step=clock.step)
            if stopping and clock.step < recipe.steps:
                checkpoints.wait()
                raise Stopped(
                    f"{run.path}: stopped at step {clock.step} of {recipe.steps}, saved. Run it again to go on."
                )
        if log is not None:
            log.seal()
    _finish(inputs, run, world, student, clock)


@dataclass
class _Clock:
    """Where the run is, and what its steps have cost over every time it was resumed; `with clock:` is one step."""

    step: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0  # of all processes, as of the last `add_up`
    own_cpu_seconds: float = 0.0  # of this one, since

    def add_up(self, world: World) -> None:
        """Put the CPU time of all processes together; all of them call it."""
        own = torch.tensor(self.own_cpu_seconds, dtype=torch.float64, device=world.device)
        self.cpu_seconds, self.own_cpu_seconds = self.cpu_seconds + float(world.sum_(own)), 0.0

    def __enter__(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def __exit__(self, *failure: object) -> None:
        if failure[0] is None:
            self.step += 1
        self.seconds += time.perf_counter() - self._started[0]
        self.own_cpu_seconds += time.process_time() - self._started[1]


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


def _checkpoints(recipe: Recipe, run: Run, world: World) -> Checkpoints:
    kept = recipe.every(recipe.keep_every)
    return Checkpoints(run.path / "checkpoints", world, keep=recipe.keep, keep_steps=kept)


def _journal(
    recipe: Recipe,
    run: Run,
    world: World,
    batches: Batches,
    checkpoints: Checkpoints,
    clock: _Clock,
    on_record: Callable[[Record], None] | None,
) -> Journal:
    return Journal(
        run,
        world,
        choice=recipe.watch,
        steps=recipe.steps,
        taught=recipe.taught,
        corpora=[entry.path for entry in recipe.corpus],
        resume_step=clock.step,
        keep_batch=lambda step: batches.keep(step, run.path / "batches"),
        forget=checkpoints.forget,
        on_record=on_record,
    )


def _newest(checkpoints: Checkpoints, run: Run, world: World) -> Path | None:
    """The run's newest whole checkpoint; what was passed over, and what is lost, is said."""
    path, sentences = checkpoints.newest()
    if path is None and world.first and run.metrics():
        sentences = [f"{run.path}: was ended before its first checkpoint; begins anew."]
    for sentence in sentences if world.first else ():
        print(sentence, file=sys.stderr)  # stdout may be one JSON object
    return path


def _resume(
    newest: Path | None, checkpoints: Checkpoints, student: Student, optimizer: torch.optim.Optimizer
) -> tuple[_Clock, dict[str, Any] | None]:
    """Where the run was at its newest checkpoint, and what its log of targets had then."""
    if newest is None:
        return _Clock(), None
    facts = checkpoints.load(newest, student, optimizer)
    return _Clock(**facts["clock"]), facts["logged"]


def _step_record(result: StepResult, clock: _Clock, tokens: int, *, alpha: float, lr: float) -> dict[str, Any]:
    """The line of metrics.jsonl for one step: means over counted labels, kd and kl over taught positions."""
    count, kd_count = max(result.count, 1), max(result.kd_count, 1)
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
        **({} if result.updated else {"skipped": True}),
    }


def _due(step: int, every: int | None, steps: int) -> bool:
    return step == steps or (every is not None and step % every == 0)


def _finish(inputs: Inputs, run: Run, world: World, student: Student, clock: _Clock) -> None:
    model = whole_model(student, inputs, world)
    if model is None:
        return
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
