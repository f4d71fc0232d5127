"""Where the loss is, and whether a student copies: small figures in which the same runs stand side by side.

A breakdown cuts the held-out labels of one text into parts. Only runs that were measured on the same parts are drawn
together: those of the first run that has them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from predistill.report.gains import Gain
from predistill.report.geometry import Chart, Line
from predistill.report.measures import Copying, HeldOut, Part
from predistill.report.numbers import count, nats, percent, signed
from predistill.report.plot import Axis, linear, plot, steps
from predistill.report.records import Record
from predistill.report.table import Group

__all__ = ["LEAST_LABELS", "Cut", "breakdown_charts", "copying_chart", "copying_words", "measured_alike"]


@dataclass(frozen=True)
class Cut:
    """One way to cut the labels: the key of HeldOut that has the parts, and the words of its figure."""

    key: str
    title: str
    across: str

    def parts(self, record: Record) -> tuple[Part, ...]:
        """Of one run, those that have labels enough for a mean; none where it was not measured."""
        found: HeldOut | None = record.measures.heldout
        parts: tuple[Part, ...] = getattr(found, self.key) if found is not None else ()
        return tuple(part for part in parts if part.tokens >= LEAST_LABELS)


CUTS = (
    Cut("by_position", "By position", "place in the row, from 0"),
    Cut("by_frequency", "By frequency", "times in the train split"),
    Cut("by_teacher_entropy", "By teacher entropy", "nats"),
)

LEAST_LABELS = 100  # of a part: the mean of 33 labels of the rarest words once set the height of a whole figure
_COPIES = 0.02  # of a second copy: a student that has less right does not copy


def measured_alike(records: Sequence[Record], cut: Cut) -> list[Record]:
    """The runs whose parts are those of the first that has any: the same bounds, as many labels in each."""
    having = [record for record in records if cut.parts(record)]
    return [record for record in having if _bounds(cut.parts(record)) == _bounds(cut.parts(having[0]))]


def breakdown_charts(groups: Sequence[Group], found: Sequence[Gain], colour: Mapping[str, str]) -> list[Chart]:
    """For each way to cut: the loss of every recipe and of the teacher, and what distillation changed in each part."""
    charts = []
    for cut in CUTS:
        alike = measured_alike([record for group in groups for record in group.records], cut)
        if not alike or len(cut.parts(alike[0])) < 2:
            continue
        parts = cut.parts(alike[0])
        across, places = _across(cut, parts)
        lines = _losses(groups, colour, alike, cut, places)
        teacher = [part.teacher_loss_nats for part in parts]
        if None not in teacher:
            values = [value for value in teacher if value is not None]
            lines.append(Line("", "the teacher", "ink", (list(zip(places, values, strict=True)),), dash=True))
        charts.append(_chart(cut, "", "held-out loss, nats a token", lines, across))
        if changes := _changes(found, colour, alike, cut, places):
            charts.append(_chart(cut, "-change", "held-out loss less the baseline’s, nats a token", changes, across))
    return charts


def copying_chart(groups: Sequence[Group], colour: Mapping[str, str]) -> Chart | None:
    """How much of a second copy each recipe gets right, by length."""
    curves: list[Line] = []
    for group in _drawn_last(groups, colour):
        found = [record.measures.copying for record in group.records if record.measures.copying is not None]
        if found and found[0].lengths:
            points = [(float(length), share) for length, share in _shares(found).items()]
            text = "" if colour[group.label] == "other" else group.short
            curves.append(Line(text, group.label, colour[group.label], (points,)))
    lengths = sorted({x for line in curves for x, _ in line.curves[0]})
    if not curves:
        return None
    place = {length: float(i) for i, length in enumerate(lengths)}
    lines = [Line(line.text, line.full, line.colour, ([(place[x], y) for x, y in line.curves[0]],)) for line in curves]
    highest = max(y for line in lines for _, y in line.curves[0])
    return plot(
        lines,
        id="copying",
        title="Copying",
        unit="of the second copy, per cent right",
        description="; ".join(
            f"{line.full}: " + ", ".join(f"{x:.0f} ids {percent(y)}" for x, y in line.curves[0]) for line in curves
        ),
        x=steps("length of a copy", [f"{length:.0f}" for length in lengths]),
        y=linear("", (), lambda y, _: f"{100 * y:.4g}", bounds=(0.0, max(1.06 * highest, 0.01))),
    )


def copying_words(groups: Sequence[Group]) -> str:
    """What was asked, and how far the recipes are from a guess."""
    probes = [
        (group, record.measures.copying)
        for group in groups
        for record in group.records
        if record.measures.copying is not None and record.measures.copying.lengths
    ]
    if not probes:
        return ""
    first = probes[0][1]
    best = {
        group.label: max(_shares([probe for other, probe in probes if other is group]).values()) for group, _ in probes
    }
    said = ", ".join(f"{label} {percent(share)}" for label, share in best.items())
    least = min(length.loss_nats for _, probe in probes for length in probe.lengths)
    none = " None of them copies." if max(best.values()) < _COPIES else ""
    return (
        f"Random ids of {first.vocab_size:,}, written twice: only a student that looks back gets the second copy "
        f"right. The most of it that a recipe has right, at any length: {said}.{none} The least loss on it is "
        f"{nats(least, 2)} nats; a blind guess has {nats(first.chance_nats, 2)}."
    )


def _losses(
    groups: Sequence[Group], colour: Mapping[str, str], alike: Sequence[Record], cut: Cut, places: Sequence[float]
) -> list[Line]:
    """A line a recipe, the mean of its seeds; grey ones first, so that they lie below."""
    lines = []
    for group in _drawn_last(groups, colour):
        its = [cut.parts(record) for record in group.records if record in alike]
        if its:
            means = [fmean(part.loss_nats for part in parts) for parts in zip(*its, strict=True)]
            lines.append(Line("", group.label, colour[group.label], (list(zip(places, means, strict=True)),)))
    return lines


def _changes(
    found: Sequence[Gain], colour: Mapping[str, str], alike: Sequence[Record], cut: Cut, places: Sequence[float]
) -> list[Line]:
    """Distilled less baseline in each part, the mean over pairs; of the recipes that have a colour."""
    lines = []
    for gain in found:
        pairs = [pair for pair in gain.pairs if pair.distilled in alike and pair.baseline in alike]
        if pairs and colour[gain.group.label] != "other":
            columns = zip(
                *(zip(cut.parts(p.distilled), cut.parts(p.baseline), strict=True) for p in pairs), strict=True
            )
            means = [fmean(ours.loss_nats - theirs.loss_nats for ours, theirs in column) for column in columns]
            its = colour[gain.group.label]
            lines.append(Line("", gain.group.label, its, (list(zip(places, means, strict=True)),)))
    return lines


def _chart(cut: Cut, which: str, unit: str, lines: Sequence[Line], across: Axis) -> Chart:
    values = [y for line in lines for _, y in line.curves[0]]
    said = "; ".join(
        f"{line.full}: {nats(line.curves[0][0][1])} at first, {nats(line.curves[0][-1][1])} at last" for line in lines
    )
    write = signed if which else nats
    return plot(
        lines,
        id=cut.key.replace("_", "-") + which,
        title=f"{cut.title}, less the baseline" if which else cut.title,
        unit=unit,
        description=f"{unit}, {across.title}: {said}.",
        x=across,
        y=linear("", [*values, 0.0] if which else values, write),
        zero=bool(which),
    )


def _across(cut: Cut, parts: Sequence[Part]) -> tuple[Axis, list[float]]:
    """The axis of a figure, and where on it each part stands."""
    if cut.key == "by_teacher_entropy":
        middles = [(part.low + part.high) / 2 for part in parts]
        return linear(cut.across, middles, lambda x, digits: nats(x, digits)), middles
    return steps(cut.across, [count(part.low) for part in parts]), [float(i) for i in range(len(parts))]


def _bounds(parts: Sequence[Part]) -> list[tuple[float, float, int]]:
    return [(part.low, part.high, part.tokens) for part in parts]


def _shares(probes: Sequence[Copying]) -> dict[int, float]:
    """length -> mean share over the runs that were asked for it."""
    lengths = sorted({length.length for probe in probes for length in probe.lengths})
    return {
        length: fmean(found.accuracy for probe in probes for found in probe.lengths if found.length == length)
        for length in lengths
    }


def _drawn_last(groups: Sequence[Group], colour: Mapping[str, str]) -> list[Group]:
    return sorted(groups, key=lambda group: colour[group.label] != "other")
