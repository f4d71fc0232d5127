"""Is a student as sure as it is right? The reliability diagram, and the calibration error beside its noise.

Guo et al. 2017, arXiv 1706.04599. The error of a finite sample is never 0: `noise` is what a perfectly calibrated model
would show at the same confidences, on as many tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import fmean

from predistill.report.geometry import Chart, Dot, Line
from predistill.report.measures import HeldOut
from predistill.report.numbers import percent
from predistill.report.plot import linear, plot
from predistill.report.table import Group

__all__ = ["Sureness", "calibration_words", "reliability_chart", "surenesses"]

_LARGEST = 5.0  # pixels: the dot of the fullest bin


@dataclass(frozen=True)
class Sureness:
    """A recipe's calibration, means over its measured seeds; shares as fractions, entropies in nats a token."""

    label: str
    distilled: bool
    ece: float
    noise: float | None
    entropy_nats: float | None
    teacher_entropy_nats: float | None
    teacher_ece: float | None
    kl_nats: float | None
    reverse_kl_nats: float | None


def surenesses(groups: Sequence[Group]) -> list[Sureness]:
    """One for every recipe that has been measured with bins."""
    found = []
    for group in groups:
        held_out = _measured(group)
        errors = [each.ece for each in held_out if each.ece is not None]
        if errors:
            found.append(
                Sureness(
                    label=group.label,
                    distilled=group.distilled,
                    ece=fmean(errors),
                    noise=_mean([each.ece_noise for each in held_out]),
                    entropy_nats=_mean([each.entropy_nats for each in held_out]),
                    teacher_entropy_nats=_mean([each.teacher_entropy_nats for each in held_out]),
                    teacher_ece=_mean([each.teacher_ece for each in held_out]),
                    kl_nats=_mean([each.kl_nats for each in held_out]),
                    reverse_kl_nats=_mean([each.reverse_kl_nats for each in held_out]),
                )
            )
    return found


def reliability_chart(groups: Sequence[Group], colour: Mapping[str, str]) -> Chart | None:
    """Accuracy against confidence, bin by bin, for the first measured seed of each recipe that has a colour."""
    lines, dots, said = [], [], []
    several = False
    for group in groups:
        held_out = _measured(group)
        if not held_out or colour[group.label] == "other":
            continue
        several |= len(held_out) > 1
        bins, its = held_out[0].reliability, colour[group.label]
        lines.append(Line(group.short, group.label, its, ([(each.confidence, each.accuracy) for each in bins],)))
        fullest = max(each.count for each in bins)
        for each in bins:
            text = (
                f"{group.label}: {percent(each.confidence)} sure, {percent(each.accuracy)} right, {each.count:,} tokens"
            )
            radius = round(_LARGEST * sqrt(each.count / fullest), 2)
            dots.append(Dot((each.confidence, each.accuracy), radius, its, text))
        last = bins[-1]
        said.append(f"{group.label}: where {percent(last.confidence)} sure, {percent(last.accuracy)} right")
    if not lines:
        return None
    highest = max(value for line in lines for point in line.curves[0] for value in point)
    bounds = (0.0, min(1.0, 1.06 * highest))
    return plot(
        lines,
        id="reliability",
        title="As sure as it is right",
        unit="share of predictions that were right, by their probability",
        description="; ".join(said),
        x=linear("confidence", (), lambda x, digits: percent(x, max(0, digits - 2)), bounds=bounds),
        y=linear("accuracy", (), lambda y, digits: percent(y, max(0, digits - 2)), bounds=bounds),
        dots=dots,
        diagonal=True,
        note="On the thin line a student is right as often as it says. Below it, it is too sure of itself; above it, "
        f"not sure enough. A dot is a bin of tokens{', of the first seed' if several else ''}.",
    )


def calibration_words(found: Sequence[Sureness]) -> str:
    """The error of each recipe beside its noise; of many, the baselines and the best and the worst of the rest."""
    distilled = sorted((each for each in found if each.distilled), key=lambda each: each.ece)
    shown = [each for each in found if not each.distilled]
    shown += distilled if len(distilled) <= 3 else [distilled[0], distilled[-1]]
    errors = [
        f"{each.label} {'of' if i else 'has a calibration error of'} {percent(each.ece)}"
        for i, each in enumerate(shown)
    ]
    noises = [each.noise for each in shown if each.noise is not None]
    lowest, highest = (percent(bound(noises)) if noises else "" for bound in (min, max))
    noise = lowest if lowest == highest else f"{lowest} to {highest}"
    ideal = f"; a perfectly calibrated student would show {noise} on as many tokens" if noises else ""
    sentences = [f"{', '.join(errors)}{ideal}."] if errors else []
    teacher = next((each.teacher_ece for each in found if each.teacher_ece is not None), None)
    if teacher is not None:
        sentences.append(f"The teacher itself has {percent(teacher)}.")
    return " ".join(sentences)


def _measured(group: Group) -> list[HeldOut]:
    """The seeds whose bins are known, in order."""
    found = (record.measures.heldout for record in group.records)
    return [held_out for held_out in found if held_out is not None and held_out.reliability]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known and len(known) == len(values) else None
