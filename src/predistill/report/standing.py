"""Where runs that have not ended stand, and what the watch found: two short sections, for whoever looks on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from predistill.report.numbers import count, duration, nats, signed
from predistill.report.records import Record

__all__ = ["Found", "Standing", "findings", "standings"]

_MOST = 40  # findings of one run that are written out
_DONE = {"stop": "The run was stopped here.", "rollback": "The run went back to a checkpoint.", "skip": "Left out."}


@dataclass(frozen=True)
class Standing:
    """How far a run is, and what it shows so far, in words; `share` of its tokens."""

    run: str
    colour: str
    share: float
    words: str


@dataclass(frozen=True)
class Found:
    """A finding of the watch, as the page shows it."""

    id: str
    run: str
    colour: str
    step: int
    sentence: str
    action: str
    severe: bool
    record: Record
    finding: Mapping[str, Any]


def standings(records: Sequence[Record], names: Sequence[str], colours: Sequence[str]) -> list[Standing]:
    """One for every run that has not ended: stopped, killed or still going, which its files do not tell apart."""
    return [
        Standing(name, colour, min(1.0, record.tokens / record.planned_tokens), _words(record))
        for record, name, colour in zip(records, names, colours, strict=True)
        if record.state == "unfinished"
    ]


def findings(records: Sequence[Record], names: Sequence[str], colours: Sequence[str]) -> list[Found]:
    """What the watch found, run by run in the order of steps; of a run with very many, the severe and the newest."""
    found = []
    for number, (record, name, colour) in enumerate(zip(records, names, colours, strict=True), 1):
        kept = sorted(record.findings, key=lambda finding: (finding["severe"], finding["step"]))[-_MOST:]
        for i, finding in enumerate(sorted(kept, key=lambda finding: finding["step"]), 1):
            found.append(
                Found(
                    id=f"finding-{number}-{i}",
                    run=name,
                    colour=colour,
                    step=finding["step"],
                    sentence=_without_step(finding["sentence"]),
                    action=_DONE.get(finding["action"], ""),
                    severe=finding["severe"],
                    record=record,
                    finding=finding,
                )
            )
    return found


def _words(record: Record) -> str:
    if not record.steps:
        return "No step yet."
    last, steps = record.steps[-1], record.planned_steps
    of = f" of {steps:,}" if steps else ""
    words = [f"Step {last['step']:,}{of}, {count(record.tokens)} tokens."]
    if math.isfinite(lm := last.get("lm", math.nan)):
        words.append(f"Training loss on the next token {nats(lm)}.")
    words += _held_out(record)
    seconds = last.get("seconds")
    if seconds:
        left = f", about {duration(seconds / last['step'] * (steps - last['step']))} to go" if steps else ""
        words.append(f"{duration(seconds)} of training so far{left}.")
    return " ".join(words)


def _held_out(record: Record) -> list[str]:
    lines = record.main_heldouts
    if not lines:
        return []
    change = (
        f", {signed(lines[-1]['loss_nats'] - lines[-2]['loss_nats'])} since the one before" if len(lines) > 1 else ""
    )
    return [f"Held-out loss {nats(lines[-1]['loss_nats'])} at step {lines[-1]['step']:,}{change}."]


def _without_step(sentence: str) -> str:
    """The page shows the step beside it."""
    head, colon, rest = sentence.partition(": ")
    return rest[:1].upper() + rest[1:] if colon and head.lower().startswith("step ") else sentence
