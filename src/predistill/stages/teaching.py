"""Who teaches a run, and what the run teaches others: its teachers, one a corpus, and the log of its own targets."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from predistill.fingerprint import settings_fingerprint
from predistill.objective import Full, Sampled, Static
from predistill.objective.combine import needs_all
from predistill.objective.temperature import WTTM
from predistill.recipe import FREE, LiveTeaching, LogTargets, Recipe, StoredTeaching
from predistill.runs import Run
from predistill.stages.inputs import Inputs
from predistill.students.forward import Head
from predistill.teachers import Teacher
from predistill.teachers.live import LiveTeacher
from predistill.teachers.load import DTYPES, load_teacher
from predistill.teachers.logged import TargetLog, check_free, log_facts
from predistill.teachers.stored import StoredTeacher
from predistill.training.step import MicroBatch, Observer
from predistill.world import World

__all__ = ["check_log", "observer", "target_log", "teachers_of"]


def teachers_of(recipe: Recipe, inputs: Inputs, device: torch.device) -> list[Teacher | None]:
    """A teacher for each corpus, in the recipe's order (None: it has no store); none where the student learns from the
    text alone.

    Raises TeacherError for a live teacher that cannot be loaded.
    """
    if isinstance(recipe.teacher, StoredTeaching):
        needs = (*recipe.temperature.needs, *recipe.positions.needs)
        return [
            None if store is None else StoredTeacher(store, truncation=recipe.truncation, device=device, needs=needs)
            for store in inputs.stores
        ]
    if not isinstance(recipe.teacher, LiveTeaching):
        return []
    first = inputs.corpora[0]
    model = load_teacher(
        recipe.teacher.model, vocab_size=first.vocab_size, device=device, dtype=DTYPES[recipe.teacher.dtype]
    )
    live = LiveTeacher(
        model,
        truncation=recipe.truncation,
        vocab_size=first.vocab_size,
        end_id=first.end_id if first.document_mask else None,
        tau=tempered(recipe),
    )
    return [live] * len(inputs.corpora)


def tempered(recipe: Recipe) -> float | None:
    """The temperature whose log-sum-exp over the whole vocabulary the tail needs beside truncated targets."""
    if isinstance(recipe.truncation, Full | Sampled) or not needs_all(recipe.tail, recipe.temperature):
        return None
    return recipe.temperature.value if isinstance(recipe.temperature, Static | WTTM) else None


def target_log(
    recipe: Recipe, inputs: Inputs, run: Run, state: dict[str, Any] | None, world: World
) -> AbstractContextManager[TargetLog | None]:
    """The log that recipe.log_targets asks for, going on where `state` of the run's checkpoint says; else None.

    Raises StoreError when the store is another's.
    """
    log = recipe.log_targets
    if log is None:
        return nullcontext()
    return TargetLog(
        log.out,
        corpus=inputs.corpora[0],
        truncation=log.truncation,
        steps=recipe.logged_steps,
        rows=log.rows,
        facts=_log_facts(recipe, log, inputs, run.environment["identity"]),
        state=state,
        world=world,
    )


def check_log(recipe: Recipe, inputs: Inputs, identity: dict[str, Any]) -> None:
    """Raises StoreError where the store that a new run is to write is another's."""
    if recipe.log_targets is not None:
        check_free(recipe.log_targets.out, _log_facts(recipe, recipe.log_targets, inputs, identity))


def _log_facts(recipe: Recipe, log: LogTargets, inputs: Inputs, identity: dict[str, Any]) -> dict[str, Any]:
    """What names the run in its store's manifest: equal when it goes on, with other FREE keys too."""
    learned = {key: value for key, value in recipe.resolved().items() if key not in FREE}
    fingerprint = settings_fingerprint([learned, identity])
    made_by = {
        "name": recipe.name,
        "sha256": [],
        "dtype": recipe.precision,
        "logged": {"recipe": fingerprint, "from_frac": log.from_frac, "to_frac": log.to_frac, "rows": log.rows},
    }
    return log_facts(inputs.corpora[0], log.truncation, made_by=made_by)


def observer(log: TargetLog | None, step: int) -> Observer | None:
    """What the forward pass of `step` (from 0) is shown to; None where nothing is to be logged."""
    if log is None or not log.wants(step):
        return None

    def observe(batch: MicroBatch, head: Head, hidden_BTD: torch.Tensor) -> None:
        assert batch.rows_B is not None
        log.add(batch.rows_B, batch.ids_BT1, head=head, hidden_BTD=hidden_BTD)

    return observe
