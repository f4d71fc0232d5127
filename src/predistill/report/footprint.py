"""What each model costs to use, beside what it is worth: footprint.json -> figures, a table, and a sentence."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from predistill.report.geometry import Chart, Dot, Line
from predistill.report.numbers import count, duration, nats, percent, size
from predistill.report.plot import linear, logarithmic, plot
from predistill.report.reading import Reader

__all__ = [
    "Draft",
    "Footprint",
    "Model",
    "colour_of",
    "cost_charts",
    "footprint_columns",
    "footprint_words",
    "read_footprint",
]

_COLOURS = {"LM": "lm", "PD": "c1"}
_EQUAL = 0.01  # relative: losses that are called the same


@dataclass(frozen=True)
class Draft:
    """The model as the teacher's draft: the share of its tokens that is accepted, and tokens a second without and with
    it."""

    rate: float | None
    teacher_tokens_per_second: float | None
    assisted_tokens_per_second: float | None

    @property
    def speed_up(self) -> float | None:
        """What the teacher gains in speed; below 1 it loses."""
        alone, assisted = self.teacher_tokens_per_second, self.assisted_tokens_per_second
        return assisted / alone if alone and assisted else None


@dataclass(frozen=True)
class Model:
    """One model; `kind` is LM, PD, or model where it is no run of ours. Speeds in tokens a second, by batch."""

    name: str
    kind: str
    parameters: int
    bytes_on_disk: int | None
    loss_nats: float | None
    bits_per_byte: float | None
    first_token_seconds: float | None
    prefill: Mapping[int, float]
    decode: Mapping[int, float]
    peak_memory_bytes: int | None
    draft: Draft | None


@dataclass(frozen=True)
class Footprint:
    """Models measured on one machine, one after the other."""

    path: Path
    command: str | None
    machine: Mapping[str, Any]
    threads: int | None
    prompt_tokens: int
    new_tokens: int
    rounds: int | None
    corpus: str | None
    teacher: str | None
    models: tuple[Model, ...]


def read_footprint(path: Path) -> Footprint:
    """A footprint.json. Raises RunError naming the file and the key."""
    found = Reader.of_file(path)
    return Footprint(
        path=path,
        command=found.get("command", str),
        machine=found.get("machine", dict) or {},
        threads=found.get("threads", int),
        prompt_tokens=found.need("prompt_tokens", int),
        new_tokens=found.need("new_tokens", int),
        rounds=found.get("rounds", int),
        corpus=found.get("corpus", str),
        teacher=found.get("teacher", str),
        models=tuple(_model(model) for model in found.each("models")),
    )


def _model(found: Reader) -> Model:
    batches = {int(name): batch for name, batch in found.named("batches").items() if name.isdigit()}
    draft = found.inner("acceptance") if found.get("acceptance", dict) else None
    return Model(
        name=found.need("name", str),
        kind=found.get("kind", str) or "model",
        parameters=found.need("parameters", int),
        bytes_on_disk=found.get("bytes_on_disk", int),
        loss_nats=found.get("loss_nats", _finite),
        bits_per_byte=found.get("bits_per_byte", _finite),
        first_token_seconds=found.get("time_to_first_token_seconds", float),
        prefill={size: batch.need("prefill_tokens_per_second", float) for size, batch in batches.items()},
        decode={size: batch.need("decode_tokens_per_second", float) for size, batch in batches.items()},
        peak_memory_bytes=found.get("peak_memory_bytes", int),
        draft=Draft(
            rate=draft.get("rate", float),
            teacher_tokens_per_second=draft.get("teacher_tokens_per_second", float),
            assisted_tokens_per_second=draft.get("assisted_tokens_per_second", float),
        )
        if draft
        else None,
    )


def cost_charts(footprint: Footprint, number: int) -> list[Chart]:
    """Held-out bits a byte against parameters, and against decoding speed, where models have them."""
    costs: tuple[tuple[str, str, str, Callable[[Model], float | None]], ...] = (
        ("parameters", "What a parameter buys", "parameters", lambda model: model.parameters),
        ("speed", "What speed costs", "tokens a second, one at a time", lambda model: model.decode.get(1)),
    )
    charts = []
    for key, title, across, cost in costs:
        points = [
            (model, x, model.bits_per_byte)
            for model in footprint.models
            if (x := cost(model)) and model.bits_per_byte is not None
        ]
        if len(points) < 2:
            continue
        x_axis = logarithmic(across, [x for _, x, _ in points], count)
        lines = [Line(model.name, model.name, colour_of(model), ([(x, y)],)) for model, x, y in points]
        for kind, colour in _COLOURS.items():
            way = sorted((x, y) for model, x, y in points if model.kind == kind)
            if len(way) > 1:
                lines.append(Line("", kind, colour, (way,)))
        rings = [Dot((x, y), 6.0, "ink", model.name, True) for model, x, y in points if model.name == footprint.teacher]
        charts.append(
            plot(
                lines,
                id=f"cost-{key}-{number}",
                title=title,
                unit="held-out bits a byte",
                description="; ".join(f"{m.name}: {count(x)} {across}, {nats(y)} bits a byte" for m, x, y in points),
                x=x_axis,
                y=linear("", [y for _, _, y in points], nats),
                dots=rings,
                note="Lower is better." + (" Ringed: the teacher." if rings else ""),
            )
        )
    return charts


def footprint_columns(footprint: Footprint) -> list[tuple[str, list[str | None]]]:
    """The table's columns after the name, and the text of each model; what nobody was measured for is left out."""
    models = footprint.models
    batches = sorted({batch for model in models for batch in model.decode})

    def column(name: str, value: Callable[[Model], float | None], shown: Callable[[float], str]) -> None:
        values = [value(model) for model in models]
        if any(each is not None for each in values):
            columns.append((name, [None if each is None else shown(each) for each in values]))

    columns: list[tuple[str, list[str | None]]] = []
    column("parameters", lambda model: model.parameters, count)
    column("bits a byte", lambda model: model.bits_per_byte, nats)
    column("bytes on disk", lambda model: model.bytes_on_disk, size)
    column("peak memory", lambda model: model.peak_memory_bytes, size)
    column("to the first token", lambda model: model.first_token_seconds, _milliseconds)
    for batch in batches:
        side = f", {batch} at a time" if batch > 1 else ""
        column(f"prompt tokens/s{side}", partial(_prefill, batch), count)
        column(f"new tokens/s{side}", partial(_decode, batch), count)
    column("accepted as draft", lambda model: model.draft.rate if model.draft else None, percent)
    column("teacher’s speed with it", lambda model: model.draft.speed_up if model.draft else None, _times)
    return columns


