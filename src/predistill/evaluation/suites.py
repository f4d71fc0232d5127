"""The tasks that are known here: what each reads and asks (tasks/*.yaml), which make a suite, and how a person names
them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, TypeAdapter
from pydantic.dataclasses import dataclass as checked

from predistill.errors import RecipeError, did_you_mean

__all__ = ["SUITES", "Hub", "Rows", "Task", "chosen_tasks", "task_names"]

# The eight of the paper (section 3), with its shots; and five more that a small base model can be told apart by.
PAPER8 = ("hellaswag", "winogrande", "piqa", "mmlu", "kbqa", "c3", "ceval", "gsm8k")
SUITES = {"paper8": PAPER8, "wide13": (*PAPER8, "arc_easy", "boolq", "openbookqa", "lambada", "blimp")}

# What a field of a row may hold: a text (blank: with "_" in it), a list of texts (two or four of them), which of
# `choices` is right, 0 or 1.
Kind = Literal["text", "blank", "texts", "two", "four", "choice", "truth"]
_KNOWN = ConfigDict(extra="forbid")


@checked(frozen=True, config=_KNOWN)
class Rows:
    """Files of a task by the beginning of their name, one JSON object a row, and what each object holds.

    `shots`: where examples come from. `group`: the field whose rows have examples of their own. `distinct`: the field
    in which no two examples are alike.
    """

    file: str
    form: dict[str, Kind]
    shots: str | None = None
    group: str | None = None
    distinct: str | None = None


@checked(frozen=True, config=_KNOWN)
class Hub:
    """The same rows as a data set of the Hub. `name`: its configuration; "each": all of them, one a group."""

    path: str
    split: str
    name: str | None = None
    shots: str | None = None


@dataclass(frozen=True)
class Task:
    """A task: where its rows are, and how lm-eval asks for them (`asks`: keys of its task files)."""

    name: str
    rows: Rows
    hub: Hub
    metrics: tuple[str | Mapping[str, Any], ...]
    shots: int
    notes: tuple[str, ...]
    asks: Mapping[str, Any]

    @property
    def version(self) -> float:
        """Changes when the words of a prompt or the way of scoring do: other versions are not compared."""
        return float(self.asks["metadata"]["version"])

    @property
    def metric_names(self) -> tuple[str, ...]:
        """What is measured, as lm-eval names it."""
        return tuple(metric if isinstance(metric, str) else str(metric["metric"]) for metric in self.metrics)

    @property
    def headline(self) -> str:
        """The metric that counts in a suite's mean: length-normalised accuracy where the task has one."""
        return "acc_norm" if "acc_norm" in self.metric_names else self.metric_names[0]


def task_names() -> list[str]:
    """Every task known here."""
    return sorted(file.name.removesuffix(".yaml") for file in _folder().iterdir() if file.name.endswith(".yaml"))


def chosen_tasks(words: str) -> list[Task]:
    """The tasks of `words`: names and suites with commas between them; NAME:3 gives a task three examples.

    Raises RecipeError for a name that is neither.
    """
    tasks: dict[str, Task] = {}
    for word in filter(None, (word.strip() for word in words.split(","))):
        name, colon, shots = word.partition(":")
        for member in SUITES.get(name, (name,)):
            task = _task(member)
            if colon:
                task = replace(task, shots=_count(word, shots))
            tasks[member] = task
    if not tasks:
        raise RecipeError(f'--tasks "{words}": names no task. One of heldout, {", ".join(SUITES)}, or a task\'s name.')
    return list(tasks.values())


def _task(name: str) -> Task:
    if name not in task_names():
        hint = did_you_mean(name, [*SUITES, *task_names()]) or "."
        raise RecipeError(
            f'--tasks: no task "{name}"{hint} Suites: heldout, {", ".join(SUITES)}; tasks: {", ".join(task_names())}.'
        )
    return _read(name)


@cache
def _read(name: str) -> Task:
    content = yaml.safe_load((_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
    return Task(
        name=name,
        rows=TypeAdapter(Rows).validate_python(content.pop("rows")),
        hub=TypeAdapter(Hub).validate_python(content.pop("hub")),
        metrics=tuple(content.pop("metrics")),
        shots=int(content.pop("num_fewshot")),
        notes=tuple(content.pop("notes", ())),
        asks=content,
    )


def _count(word: str, shots: str) -> int:
    if not shots.isdecimal():
        raise RecipeError(f'--tasks "{word}": after the colon stands how many examples to give, such as mmlu:5.')
    return int(shots)


def _folder() -> Any:
    return resources.files("predistill.evaluation") / "tasks"
