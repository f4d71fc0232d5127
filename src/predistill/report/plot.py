"""Figures over any axis: of round numbers, of powers, or of named steps; drawn by the same template as those over
tokens."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import fmean

from predistill.report.geometry import (
    LABEL_CHARS,
    Chart,
    Curve,
    Dot,
    Label,
    Line,
    Tick,
    padded,
    round_numbers,
    shortened,
    spread,
)

__all__ = ["Axis", "linear", "logarithmic", "plot", "steps"]


@dataclass(frozen=True)
class Axis:
    """Where values stand, in per cent from its beginning, with its ticks."""

    title: str
    bounds: tuple[float, float]
    ticks: tuple[Tick, ...]
    log: bool = False

    def at(self, value: float) -> float:
        """A value's place."""
        low, high, value = (math.log(x) for x in (*self.bounds, value)) if self.log else (*self.bounds, value)
        return round(100 * (value - low) / (high - low), 2)


def linear(
    title: str,
    values: Sequence[float],
    text: Callable[[float, int], str],
    *,
    about: int = 4,
    bounds: tuple[float, float] | None = None,
) -> Axis:
    """An axis of round numbers around the values, or within given bounds."""
    axis = Axis(title, bounds or padded(values), ())
    marks, digits = round_numbers(axis.bounds, about)
    return replace(axis, ticks=tuple(Tick(axis.at(mark), text(mark, digits)) for mark in marks))


def logarithmic(title: str, values: Sequence[float], text: Callable[[float], str]) -> Axis:
    """An axis around positive values on which twice as much is the same way everywhere."""
    low, high = min(values), max(values)
    air = (high / low) ** 0.06 if high > low else 1.2
    axis = Axis(title, (low / air, high * air), (), log=True)
    powers = range(math.floor(math.log10(axis.bounds[0])), math.ceil(math.log10(axis.bounds[1])) + 1)
    for factors in ((1,), (1, 3), (1, 2, 5)):
        marks = [factor * 10.0**power for power in powers for factor in factors]
        marks = [mark for mark in marks if axis.bounds[0] <= mark <= axis.bounds[1]]
        if len(marks) >= 3:
            break
    else:
        marks = [mark for mark in round_numbers(axis.bounds, 3)[0] if mark > 0]
    return replace(axis, ticks=tuple(Tick(axis.at(mark), text(mark)) for mark in marks))


def steps(title: str, names: Sequence[str], *, most: int = 6) -> Axis:
    """An axis of named places, 0, 1, 2 ...; at most so many of the names are written."""
    axis = Axis(title, (-0.3, max(len(names) - 0.7, 0.3)), ())
    every = math.ceil(len(names) / most)
    return replace(axis, ticks=tuple(Tick(axis.at(i), names[i]) for i in range(0, len(names), every)))


def plot(
    lines: Sequence[Line],
    *,
    id: str,
    title: str,
    unit: str,
    description: str,
    x: Axis,
    y: Axis,
    note: str = "",
    dots: Sequence[Dot] = (),
    zero: bool = False,
    diagonal: bool = False,
) -> Chart:
    """Lines and dots, given in data units. A line of a single point is drawn as that point with its label."""
    curves, labels = [], []
    for line in lines:
        drawn = [points for points in line.curves if len(points) > 1]
        curves += [Curve(_path(points, x, y), line.colour, "strong", line.dash) for points in drawn]
        if line.text:
            end = max(points[-1][0] for points in line.curves)
            value = fmean(points[-1][1] for points in line.curves if points[-1][0] == end)
            place = (x.at(end), _down(value, y))
            labels.append(Label(place[1], place, shortened(line.text, LABEL_CHARS), line.full, line.colour))
    return Chart(
        id=id,
        title=title,
        unit=unit,
        description=description,
        note=note,
        x=x.ticks,
        y=tuple(replace(tick, at=round(100 - tick.at, 2)) for tick in y.ticks),
        curves=tuple(curves),
        labels=tuple(label for column in _columns(labels) for label in spread(column)),
        zero=_down(0.0, y) if zero else None,
        dots=tuple(replace(dot, at=(x.at(dot.at[0]), _down(dot.at[1], y))) for dot in dots),
        diagonal=diagonal,
        x_title=x.title,
    )


def _columns(labels: Sequence[Label]) -> list[list[Label]]:
    """Labels that would lie side by side on a phone may stand at one height; the others form a column."""
    chars = max((len(label.text) for label in labels), default=0)
    way = 100 * (8.2 * chars + 9) / max(280 - 8.2 * chars - 50, 1)  # a label's width, of a plot 280 pixels wide
    columns: list[list[Label]] = []
    for label in sorted(labels, key=lambda label: label.end[0]):
        if columns and label.end[0] - columns[-1][0].end[0] < way:
            columns[-1].append(label)
        else:
            columns.append([label])
    return columns


def _path(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    return "M" + "L".join(f"{x.at(across):.2f} {_down(up, y):.2f}" for across, up in points)


def _down(value: float, y: Axis) -> float:
    """From the top."""
    return round(100 - y.at(value), 2)
