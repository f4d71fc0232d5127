"""The figures of the report: which records each one shows, and what is said below it.

Colours are names of CSS classes, so that the page alone decides how light and dark look: `lm` for a baseline, `c1` to
`c5` for the five distilled recipes that gained most, `other` for the rest, which stay without a label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from predistill.report.gains import Gain
from predistill.report.geometry import (
    Chart,
    Entry,
    Line,
    Mark,
    Points,
    Strip,
    along,
    line_chart,
    padded,
    series,
    smooth,
    thinned,
    ticks,
    value_at,
)
from predistill.report.numbers import count, nats, percent, signed, size
from predistill.report.records import Record, StoreUse
from predistill.report.table import Group

__all__ = [
    "Marked",
    "colours",
    "difference_chart",
    "gain_strip",
    "loss_chart",
    "other_corpora_charts",
    "schedule_chart",
    "store_strip",
]

Marked = tuple[Record, Mapping[str, Any], str]  # a finding of a run, and the id of its line on the page

_COLOURED = 5
_SETTLED = 0.08  # of the tokens: what comes before does not set a chart's height
_STREAMS = {
    "ids": "Which tokens (ids)",
    "logprobs": "How probable (log-probs)",
    "counts": "How often drawn (counts)",
    "lengths": "How many are kept (lengths)",
    "rest": "The mass left out",
    "label": "The true token’s probability",
    "entropy": "The teacher’s entropy",
    "std": "The logits’ spread",
    "overhead": "Headers, checksums, index",
}


def colours(groups: Sequence[Group], found: Sequence[Gain]) -> dict[str, str]:
    """Group label -> colour: baselines alike, the distilled by rank of their gain, those without a gain next."""
    ranked = [gain.group.label for gain in found]
    ranked += [group.label for group in groups if group.distilled and group.label not in ranked]
    ranks = {label: f"c{i + 1}" if i < _COLOURED else "other" for i, label in enumerate(ranked)}
    return {group.label: ranks.get(group.label, "lm") for group in groups}


def loss_chart(groups: Sequence[Group], colour: Mapping[str, str], marked: Sequence[Marked] = ()) -> Chart | None:
    """Held-out loss against tokens, a curve a run; faint behind it, when runs are few, the training loss. Rings where
    the watch found something in one of them."""
    records = [record for group in groups for record in group.records]
    held_out = {record.path: series(record.main_heldouts, "loss_nats") for record in records}
    training = {record.path: smooth(series(record.steps, "lm")) for record in records}
    main = held_out if any(len(points) > 1 for points in held_out.values()) else training
    lines = _lines(groups, colour, {group.label: [main[record.path] for record in group.records] for group in groups})
    if not lines:
        return None
    few = main is held_out and len(records) <= 8
    bounds = _bounds([points for line in lines for points in line.curves] + (list(training.values()) if few else []))
    behind = [(colour[group.label], training[record.path]) for group in groups for record in group.records if few]
    cut = any(y > bounds[1] for line in lines for points in line.curves for _, y in points)
    marks = _marks(marked, main)
    said = [
        "Lower is better. One line a run.",
        "Faint behind it: its training loss on the next token, smoothed." if few else "",
        "The steep start is above the frame." if cut else "",
        "Ring: the watch found something there; it is named below." if marks else "",
        _greys(lines),
    ]
    several = {corpus for record in records for corpus in record.heldout_corpora} if main is held_out else set()
    on = f" on {next(iter(records[0].heldout_corpora), '')}" if len(several) > 1 else ""
    return line_chart(
        lines,
        id="loss",
        title="Loss against tokens",
        unit=f"{'held-out' if main is held_out else 'training'} loss{on}, nats a token",
        note=" ".join(sentence for sentence in said if sentence),
        bounds=bounds,
        y_text=nats,
        behind=behind,
        marks=marks,
    )


def other_corpora_charts(groups: Sequence[Group], colour: Mapping[str, str]) -> list[Chart]:
    """Held-out loss on every corpus that was measured beside the first: a chart each."""
    records = [record for group in groups for record in group.records]
    others = dict.fromkeys(corpus for record in records for corpus in record.heldout_corpora[1:])
    charts = []
    for number, corpus in enumerate(others, 1):
        curves = {
            group.label: [series(record.heldouts_of(corpus), "loss_nats") for record in group.records]
            for group in groups
        }
        if lines := _lines(groups, colour, curves):
            chart = line_chart(
                lines,
                id=f"loss-{number}",
                title=f"Loss on {corpus}",
                unit="held-out loss, nats a token",
                note=_greys(lines),
                bounds=_bounds([points for line in lines for points in line.curves]),
                y_text=nats,
            )
            charts.append(chart)
    return charts


def difference_chart(found: Sequence[Gain], colour: Mapping[str, str]) -> Chart | None:
    """Distilled less baseline at the same token count: strong the mean over a recipe's pairs, faint each pair."""
    lines, behind = [], []
    for gain in found[:_COLOURED]:
        its = colour[gain.group.label]
        pairs = [points for pair in gain.pairs if len(points := _apart(pair.distilled, pair.baseline)) > 1]
        shared = sorted(set.intersection(*({x for x, _ in points} for points in pairs))) if pairs else []
        if len(shared) < 2:
            continue
        mean = [(x, fmean(dict(points)[x] for points in pairs)) for x in shared]
        lines.append(Line(gain.group.short, gain.group.label, its, (mean,)))
        behind += [(its, points) for points in pairs if len(pairs) > 1 and len(found) <= 3]
    if not lines:
        return None
    bounds = _bounds([*(line.curves[0] for line in lines), *(points for _, points in behind), [(0.0, 0.0)]])
    seeds = " Faint: one seed. Strong: their mean." if behind else ""
    most = f" The {_COLOURED} recipes that gained most." if len(found) > _COLOURED else ""
    return line_chart(
        lines,
        id="difference",
        title="What the teacher adds, along the way",
        unit="held-out loss less the baseline’s, nats a token",
        note=f"Below the zero line the teacher helps.{seeds}{most}",
        bounds=bounds,
        y_text=signed,
        behind=behind,
        zero=True,
    )


