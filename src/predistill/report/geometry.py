"""Where lines, ticks, dots and labels stand, as percentages of a plot: what `chart.svg.j2` draws.

Percentages, because a figure then keeps its type size and its line width while it stretches from a phone to a desk.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any

from predistill.report.numbers import count

__all__ = [
    "LABEL_CHARS",
    "Chart",
    "Curve",
    "Dot",
    "Entry",
    "Label",
    "Line",
    "Mark",
    "Points",
    "Strip",
    "Tick",
    "along",
    "down",
    "line_chart",
    "padded",
    "round_numbers",
    "series",
    "shortened",
    "smooth",
    "spread",
    "thinned",
    "ticks",
    "value_at",
]

Points = list[tuple[float, float]]
LABEL_CHARS = 13  # what a phone has room for beside a plot
_LABEL_GAP = 7.0  # per cent of the lowest plot's height: a line of type


@dataclass(frozen=True)
class Tick:
    """A mark on an axis."""

    at: float
    text: str


@dataclass(frozen=True)
class Curve:
    """A drawn line: an SVG path in a 100 by 100 box, its colour, and `strong` or `faint`."""

    path: str
    colour: str
    weight: str
    dash: bool = False


@dataclass(frozen=True)
class Label:
    """Text at a line's end: `at` is its height, `end` where the line ends, `full` the text before it was shortened."""

    at: float
    end: tuple[float, float]
    text: str
    full: str
    colour: str


@dataclass(frozen=True)
class Mark:
    """A ring at tokens and value, or, drawn, at its place in the frame; filled if `strong`; it leads to `target`."""

    at: tuple[float, float]
    text: str
    target: str
    strong: bool


@dataclass(frozen=True)
class Dot:
    """A filled circle at its place in the frame, `radius` in pixels; `text` is what a pointer over it reads."""

    at: tuple[float, float]
    radius: float
    colour: str
    text: str
    ring: bool = False


@dataclass(frozen=True)
class Line:
    """Curves of one recipe, in data units, with one label at their end; no text, no label."""

    text: str
    full: str
    colour: str
    curves: tuple[Points, ...]
    dash: bool = False


@dataclass(frozen=True)
class Chart:
    """Lines and dots over an axis, most often of tokens; `diagonal`: a line from corner to corner."""

    id: str
    title: str
    unit: str
    description: str
    note: str
    x: tuple[Tick, ...]
    y: tuple[Tick, ...]
    curves: tuple[Curve, ...]
    labels: tuple[Label, ...]
    zero: float | None
    marks: tuple[Mark, ...] = ()
    dots: tuple[Dot, ...] = ()
    diagonal: bool = False
    x_title: str = "tokens"

    @property
    def label_chars(self) -> int:
        """Characters of the longest label: the room at the right."""
        return max((len(label.text) for label in self.labels), default=0)

    @property
    def tick_chars(self) -> int:
        """Characters of the longest tick of the upright axis: the room at the left."""
        return max((len(tick.text) for tick in self.y), default=0)


@dataclass(frozen=True)
class Entry:
    """One line of a strip: a name, a value (and `aside`, where there is room), and a bar, or dots with an interval."""

    name: str
    value: str
    colour: str
    aside: str = ""
    bar: float | None = None
    dots: tuple[float, ...] = ()
    mean: float | None = None
    interval: tuple[float, float] | None = None


@dataclass(frozen=True)
class Strip:
    """Named lines one below the other, over a common axis."""

    id: str
    title: str
    unit: str
    note: str
    entries: tuple[Entry, ...]
    x: tuple[Tick, ...] = ()
    zero: float | None = None

    @property
    def description(self) -> str:
        """What a reader who does not see the figure hears."""
        return "; ".join(f"{entry.name}: {entry.value}{entry.aside}" for entry in self.entries)


def line_chart(
    lines: Sequence[Line],
    *,
    id: str,
    title: str,
    unit: str,
    note: str,
    bounds: tuple[float, float],
    y_text: Callable[[float, int], str],
    y_ticks: int = 5,
    behind: Sequence[tuple[str, Points]] = (),
    zero: bool = False,
    marks: Sequence[Mark] = (),
) -> Chart:
    """`lines` over tokens, from 0 to the last point of any; `y_text(value, digits)` writes a tick.

    `behind` are faint curves without a label, each with its colour; `zero` draws the line at 0; what is marked outside
    the frame stands at its edge.
    """
    last = max(x for line in lines for curve in line.curves for x, _ in curve)
    curves = [_drawn(points, last, bounds, colour, "faint") for colour, points in behind if len(points) > 1]
    labels, said = [], []
    for line in lines:
        curves += [_drawn(points, last, bounds, line.colour, "strong", dash=line.dash) for points in line.curves]
        end = max(points[-1][0] for points in line.curves)
        value = fmean(points[-1][1] for points in line.curves if points[-1][0] == end)
        said.append(f"{line.full} ends at {value:.4g}")
        if line.text:
            place = _place(end, value, last, bounds)
            labels.append(Label(place[1], place, shortened(line.text, LABEL_CHARS), line.full, line.colour))
    return Chart(
        id=id,
        title=title,
        unit=unit,
        description=f"{unit}, over {count(last)} tokens: {'; '.join(said)}.",
        note=note,
        x=ticks((0.0, last), 4, lambda x, _: count(x)),
        y=ticks(bounds, y_ticks, y_text, vertical=True),
        curves=tuple(curves),
        labels=spread(labels),
        zero=down(0.0, bounds) if zero else None,
        marks=tuple(replace(mark, at=_place(*mark.at, last, bounds)) for mark in marks),
    )


