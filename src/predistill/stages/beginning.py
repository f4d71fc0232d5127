"""How a training run begins: its directory, held by one command at a time, and its student, laid over the processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from predistill.errors import RecipeError, RunError
from predistill.lock import Lock
from predistill.recipe import FREE, Recipe
from predistill.runs import Run, remove_run
from predistill.stages.inputs import Inputs, start_path
from predistill.stages.teaching import check_log
from predistill.students.build import build_student, load_model
from predistill.students.check import check_student
from predistill.students.presets import PRESETS
from predistill.training.parallel import parallelised, whole_weights
from predistill.training.student import Student
from predistill.world import World

__all__ = ["run_opened", "student_of", "whole_model"]

LOCK = "train.lock"


@contextmanager
def run_opened(
    recipe: Recipe, inputs: Inputs, world: World, out: Path, *, overwrite: bool, force: bool
) -> Iterator[Run]:
    """The run directory, made, or taken up where there is one; held until the end, so that nobody else writes there.

    Whatever is refused is refused before anything is written. Every process enters; the first one writes and holds.
    """
    if overwrite and world.size > 1:
        raise RecipeError(
            "--overwrite does not go with torchrun, whose restarts would delete what they are to go on with. Delete "
            f"{out} first."
        )
    with ExitStack() as held:
        yield Run(world.of_first(lambda: _opened(recipe, inputs, out, held, overwrite=overwrite, force=force)))


def student_of(recipe: Recipe, inputs: Inputs, world: World) -> Student:
    """The recipe's student, laid over the world; every process builds it whole first, with the same weights."""
    where = torch.device("cpu") if world.size > 1 else world.device  # sharding moves it, block by block
    model = _begun(recipe, inputs, where).train()
    bf16 = recipe.precision == "bf16"
    student = Student(model, end_id=inputs.masked_by, bf16=bf16)
    return parallelised(
        student,
        world,
        shard=recipe.shard,
        bf16=bf16,
        activation_checkpointing=recipe.activation_checkpointing,
        compiled=recipe.compile,
    )


def whole_model(student: Student, inputs: Inputs, world: World) -> PreTrainedModel | None:
    """The model with all its weights, on the first process; None on the others, who take part."""
    if world.size == 1:
        return student.model
    weights = whole_weights(student.model, world)
    if not world.first:
        return None
    model = build_student(inputs.config, seed=0, device=torch.device("cpu"))
    model.load_state_dict(weights)
    return model


def _opened(recipe: Recipe, inputs: Inputs, out: Path, held: ExitStack, *, overwrite: bool, force: bool) -> Path:
    environment = inputs.environment(recipe)
    if overwrite or not (out / "recipe.yaml").exists():
        check_log(recipe, inputs, environment["identity"])
        if recipe.student.preset not in PRESETS or recipe.student.from_ is not None:
            check_student(_begun(recipe, inputs, torch.device("cpu")), end_id=inputs.masked_by)
    if (out / "recipe.yaml").exists():
        _hold(out, held)
    if overwrite:
        remove_run(out)
    run = Run.open(out, recipe=recipe.resolved(), environment=environment, free=FREE, force=force)
    if not (out / LOCK).exists():
        _hold(out, held)
    return run.path


def _hold(out: Path, held: ExitStack) -> None:
    lock = Lock.take(out / LOCK)
    if lock is None:
        raise RunError(f"{out}: another process trains here. Wait for it or stop it, or name another --out.")
    held.callback(lock.release, remove=True)


def _begun(recipe: Recipe, inputs: Inputs, device: torch.device) -> PreTrainedModel:
    """The student before its first step."""
    if recipe.student.from_ is None:
        return build_student(inputs.config, seed=recipe.seed, device=device)
    return load_model(start_path(recipe.student.from_), device=device)
