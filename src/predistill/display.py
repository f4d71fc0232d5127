"""A run in training as the command line shows it: on a terminal one panel that stays in its place, elsewhere a line now
and then.

Nothing is drawn more often than four times a second, and between two drawings a record costs a few additions.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.box import ASCII, ROUNDED
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from predistill.pace import Cost, Progress, Record
from predistill.terminal import LINE_SECONDS

__all__ = ["shown_training"]

DRAW_SECONDS = 0.25
CELL = 18  # columns of a name and its value
GAP = 3  # between two columns
MOST_COLUMNS = 100  # wider, and the eye loses the line


@contextmanager
def shown_training(
    name: str, *, steps: int, cost: Callable[[], Cost | None] = lambda: None, quiet: bool = False
) -> Iterator[Callable[[Record], None]]:
    """Yields `show(record)` for every record of a run of `steps`; nothing is shown when `quiet`.

    `cost` is asked once, at the first record: by then the run knows what it was made on.
    """
    console = Console(stderr=True)
    progress = Progress(name, steps, cost)
    if quiet:
        yield lambda _record: None
    elif console.is_terminal:
        yield from _panel(console, progress)
    else:
        yield _lines(console, progress)


def _lines(console: Console, progress: Progress) -> Callable[[Record], None]:
    """Plain lines: at most one every 15 seconds, one at the end, and findings at once."""
    last, ended = time.monotonic(), False

    def show(record: Record) -> None:
        nonlocal last, ended
        progress.take(record)
        if "sentence" in record:
            console.print(_finding(record), markup=False, highlight=False, soft_wrap=True)
        elif record["kind"] == "step":
            now, at_end = time.monotonic(), record["step"] >= progress.steps
            if now - last >= LINE_SECONDS or (at_end and not ended):
                last, ended = now, at_end
                console.print(_line(progress), markup=False, highlight=False, soft_wrap=True)

    return show


def _line(progress: Progress) -> str:
    step = progress.step
    assert step is not None
    left = progress.seconds_left
    cells = [(name, value) for name, value in _cells(progress) if name in ("loss", "lm", "kd", "alpha", "lr")]
    facts = [f"{name} {value}" for name, value in cells]
    rate = progress.tokens_per_s
    facts += [f"{rate:,.0f} tokens/s"] if rate else []
    facts += [f"MFU {progress.mfu:.1%}"] if progress.mfu else []
    facts += [f"held-out {record['loss_nats']:.3f}" for record, _ in list(progress.heldout.values())[:1]]
    return (
        f"{progress.name}: {step['step']:,} of {progress.steps:,} steps, "
        f"{f'{_duration(left)} left' if left is not None else '...'}  {'  '.join(facts)}"
    )


def _panel(console: Console, progress: Progress) -> Iterator[Callable[[Record], None]]:
    # No thread draws: a drawing takes milliseconds, which training would miss just when its steps are short. Nothing is
    # drawn before the first record: a recipe that is refused leaves no panel behind.
    live, drawn = Live(_Panel(progress), console=console, auto_refresh=False), -math.inf

    def show(record: Record) -> None:
        nonlocal drawn
        progress.take(record)
        live.start()
        now = time.monotonic()
        if now - drawn >= DRAW_SECONDS or "sentence" in record:
            drawn = now
            live.refresh()

    try:
        yield show
    finally:
        live.stop()


class _Panel:
    """The panel, in as many columns as there is room for."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        progress, plain = self._progress, options.ascii_only
        width = min(options.max_width, MOST_COLUMNS)
        inside = width - 4
        parts: list[RenderableType] = [_bar(progress, inside)]
        cells = _cells(progress)
        if cells:
            parts += [Text(), *_grid(cells, inside=inside)]
        parts += _below(progress, inside, plain)
        step = progress.step["step"] if progress.step else 0
        yield Panel(
            Group(*parts),
            title=f"[bold]{_escaped(progress.name)}[/]",
            title_align="left",
            subtitle=f"step {step:,} of {progress.steps:,}",
            subtitle_align="right",
            box=ASCII if plain else ROUNDED,
            border_style="dim",
            padding=(0, 1),
            width=width,
        )


