"""What students know: scores on tasks with their errors, and distilled against plain ones on the same rows.

A recipe's score is the mean of its seeds', and the error is that of the rows: each row counts with the share of seeds
that were right. Two recipes are compared row by row, seed by seed, where they answered the same rows, asked and scored
in the same way; otherwise not at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np
import numpy.typing as npt

from predistill.evaluation.paired import Change, Paired, paired, relative_change, standard_error
from predistill.evaluation.scores import cut_words
from predistill.report.gains import Gain
from predistill.report.measures import TaskResult
from predistill.report.records import Record
from predistill.report.table import Group, Pair

__all__ = ["Score", "SuiteScore", "Tasks", "task_scores"]

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Score:
    """A recipe on a task: a share with its standard error; against its baseline, where that is known."""

    value: float
    stderr: float | None
    n: int
    seeds: int
    against: Paired | None


@dataclass(frozen=True)
class SuiteScore:
    """A recipe on a suite: the unweighted mean over its tasks; `theirs` and `change` are of its baseline on the same
    rows."""

    mean: float
    stderr: float | None
    seeds: int
    theirs: float | None
    ours: float | None
    change: Change | None


@dataclass(frozen=True)
class Tasks:
    """Every task that any run answered, every suite that any run names; scores by (task or suite, recipe)."""

    names: tuple[str, ...]
    suites: dict[str, tuple[str, ...]]
    groups: tuple[Group, ...]
    first: dict[str, TaskResult]
    scores: dict[tuple[str, str], Score]
    means: dict[tuple[str, str], SuiteScore]
    notes: tuple[str, ...]


def task_scores(groups: Sequence[Group], found: Sequence[Gain]) -> Tasks | None:
    """None where no run has answered a task. What a task's score is of, is what the first run was asked."""
    records = [record for group in groups for record in group.records if record.measures.tasks]
    if not records:
        return None
    first: dict[str, TaskResult] = {}
    suites: dict[str, tuple[str, ...]] = {}
    for record in records:
        for name, result in record.measures.tasks.items():
            first.setdefault(name, result)
        for suite, members in record.measures.suites.items():
            suites.setdefault(suite, members)
    pairs = {gain.group.label: gain.pairs for gain in found}
    scores, means, left_out = {}, {}, []
    having = [group for group in groups if any(record.measures.tasks for record in group.records)]
    for group in having:
        for name in first:
            results = _asked_alike(group, name, first[name])
            left_out += _left_out(group, name, len(results))
            if results:
                scores[name, group.label] = _score(results, _sides(pairs.get(group.label, ()), name))
        for suite, members in suites.items():
            if all((name, group.label) in scores for name in members):
                ours = [scores[name, group.label] for name in members]
                sides = [_sides(pairs.get(group.label, ()), name) for name in members]
                means[suite, group.label] = _mean(ours, sides)
    return Tasks(
        names=tuple(_in_order(first, suites)),
        suites=suites,
        groups=tuple(having),
        first=first,
        scores=scores,
        means=means,
        notes=tuple(dict.fromkeys([*_notes(records), *_cut(records), *left_out])),
    )


def _asked_alike(group: Group, name: str, first: TaskResult) -> list[TaskResult]:
    """The seeds' results that are of what the first run was asked."""
    results = [record.measures.tasks[name] for record in group.records if name in record.measures.tasks]
    return [result for result in results if result.asked == first.asked and result.n == first.n]


def _left_out(group: Group, name: str, kept: int) -> list[str]:
    number = sum(name in record.measures.tasks for record in group.records) - kept
    if not number:
        return []
    runs, are, were = ("run", "is", "was") if number == 1 else ("runs", "are", "were")
    return [
        f"{name}: {number} {runs} of {group.label} {were} asked otherwise than the first run here, and {are} left out."
    ]


def _score(results: Sequence[TaskResult], sides: tuple[Scores, Scores] | None) -> Score:
    rows = [result.scores for result in results]
    known = [row for row in rows if row is not None]
    error = standard_error(np.mean(known, axis=0)) if len(known) == len(rows) else None
    return Score(
        value=fmean(result.value for result in results),
        stderr=results[0].stderr if len(results) == 1 else error,
        n=results[0].n,
        seeds=len(results),
        against=None if sides is None else paired(*sides),
    )


def _mean(ours: Sequence[Score], sides: Sequence[tuple[Scores, Scores] | None]) -> SuiteScore:
    errors = [score.stderr for score in ours]
    known = [error for error in errors if error is not None]
    both = [side for side in sides if side is not None]
    whole = len(both) == len(sides)
    return SuiteScore(
        mean=fmean(score.value for score in ours),
        stderr=math.sqrt(sum(error**2 for error in known)) / len(ours) if len(known) == len(errors) else None,
        seeds=min(score.seeds for score in ours),
        ours=fmean(float(side[0].mean()) for side in both) if whole else None,
        theirs=fmean(float(side[1].mean()) for side in both) if whole else None,
        change=relative_change(both) if whole else None,
    )


def _sides(pairs: Sequence[Pair], name: str) -> tuple[Scores, Scores] | None:
    """Row by row, the share of seeds that were right: distilled, and baselines. None unless all answered alike."""
    ours, theirs = [], []
    asked = set()
    for pair in pairs:
        both = [record.measures.tasks.get(name) for record in (pair.distilled, pair.baseline)]
        results = [result for result in both if result is not None and result.rows is not None]
        scores = [result.scores for result in results if result.scores is not None]
        asked |= {result.asked for result in results}
        if len(scores) < 2 or len(asked) > 1 or len(scores[0]) != len(scores[1]):
            return None
        ours.append(scores[0])
        theirs.append(scores[1])
    return (np.mean(ours, axis=0), np.mean(theirs, axis=0)) if ours else None


def _notes(records: Iterable[Record]) -> list[str]:
    """What a reader has to know of each task, its name before it."""
    return [
        note if note.startswith(f"{name}:") else f"{name}: {note}"
        for record in records
        for name, result in record.measures.tasks.items()
        for note in result.notes
    ]


def _cut(records: Sequence[Record]) -> list[str]:
    """A sentence a context, on the prompts that did not fit into it; the tasks of the last run that has it."""
    contexts: dict[int, dict[str, tuple[int, int]]] = {}
    for record in records:
        for name, result in record.measures.tasks.items():
            if result.cut and result.context is not None:
                contexts.setdefault(result.context, {})[name] = (result.cut, result.n)
    return [cut_words(cut, context) for context, cut in contexts.items()]


def _in_order(names: Iterable[str], suites: dict[str, tuple[str, ...]]) -> list[str]:
    """As the suites have them, then the others as they were measured."""
    known = set(names)
    return list(dict.fromkeys([name for members in suites.values() for name in members if name in known] + list(names)))