def footprint_words(footprint: Footprint) -> list[str]:
    """The smaller distilled student beside the plain one whose held-out loss is nearest to its own; none without such a
    pair."""
    pairs = [
        (ours, theirs)
        for ours in footprint.models
        for theirs in footprint.models
        if (ours.kind, theirs.kind) == ("PD", "LM")
        and ours.parameters < theirs.parameters
        and ours.bits_per_byte is not None
        and theirs.bits_per_byte is not None
    ]
    if not pairs:
        return []
    ours, theirs = min(pairs, key=lambda pair: abs(_behind(*pair)))
    apart = _behind(ours, theirs)
    sizes = f"{ours.name} ({count(ours.parameters)} parameters)", f"{theirs.name} ({count(theirs.parameters)})"
    losses = f"{nats(ours.bits_per_byte or 0.0)} against {nats(theirs.bits_per_byte or 0.0)} bits a byte"
    if apart > _EQUAL:
        text = (
            f"No smaller distilled student here is as good as a plain one: the nearest is {sizes[0]}, {percent(apart)} "
        )
        return [f"{text}behind {sizes[1]}, {losses}.{_savings(ours, theirs)}"]
    how = "is better than" if apart < -_EQUAL else "is as good as"
    return [f"The distilled {sizes[0]} {how} the plain {sizes[1]}: {losses}.{_savings(ours, theirs)}"]


def _savings(ours: Model, theirs: Model) -> str:
    """What the smaller one takes, of what the larger one takes."""
    said = [f"has {percent(ours.parameters / theirs.parameters, 0)} of the parameters"]
    if ours.peak_memory_bytes and theirs.peak_memory_bytes:
        said.append(f"takes {percent(ours.peak_memory_bytes / theirs.peak_memory_bytes, 0)} of the memory")
    if ours.decode.get(1) and theirs.decode.get(1):
        said.append(f"writes {ours.decode[1] / theirs.decode[1]:.2f} times as fast")
    return f" It {', '.join(said[:-1])}{' and ' if len(said) > 1 else ''}{said[-1]}."


def _behind(ours: Model, theirs: Model) -> float:
    assert ours.bits_per_byte is not None
    assert theirs.bits_per_byte is not None
    return ours.bits_per_byte / theirs.bits_per_byte - 1


def _prefill(batch: int, model: Model) -> float | None:
    return model.prefill.get(batch)


def _decode(batch: int, model: Model) -> float | None:
    return model.decode.get(batch)


def _times(ratio: float) -> str:
    return f"{ratio:.2f}×"


def colour_of(model: Model) -> str:
    """As on the rest of the page: a baseline, a distilled one, or another."""
    return _COLOURS.get(model.kind, "ink")


def _finite(value: Any) -> float | None:
    """A diverged student has no loss."""
    number = float(value)
    return number if math.isfinite(number) else None


def _milliseconds(seconds: float) -> str:
    return duration(seconds) if seconds >= 10 else f"{1000 * seconds:.3g}\N{NARROW NO-BREAK SPACE}ms"
