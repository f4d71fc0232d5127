"""The words and the table of the tasks: how much more a distilled student answers, and whether the rows can tell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from predistill.report.gains import Gain
from predistill.report.numbers import in_words, nats, percent, signed, signed_percent
from predistill.report.tasks import Score, SuiteScore, Tasks

__all__ = ["example_prompts", "task_rows", "task_words"]

_MOST_CHARS = 600  # of a prompt, or of what was written, that are shown


def task_words(tasks: Tasks, found: Sequence[Gain]) -> list[str]:
    """A sentence a suite, of the recipe that gained most in held-out loss: not of the one that is best on the tasks,
    which would be picked after the fact."""
    sentences = []
    for suite, members in tasks.suites.items():
        for gain in found:
            score = tasks.means.get((suite, gain.group.label))
            if score is not None and score.change is not None:
                sentences.append(_compared(suite, members, gain, score, tasks))
                break
    if sentences and len(found) > 1:
        sentences.append(
            f"Of the {in_words(len(found))} distilled recipes this is the one whose held-out loss gained most, whether "
            "or not it is the best here."
        )
    return sentences


def _compared(suite: str, members: Sequence[str], gain: Gain, score: SuiteScore, tasks: Tasks) -> str:
    assert score.change is not None
    assert score.ours is not None
    assert score.theirs is not None
    change, (low, high) = score.change.change, score.change.interval
    rows = [tasks.first[name].n for name in members]
    these = f"{rows[0]:,} rows a task" if len(set(rows)) == 1 else f"the {sum(rows):,} rows of these tasks"
    side = "more" if change >= 0 else "less"
    verdict = f"a difference that {these} can show" if low > 0 or high < 0 else f"no difference that {these} could show"
    seeds = f", {in_words(len(gain.pairs))} seeds each" if len(gain.pairs) > 1 else ""
    return (
        f"Over the {in_words(len(members))} tasks of {suite}, {gain.group.label} has {percent(score.ours)} right and "
        f"its baseline {percent(score.theirs)}{seeds}: {percent(abs(change))} {side} "
        f"({percent(0.95, 0)} interval from {signed_percent(low)} to {signed_percent(high)}): {verdict}."
    )


def task_rows(tasks: Tasks) -> list[dict[str, Any]]:
    """The table, a task a row, suites first: a cell a recipe, its score and its error; below it the difference."""
    rows = []
    for suite, members in tasks.suites.items():
        cells = [_suite_cell(tasks.means.get((suite, group.label))) for group in tasks.groups]
        about = f"mean of {in_words(len(members))}"
        rows.append({"name": suite, "about": about, "of": "", "suite": True, "cells": cells})
    for name in tasks.names:
        first = tasks.first[name]
        of = f"{first.of:,}" if first.of is not None and first.of != first.n else ""
        about = f"{first.headline}, {first.shots}\N{NON-BREAKING HYPHEN}shot, {first.n:,} rows"
        cells = [_cell(tasks.scores.get((name, group.label))) for group in tasks.groups]
        rows.append({"name": name, "about": about, "of": of, "suite": False, "cells": cells})
    return rows


def _cell(score: Score | None) -> dict[str, str] | None:
    if score is None:
        return None
    against = score.against
    return {
        "value": nats(100 * score.value, 1),
        "error": "" if score.stderr is None else f"±{100 * score.stderr:.1f}",
        "change": "" if against is None else _interval(against.difference, against.interval, ""),
    }


def _suite_cell(score: SuiteScore | None) -> dict[str, str] | None:
    if score is None:
        return None
    return {
        "value": nats(100 * score.mean, 1),
        "error": "" if score.stderr is None else f"±{100 * score.stderr:.1f}",
        "change": "" if score.change is None else _interval(score.change.change, score.change.interval, "%"),
    }


def _interval(middle: float, bounds: tuple[float, float], unit: str) -> str:
    low, high = (signed(100 * bound, 1) for bound in bounds)
    shown = signed_percent(middle) if unit else signed(100 * middle, 1)
    return f"{shown} [{low}, {high}]"


def example_prompts(tasks: Tasks) -> list[dict[str, Any]]:
    """One prompt a task with its choices, and each recipe's score for each choice, by its first seed."""
    shown = []
    for name in tasks.names:
        first = tasks.first[name]
        if first.example is None:
            continue
        answers = []
        for group in tasks.groups:
            results = (record.measures.tasks.get(name) for record in group.records)
            result = next((r for r in results if r is not None and r.asked == first.asked and r.example), None)
            if result is not None and result.example is not None and result.example.prompt == first.example.prompt:
                answers.append((group, result.example))
        shown.append(
            {
                "task": name,
                "prompt": _end(first.example.prompt),
                "answer": first.example.answer,
                "labels": [group.short for group, _ in answers],
                "choices": [
                    {
                        "text": choice.strip() or "(the end)",
                        "right": _is_right(first.example.answer, i, choice),
                        "scores": [
                            nats(example.scores[i], 1) if i < len(example.scores) else "–" for _, example in answers
                        ],
                    }
                    for i, choice in enumerate(first.example.choices)
                ],
                "written": [
                    (group.label, _beginning(example.written))
                    for group, example in answers
                    if example.written is not None
                ],
            }
        )
    return shown


def _end(text: str) -> str:
    """What was last read: the question itself, after examples."""
    return text if len(text) <= _MOST_CHARS else f"…{text[-_MOST_CHARS:]}"


def _beginning(text: str) -> str:
    """What was written first; a small student may go on with nothing but empty lines."""
    text = re.sub(r"\s*\n\s*\n\s*", "\n\n", text.strip())
    return (text if len(text) <= _MOST_CHARS else f"{text[:_MOST_CHARS]}…") or "(nothing)"


def _is_right(answer: tuple[int, ...] | str, number: int, choice: str) -> bool:
    return number in answer if isinstance(answer, tuple) else answer.strip() == choice.strip()
