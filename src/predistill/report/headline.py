"""The finding in plain words, computed from the records: no more certain than they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean

from predistill.report.gains import Gain
from predistill.report.numbers import count, duration, nats, percent, signed
from predistill.report.records import Record

__all__ = ["Headline", "headline"]


@dataclass(frozen=True)
class Headline:
    """The finding in one line, and the paragraphs that a careful reader wants next."""

    verdict: str
    paragraphs: tuple[str, ...]


def headline(found: Sequence[Gain], records: Sequence[Record]) -> Headline:
    """The finding in words, from the best recipe when there are several, and then saying so."""
    if not found:
        return Headline(_nothing(records), _paragraphs([_why_nothing(records)], _unfinished(records)))
    best = found[0]
    finding = [_compared(best), _certainty(best), *_chosen(found)]
    return Headline(
        _verdict(best, len(found)),
        _paragraphs(finding, [*_likeness(best), *_cost(best)], _unfinished(records)),
    )


def _paragraphs(*paragraphs: Sequence[str]) -> tuple[str, ...]:
    return tuple(" ".join(sentences) for sentences in paragraphs if sentences)


def _verdict(gain: Gain, recipes: int) -> str:
    size = f"{nats(abs(gain.mean))} nats a token ({percent(abs(gain.share))})"
    seeds = len(gain.pairs)
    best = f", in the best of {recipes} recipes" if recipes > 1 else ""
    if gain.interval is None:
        if gain.mean < 0:
            return f"With the teacher, held-out loss is {size} lower, on one seed{best}."
        return f"The teacher did not help: held-out loss is {size} higher, on one seed{best}."
    low, high = gain.interval
    if high < 0:
        return f"The teacher helped{best}: held-out loss is {size} lower, over {seeds} seeds."
    if low > 0:
        even = best.replace(", in", ", even in")
        return f"The teacher did harm{even}: held-out loss is {size} higher, over {seeds} seeds."
    side = "lower" if gain.mean < 0 else "higher"
    return f"No clear gain{best}: held-out loss is {size} {side} over {seeds} seeds, which may be chance."


def _compared(gain: Gain) -> str:
    with_teacher = fmean(pair.distilled.loss_nats or math.nan for pair in gain.pairs)
    without = fmean(pair.baseline.loss_nats or math.nan for pair in gain.pairs)
    tokens, label = count(gain.pairs[0].distilled.tokens), gain.group.label
    name = f"“{label}”" if " " in label else label
    mean = "reaches" if len(gain.pairs) == 1 else "reaches a mean of"
    return (
        f"After {tokens} tokens, {name} {mean} {nats(with_teacher)} nats a held-out token; the same student on the "
        f"same tokens in the same order, without a teacher, {nats(without)}."
    )


def _certainty(gain: Gain) -> str:
    if gain.interval is None:
        return (
            "One seed gives no interval: two runs that differ in nothing but the seed may lie as far apart. "
            "Train both recipes with two more seeds before you build on it."
        )
    seeds, better = len(gain.pairs), sum(difference < 0 for difference in gain.differences)
    low, high = (signed(bound) for bound in gain.interval)
    return (
        f"The mean difference is {signed(gain.mean)}, with a {percent(0.95, 0)} interval from {low} to {high} "
        f"(paired t, {seeds} seeds); the distilled run is ahead on "
        f"{'every seed' if better == seeds else f'{better} of {seeds} seeds'}."
    )


def _chosen(found: Sequence[Gain]) -> list[str]:
    if len(found) == 1:
        return []
    ahead = sum(gain.mean < 0 for gain in found)
    among = f"It is the best of {len(found)} distilled recipes ({ahead} ahead of their baseline)"
    return [f"{among}, picked after the fact: expect somewhat less of it when it is run again."]


def _likeness(gain: Gain) -> list[str]:
    """Nearness to the teacher and calibration, with the same measure of the baselines beside it."""
    sentences = []
    teacher_loss = gain.pairs[0].distilled.teacher_loss_nats
    without = fmean(pair.baseline.loss_nats or math.nan for pair in gain.pairs)
    if teacher_loss is not None and teacher_loss < without and gain.mean < 0:
        closed = percent(-gain.mean / (without - teacher_loss), 0)
        way = f"The difference is {closed} of the way from the baseline to the teacher itself"
        sentences.append(f"{way}, which stands at {nats(teacher_loss)}.")
    one_teacher = len({record.teacher for pair in gain.pairs for record in (pair.distilled, pair.baseline)}) == 1
    kl, kl_without = _mean_of(gain, "kl_nats", nats) if one_teacher else (None, None)
    ece, ece_without = _mean_of(gain, "ece", percent)
    if kl and kl_without:
        sentences.append(f"The KL divergence from the teacher is {kl}, against {kl_without} without it.")
    if ece and ece_without:
        sentences.append(f"The calibration error is {ece}, against {ece_without}.")
    return sentences


def _mean_of(gain: Gain, name: str, shown: Callable[[float], str]) -> tuple[str | None, str | None]:
    sides = [[getattr(getattr(pair, side), name) for pair in gain.pairs] for side in ("distilled", "baseline")]
    texts = [None if None in values else shown(fmean(values)) for values in sides]
    return texts[0], texts[1]


def _cost(gain: Gain) -> list[str]:
    ratios = [pair.cost_ratio for pair in gain.pairs if pair.cost_ratio is not None]
    if not ratios:
        return []
    run = gain.pairs[0].distilled
    clock = "processor time" if run.on_cpu else "wall-clock time"
    cost = f"In {clock}, training cost {fmean(ratios):.2f} times its baseline"
    if run.live_teacher is not None:
        return [f"{cost}, the forward passes of the teacher beside it ({run.live_teacher}) included."]
    captures = [store.capture for store in run.stores]
    passes = [(capture.cpu_seconds if run.on_cpu else capture.seconds) if capture else None for capture in captures]
    known = [seconds for seconds in passes if seconds is not None]
    if not known or len(known) < len(passes):
        return [f"{cost}; the teacher’s pass over the corpus is not in this."]
    mean_seconds = fmean(pair.distilled.cost_seconds or math.nan for pair in gain.pairs)
    whole = fmean(ratios) * (mean_seconds + sum(known)) / mean_seconds
    once = f"The teacher’s pass over the corpus cost {duration(sum(known))} more, once for any number of students"
    return [f"{cost}.", f"{once}; charged to this student alone, it would be {whole:.2f} times."]


def _nothing(records: Sequence[Record]) -> str:
    if len(records) == 1 and records[0].state == "unfinished":
        return f"Not finished: {percent(min(1.0, records[0].tokens / records[0].planned_tokens), 0)} trained."
    if any(record.state == "unfinished" for record in records):
        return "Nothing to compare yet."
    if not any(record.distilled for record in records):
        return "No distilled run here."
    return "No distilled run here has a matched baseline."


def _why_nothing(records: Sequence[Record]) -> str:
    distilled = sum(record.distilled for record in records)
    return (
        f"The report holds {distilled} distilled and {len(records) - distilled} plain runs. A gain can be named once a "
        "distilled and a plain run of the same corpus, student, tokens, seed, learning rate and optimizer are both "
        "trained, and evaluated on the same held-out tokens."
    )


def _unfinished(records: Sequence[Record]) -> list[str]:
    said = [
        f"{number} of {len(records)} runs {state}"
        for state in ("unfinished", "not evaluated", "diverged")
        if (number := sum(record.state == state for record in records))
    ]
    return [f"Not counted: {', '.join(said)}."] if said else []