def schedule_chart(
    groups: Sequence[Group], colour: Mapping[str, str], *, key: str, title: str, unit: str, top: float = 0.0
) -> Chart | None:
    """alpha or lr against tokens, up to `top` at least; recipes with the same course share a line."""
    courses: list[tuple[dict[float, float], list[Group]]] = []
    for group in groups:
        course = max((dict(series(record.steps, key)) for record in group.records), key=len)
        same = next((i for i, (other, _) in enumerate(courses) if _agree(course, other)), None)
        if len(course) > 1 and same is None:
            courses.append((course, [group]))
        elif same is not None:
            other, sharing = courses[same]
            courses[same] = (max(course, other, key=len), [*sharing, group])
    if not courses:
        return None
    lines = []
    for course, sharing in courses:
        its = colour[sharing[0].label] if len(sharing) == 1 else "ink"
        text = sharing[0].short if len(sharing) == 1 else "" if len(courses) == 1 else f"{len(sharing)} recipes"
        names = ", ".join(group.label for group in sharing)
        lines.append(Line("" if its == "other" else text, names, its, (thinned(list(course.items())),)))
    highest = max([top, *(y for course, _ in courses for y in course.values())]) or 1.0
    return line_chart(
        lines,
        id=key,
        title=title,
        unit=unit,
        note="The same for every recipe." if len(courses) == 1 < len(groups) else "",
        bounds=(0.0, highest if highest == top else 1.06 * highest),
        y_text=lambda y, digits: f"{y:.{digits}f}",
        y_ticks=4,
    )


