"""The rows of a task: from files of JSON lines, each row checked against the form that the task asks for, or from the
Hub where no folder is given; and which of them are asked, and which are shown as examples."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

from predistill.corpus.sources import json_records
from predistill.errors import RunError
from predistill.evaluation.hub import hub_rows
from predistill.evaluation.suites import Task
from predistill.fingerprint import file_sha256, settings_fingerprint

__all__ = ["Asked", "asked_rows"]

PLACE = "_place"  # where a row stands, for messages
PACKINGS = (".jsonl", ".jsonl.zst", ".jsonl.gz")
LISTS = {"texts": ("a list of texts", None), "two": ("a list of two texts", 2), "four": ("a list of four texts", 4)}

Row = dict[str, Any]


@dataclass(frozen=True)
class Asked:
    """What a task asks: rows, in order; of how many; where each stands; the examples of each group (None: of all); the
    files that were read."""

    rows: list[Row]
    of: int
    places: list[str]
    shots: Mapping[str | None, list[Row]]
    files: list[dict[str, str]]
    notes: list[str]

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the ids of the rows: two models are compared on the same ones."""
        return hashlib.sha256("\n".join(str(row["id"]) for row in self.rows).encode()).hexdigest()


def asked_rows(task: Task, *, data: Path | None, limit: int | None) -> Asked:
    """The rows that `task` asks with `data` as the folder of its files (None: the Hub), at most `limit`.

    Of a task with groups a limit takes rows of each in turn. Examples that a group's own file lacks are its first rows,
    which are then not asked. Raises RunError for a file that is missing or damaged, or a row that is out of form.
    """
    used: list[Path] = []
    if data is None:
        rows, shown = ([{PLACE: f"{task.hub.path} {row['id']}", **row} for row in found] for found in hub_rows(task))
    else:
        rows, shown = _read(task, task.rows.file, data, used), []
        if task.shots and task.rows.shots is not None:
            shown = _read(task, task.rows.shots, data, used)
    key = task.rows.group
    groups, examples = _grouped(rows, key), _grouped(_distinct(shown, task.rows.distinct), key)
    shots, unscored = {}, 0
    for group, members in groups.items():
        own = examples[group][: task.shots]
        lacking = task.shots - len(own)
        if lacking >= len(members):
            there = len(own) + len(members) - 1
            raise RunError(
                f"{task.name}: asked with {task.shots} examples, and there are {there} beside a row to ask"
                f"{'' if group is None else f' in {group}'}. Ask for fewer: --tasks {task.name}:{there}."
            )
        shots[group] = _without_places([*own, *members[:lacking]])
        unscored += lacking
        del members[:lacking]
    left = list(_in_turn(groups.values()) if limit is not None else (row for rows in groups.values() for row in rows))
    return Asked(
        rows=_without_places(left[:limit]),
        of=len(left),
        places=[row[PLACE] for row in left[:limit]],
        shots=shots,
        files=[{"name": path.name, "sha256": file_sha256(path)} for path in used],
        notes=_notes(task, unscored),
    )


def _read(task: Task, name: str, data: Path, used: list[Path]) -> list[Row]:
    path = _find(task.name, name, data)
    used.append(path)
    rows: list[Row] = []
    for where, record in json_records(path):
        if found := _out_of_form(record, task.rows.form):
            raise RunError(f"{path}{where}: {found}. Restore the file: the task {task.name} reads it.")
        known = {key: record[key] for key in task.rows.form}
        given = record.get("id")
        named = settings_fingerprint(known) if given is None else str(given)
        rows.append({"id": named, PLACE: f"{path}{where}", **known})
    if not rows:
        raise RunError(f"{path}: holds no row. Restore the file: the task {task.name} reads it.")
    return rows


def _without_places(rows: Iterable[Row]) -> list[Row]:
    return [{key: value for key, value in row.items() if key != PLACE} for row in rows]


def _find(task: str, name: str, data: Path) -> Path:
    """`name` with one of the endings, in `data` or in a folder of it."""
    if not data.is_dir():
        raise RunError(f"{data}: no such folder. Give --data the folder that holds the tasks' files.")
    folders = [data, *sorted(path for path in data.iterdir() if path.is_dir())]
    for folder in folders:
        for packing in PACKINGS:
            if (path := folder / f"{name}{packing}").is_file():
                return path
    raise RunError(
        f"{data}: no file {name}.jsonl (or .jsonl.zst, .jsonl.gz) here or in a folder of it, which the task {task} "
        "reads. Put it there, or leave the task out."
    )


def _out_of_form(row: Mapping[str, Any], form: Mapping[str, str]) -> str | None:
    """What is wrong with a row, in words; None: nothing."""
    for key, kind in form.items():
        if key not in row:
            return f'no field "{key}" (found: {", ".join(sorted(row))})'
        if (wanted := _wanted(row[key], kind, row)) is not None:
            return f'field "{key}" is {_shown(row[key])}, not {wanted}'
    return None


def _wanted(value: Any, kind: str, row: Mapping[str, Any]) -> str | None:
    """What `kind` wants, in words, where `value` is something else."""
    if kind in ("text", "blank"):
        if not isinstance(value, str) or not value.strip():
            return "a text"
        return None if kind == "text" or "_" in value else 'a text with "_" in the place that is asked for'
    if kind in LISTS:
        texts = isinstance(value, list) and bool(value) and all(isinstance(v, str) and v.strip() for v in value)
        wanted, size = LISTS[kind]
        return None if texts and size in (None, len(value)) else wanted
    choices = 2 if kind == "truth" else len(row["choices"])
    whole = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < choices
    return None if whole else f"a number from 0 to {choices - 1}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _grouped(rows: Iterable[Row], key: str | None) -> dict[str | None, list[Row]]:
    groups: dict[str | None, list[Row]] = defaultdict(list)
    for row in rows:
        groups[None if key is None else row[key]].append(row)
    return groups


def _distinct(rows: Sequence[Row], key: str | None) -> list[Row]:
    """The first row of each value of `key`."""
    if key is None:
        return list(rows)
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(row[key], row)
    return list(first.values())


def _in_turn(groups: Iterable[Sequence[Row]]) -> Iterable[Row]:
    """The first row of each group, then the second of each, and so on."""
    for turn in zip_longest(*groups):
        yield from (row for row in turn if row is not None)


def _notes(task: Task, unscored: int) -> list[str]:
    notes = list(task.notes)
    if unscored:
        where = f"of each {task.rows.group}" if task.rows.group else "of the file"
        notes.append(
            f"{task.name}: {task.shots} examples are asked for and fewer are given: the first rows {where} "
            f"make up for them ({unscored:,} rows), and are not scored."
        )
    return notes