def _bar(progress: Progress, inside: int) -> RenderableType:
    left = progress.seconds_left
    words = "starting" if progress.step is None else f"{progress.share_done:4.0%}"
    words += f"  {_duration(left)} left" if left is not None and progress.share_done < 1 else ""
    line = Table.grid(padding=(0, 2, 0, 0))
    line.add_column(width=inside - 24)
    line.add_column(width=22, no_wrap=True, justify="right")
    bar = ProgressBar(total=1.0, completed=progress.share_done, width=inside - 24, complete_style="cyan")
    line.add_row(bar, Text(words))
    return line


def _cells(progress: Progress) -> list[tuple[str, str]]:
    """Names and values of the newest step; what a run does not have is left out."""
    step = progress.step
    if step is None:
        return []
    cells = [("loss", f"{step['loss']:.3f}"), ("lm", f"{step['lm']:.3f}")]
    cells += [(key, f"{step[key]:.3f}") for key in ("kd", "kl") if step.get(key) is not None]
    cells += [("alpha", f"{step['alpha']:.2f}"), ("lr", f"{step['lr']:.1e}"), ("grad norm", f"{step['grad_norm']:.2f}")]
    rate, mfu, stalled = progress.tokens_per_s, progress.mfu, progress.stall_share
    cells += [("tokens", _count(step["tokens"]))]
    cells += [("tokens/s", f"{rate:,.0f}")] if rate else []
    cells += [("MFU", f"{mfu:.1%}")] if mfu is not None else []
    cells += [("waiting", f"{stalled:.1%}")] if stalled is not None else []
    return cells


def _grid(cells: list[tuple[str, str]], *, inside: int) -> list[Text]:
    """Names left, values right, in columns of one width. Written out, since a table a cell takes five times as long."""
    columns = max(1, inside // CELL)
    ends = [round((inside + GAP) * (i + 1) / columns) - GAP for i in range(columns)]
    lines = []
    for start in range(0, len(cells), columns):
        line = Text()
        for end, (name, value) in zip(ends, cells[start : start + columns], strict=False):
            line.append(" " * GAP if line else "")
            line.append(name, style="dim")
            line.append(value.rjust(end - len(line)), style="bold" if name == "loss" else "")
        lines.append(line)
    return lines


def _below(progress: Progress, inside: int, plain: bool) -> list[RenderableType]:
    """The loss's course, held-out losses with their change since the last, and the last findings."""
    lines: list[RenderableType] = []
    course = "" if plain else progress.course()
    if course:
        lines.append(Text.assemble(("loss so far  ", "dim"), (course, "cyan")))
    for corpus, (record, change) in progress.heldout.items():
        line = Text.assemble(("held-out  ", "dim"), (f"{record['loss_nats']:.3f}", "bold"))
        if change is not None:
            line.append(f"  {change:+.3f}", style="green" if change <= 0 else "yellow")
        line.append(f"  at step {record['step']:,}", style="dim")
        line.append(f"  {corpus}" if len(progress.heldout) > 1 else "", style="dim")
        line.truncate(inside, overflow="ellipsis")
        lines.append(line)
    for finding in progress.findings:
        text = Text(_finding(finding), style="bold red" if finding.get("severe") else "yellow")
        lines.append(text)
    return [Text(), *lines] if lines else []


def _finding(record: Record) -> str:
    sentence = str(record["sentence"])
    step = f"step {record['step']:,}"
    return sentence if sentence.lower().startswith("step ") else f"{step}: {sentence}"


def _duration(seconds: float) -> str:
    """`40 s`, `12 min`, `3 h 20 min`, `2 d 4 h`."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 100:
        return f"{minutes} min"
    hours = round(seconds / 3600)
    return f"{minutes // 60} h {minutes % 60:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def _count(number: float) -> str:
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size * 0.9995:
            return f"{number / size:.3g}{letter}"
    return f"{number:.0f}"


def _escaped(text: str) -> str:
    return text.replace("[", r"\[")