def gain_strip(found: Sequence[Gain], colour: Mapping[str, str]) -> Strip | None:
    """Every distilled recipe against its baselines: a ring a seed, the mean, the interval. None with a single pair."""
    if sum(len(gain.pairs) for gain in found) < 2:
        return None
    bounds = padded([value for gain in found for value in (0.0, *gain.differences, *(gain.interval or ()))])
    entries = tuple(
        Entry(
            name=gain.group.label,
            value=signed(gain.mean),
            aside=f" [{signed(gain.interval[0])}, {signed(gain.interval[1])}]" if gain.interval else "",
            colour=colour[gain.group.label],
            dots=tuple(along(value, bounds) for value in gain.differences),
            mean=along(gain.mean, bounds),
            interval=(along(gain.interval[0], bounds), along(gain.interval[1], bounds)) if gain.interval else None,
        )
        for gain in found
    )
    return Strip(
        id="gains",
        title="Every recipe against its baseline" if len(found) > 1 else "The difference, seed by seed",
        unit="held-out loss less the baseline’s, nats a token",
        note=f"Ring: one seed. Dot: the mean. Bar: {percent(0.95, 0)} interval (paired t). "
        "Left of the zero line the teacher helps.",
        entries=entries,
        x=ticks(bounds, 5, signed),
        zero=along(0.0, bounds),
    )


def store_strip(store: StoreUse, number: int) -> Strip | None:
    """Where a store's bytes went, the largest stream first, in bytes a position."""
    streams = sorted(((length, name) for name, length in store.bytes_by_stream.items() if length > 0), reverse=True)
    if not streams or store.positions <= 0:
        return None
    total = sum(length for length, _ in streams)
    each = total / store.positions
    note = f"{size(total)} for {count(store.positions)} positions: {each:.1f} bytes each, "
    note += f"for {store.entries / store.positions:.1f} kept entries on average."
    if store.vocabulary:
        note += (
            f" All {store.vocabulary:,} logits in 32 bits would take {count(4 * store.vocabulary / each)} times that."
        )
    return Strip(
        id=f"store-{number}",
        title=store.path,
        unit="bytes a position",
        note=note,
        entries=tuple(
            Entry(
                name=_STREAMS.get(name, name),
                value=f"{length / store.positions:.2f}  ({percent(length / total)})",
                colour="ink",
                bar=round(100 * length / total, 2),
            )
            for length, name in streams
        ),
    )


def _lines(groups: Sequence[Group], colour: Mapping[str, str], curves: Mapping[str, Sequence[Points]]) -> list[Line]:
    """A line for each group that has a curve: grey ones first, so that they lie below; a second baseline is dashed."""
    lines, baselines = [], 0
    for group in sorted(groups, key=lambda group: colour[group.label] != "other"):
        drawn = tuple(points for points in curves[group.label] if len(points) > 1)
        if drawn:
            its = colour[group.label]
            text = "" if its == "other" else group.short
            lines.append(Line(text, group.label, its, drawn, dash=its == "lm" and baselines > 0))
            baselines += its == "lm"
    return lines


def _marks(marked: Sequence[Marked], curves: Mapping[Path, Points]) -> list[Mark]:
    """A ring on the run's curve at the tokens of each finding's step, where there are any."""
    marks = []
    for record, finding, target in marked:
        points = curves.get(record.path, [])
        tokens = next((float(line["tokens"]) for line in record.steps if line["step"] >= finding["step"]), None)
        if len(points) > 1 and tokens is not None:
            at = (tokens, value_at(points, tokens))
            marks.append(Mark(at, finding["sentence"], target, strong=finding["severe"]))
    return marks


def _greys(lines: Sequence[Line]) -> str:
    greys = sum(line.colour == "other" for line in lines)
    return f"Grey: {greys} more recipes, named in the table." if greys else ""


def _bounds(curves: Sequence[Points]) -> tuple[float, float]:
    """A frame for what comes after the steep start."""
    last = max(x for points in curves for x, _ in points)
    settled = [y for points in curves for x, y in points if x >= _SETTLED * last or x == 0]
    return padded(settled or [y for points in curves for _, y in points])


def _apart(distilled: Record, baseline: Record) -> Points:
    ours, theirs = (dict(series(record.main_heldouts, "loss_nats")) for record in (distilled, baseline))
    return [(x, ours[x] - theirs[x]) for x in sorted(ours.keys() & theirs.keys())]


def _agree(course: Mapping[float, float], other: Mapping[float, float]) -> bool:
    """The same wherever both are known: a run that is still going shares the line of one that has ended."""
    shared = course.keys() & other.keys()
    return bool(shared) and all(course[x] == other[x] for x in shared)