def ticks(
    bounds: tuple[float, float], about: int, text: Callable[[float, int], str], *, vertical: bool = False
) -> tuple[Tick, ...]:
    """About so many round numbers; `text(value, digits that they need)`."""
    marks, digits = round_numbers(bounds, about)
    return tuple(Tick(down(mark, bounds) if vertical else along(mark, bounds), text(mark, digits)) for mark in marks)


def round_numbers(bounds: tuple[float, float], about: int) -> tuple[list[float], int]:
    """About so many, 1, 2, 2.5 or 5 times a power of ten apart, and the digits that they need."""
    low, high = bounds
    raw = (high - low) / about
    power = math.floor(math.log10(raw))
    factor = min((1, 2, 2.5, 5, 10), key=lambda factor: abs(math.log10(factor) + power - math.log10(raw)))
    step, digits = factor * 10.0**power, max(0, -power + (factor == 2.5) - (factor == 10))
    return [i * step for i in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)], digits


def along(value: float, bounds: tuple[float, float]) -> float:
    """A value's place from the left, in per cent."""
    return round(100 * (value - bounds[0]) / (bounds[1] - bounds[0]), 2)


def padded(values: Iterable[float]) -> tuple[float, float]:
    """Bounds around finite values with a little air, never of no height."""
    values = list(values)
    low, high = min(values), max(values)
    air = 0.06 * (high - low) or 0.05 * abs(high) or 1.0
    return low - air, high + air


def series(lines: Iterable[Mapping[str, Any]], key: str) -> Points:
    """(tokens, value) of the metrics that have a finite value at `key`."""
    found = [(float(line["tokens"]), line.get(key)) for line in lines]
    return [(x, float(y)) for x, y in found if isinstance(y, int | float) and math.isfinite(y)]


def value_at(points: Points, x: float) -> float:
    """The value of a curve at x, on the line between its two nearest points; at its ends, theirs."""
    for (x0, y0), (x1, y1) in itertools.pairwise(points):
        if x0 <= x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0) if x1 > x0 else y1
    return points[0][1] if x < points[0][0] else points[-1][1]


def smooth(points: Points, stretches: int = 80) -> Points:
    """Means over so many equal stretches of tokens."""
    parts: dict[int, Points] = {}
    for x, y in points:
        parts.setdefault(min(int(stretches * x / points[-1][0]), stretches - 1), []).append((x, y))
    return [(fmean(x for x, _ in part), fmean(y for _, y in part)) for part in parts.values()]


def thinned(points: Points, most: int = 200) -> Points:
    """At most so many of the points (and the last), evenly taken."""
    return [*points[: -1 : math.ceil(len(points) / most)], points[-1]] if points else []


def _drawn(
    points: Points, last: float, bounds: tuple[float, float], colour: str, weight: str, *, dash: bool = False
) -> Curve:
    """Points in data units as a path; what is far outside is held near the frame, which cuts it."""
    steps = (f"{100 * x / last:.2f} {min(max(down(y, bounds), -999.0), 999.0):.2f}" for x, y in points)
    return Curve("M" + "L".join(steps), colour, weight, dash)


def _place(tokens: float, value: float, last: float, bounds: tuple[float, float]) -> tuple[float, float]:
    """From the left and from the top, in per cent, within the frame."""
    return round(100 * min(tokens / last, 1.0), 2), min(max(down(value, bounds), 0.0), 100.0)


def down(value: float, bounds: tuple[float, float]) -> float:
    """A value's place from the top, in per cent."""
    return round(100 * (bounds[1] - value) / (bounds[1] - bounds[0]), 2)


def spread(labels: Sequence[Label]) -> tuple[Label, ...]:
    """Labels moved apart so that none covers another, the lowest no lower than the frame."""
    placed: list[Label] = []
    for label in sorted(labels, key=lambda label: label.at):
        placed.append(replace(label, at=max(label.at, placed[-1].at + _LABEL_GAP) if placed else label.at))
    limit = 100.0
    for i in reversed(range(len(placed))):
        placed[i] = replace(placed[i], at=round(min(placed[i].at, limit), 2))
        limit = placed[i].at - _LABEL_GAP
    return tuple(placed)


def shortened(text: str, most: int) -> str:
    """The text, or its two ends."""
    half = (most - 1) // 2
    return text if len(text) <= most else f"{text[:half]}…{text[-half:]}"
