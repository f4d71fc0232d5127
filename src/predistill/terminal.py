"""What the command line shows: long work on a terminal (a bar with rate and time left) and in a log (a plain line now
and then), and results."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["progress", "show", "table"]

LINE_SECONDS = 15.0

Advance = Callable[..., None]


@contextmanager
def progress(title: str, *, unit: str, scale: int = 1, quiet: bool = False) -> Iterator[Advance]:
    """Yields `advance(done, total, note="")`; the rate is shown in `unit` a second, `scale` units to one of `done`.

    On a terminal a bar, elsewhere a line at most every 15 seconds; nothing when `quiet`.
    """
    console = Console(stderr=True)
    if quiet:
        yield _silent
    elif console.is_terminal:
        with _bar(console) as bar:
            task = bar.add_task(title, total=None, note="")
            first: list[tuple[float, int]] = []

            def advance(done: int, total: int, note: str = "") -> None:
                first.append((time.monotonic(), done)) if not first else None
                text = f"{_rate(first[0], done, scale)} {unit}/s  {note}"
                bar.update(task, completed=done, total=total, note=text)

            yield advance
    else:
        yield _plain_lines(console, title, unit, scale)


def _silent(_done: int, _total: int, _note: str = "") -> None:
    """Nobody watches."""


def _bar(console: Console) -> Progress:
    columns = (TextColumn("{task.description:<14}"), BarColumn(28), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, TextColumn("{task.fields[note]}"), console=console)


def _plain_lines(console: Console, title: str, unit: str, scale: int) -> Advance:
    first: list[tuple[float, int]] = []
    last, finished = time.monotonic(), False

    def advance(done: int, total: int, note: str = "") -> None:
        nonlocal last, finished
        now = time.monotonic()
        if not first:
            first.append((now, done))
        if now - last >= LINE_SECONDS or (done >= total and not finished):
            last, finished = now, done >= total
            rate, spent, gone = _rate(first[0], done, scale), now - first[0][0], done - first[0][1]
            left = spent / gone * (total - done) if gone else 0.0
            console.print(
                f"{title}: {done:,} of {total:,}, {rate} {unit}/s, {left:.0f} s left  {note}".rstrip(), highlight=False
            )

    return advance


def _rate(first: tuple[float, int], done: int, scale: int) -> str:
    spent = max(time.monotonic() - first[0], 1e-9)
    return f"{(done - first[1]) * scale / spent:,.0f}" if done > first[1] else "..."


def show(facts: dict[str, Any], as_json: bool, words: str) -> None:
    """Print the result of a verb: one JSON object, or words."""
    print(json.dumps(facts, ensure_ascii=False, default=str) if as_json else words)


def table(facts: dict[str, Any]) -> str:
    """Names and values, one a line, numbers grouped."""
    rows = [(key.replace("_", " "), value) for key, value in _flat(facts) if value is not None]
    width = max((len(key) for key, _ in rows), default=0)
    return "\n".join(f"{key:<{width}}  {_number(value)}" for key, value in rows)


def _flat(facts: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in facts.items():
        pairs += _flat(value, f"{prefix}{key} ") if isinstance(value, dict) else [(f"{prefix}{key}", value)]
    return pairs


def _number(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
