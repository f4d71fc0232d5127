"""Run records -> the final table: runs grouped by recipe over seeds, each beside its matched baseline.

A baseline of a distilled run is a run without a teacher that is the same in everything else that can move the loss:
corpus (by fingerprint), student, tokens, batch, seed, learning rate, optimizer, precision, and the held-out tokens that
it was measured on.
"""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

from predistill.fingerprint import settings_fingerprint
from predistill.report.records import Record, State

__all__ = ["Group", "Pair", "Row", "group_records", "matched_pairs", "run_labels", "table_rows"]

_OBJECTIVE = frozenset({"teacher", "alpha", "truncation", "temperature", "tail", "loss", "positions"})
_NOT_IN_THE_LOSS = frozenset(
    {
        "name", "log_targets", "evaluate_every", "checkpoint_every", "keep", "keep_every", "micro_batch_rows",
        "readers", "heldout", "watch", "compile", "activation_checkpointing", "shard",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Group:
    """Runs of one recipe that differ in the seed only. `label` is unique in a report, `short` is for narrow places."""

    label: str
    short: str
    distilled: bool
    records: tuple[Record, ...]


@dataclass(frozen=True)
class Pair:
    """A distilled run and its matched baseline, both measured."""

    distilled: Record
    baseline: Record

    @property
    def difference_nats(self) -> float:
        """Held-out loss of the distilled run less that of the baseline: below zero, the teacher helped."""
        assert self.distilled.loss_nats is not None
        assert self.baseline.loss_nats is not None
        return self.distilled.loss_nats - self.baseline.loss_nats

    @property
    def cost_ratio(self) -> float | None:
        """Training time of the distilled run over that of the baseline; None across machines."""
        ours, theirs = self.distilled.cost_seconds, self.baseline.cost_seconds
        return ours / theirs if ours and theirs and self.distilled.machine == self.baseline.machine else None


@dataclass(frozen=True)
class Row:
    """One line of the table. Losses in nats, times in seconds, shares as fractions; None = not measured."""

    run: str
    recipe: str
    kind: Literal["LM", "PD"]
    seed: int
    state: State
    progress: float
    tokens: int
    loss_nats: float | None
    difference_nats: float | None
    bits_per_byte: float | None
    kl_nats: float | None
    agreement: float | None
    ece: float | None
    train_seconds: float | None
    train_cpu_seconds: float | None
    cost_ratio: float | None
    flops: float | None
    baseline: str | None
    train_command: str | None
    evaluate_command: str | None


def run_labels(records: Sequence[Record]) -> list[str]:
    """The directories' names, with as much of the path before them as tells them apart."""
    parts = [record.path.resolve().parts for record in records]
    for depth in itertools.count(1):
        names = ["/".join(path[-depth:]) for path in parts]
        if len(set(names)) == len(names):
            return names
    raise AssertionError("two records of one directory")


def group_records(records: Sequence[Record]) -> list[Group]:
    """Groups: baselines, then distilled, the lower loss first; the records of a group by seed."""
    by_recipe: dict[str, list[Record]] = {}
    for record in records:
        by_recipe.setdefault(_recipe_key(record), []).append(record)
    found = [sorted(group, key=lambda record: (record.seed, str(record.path))) for group in by_recipe.values()]
    found.sort(key=lambda group: (group[0].distilled, _mean_loss(group), _name(group[0]), str(group[0].path)))
    firsts = [group[0] for group in found]
    one_name = len({_name(record) for record in firsts}) == 1
    names = []
    for record in firsts:
        apart = _apart(record, [other for other in firsts if _name(other) == _name(record)])
        label = ", ".join(f"{key} {value}".strip() for key, value in apart.items())
        short = label if len(label) <= 13 else " ".join(apart.values())
        names.append(
            (label if one_name else f"{_name(record)} · {label}", short) if apart else (_name(record), _name(record))
        )
    taken = Counter(label for label, _ in names)
    return [
        Group(f"{label} #{i}" if taken[label] > 1 else label, short, group[0].distilled, tuple(group))
        for i, (group, (label, short)) in enumerate(zip(found, names, strict=True), 1)
    ]


def matched_pairs(records: Sequence[Record]) -> list[Pair]:
    """Every measured distilled run that has a measured baseline; the first by path when there are several."""
    baselines: dict[str, Record] = {}
    for record in sorted(records, key=lambda record: str(record.path)):
        if not record.distilled and record.state == "finished":
            baselines.setdefault(_baseline_key(record), record)
    return [
        Pair(record, baselines[_baseline_key(record)])
        for record in records
        if record.distilled and record.state == "finished" and _baseline_key(record) in baselines
    ]


def table_rows(records: Sequence[Record]) -> list[Row]:
    """The table, group by group."""
    label = dict(zip((record.path for record in records), run_labels(records), strict=True))
    pairs = {pair.distilled.path: pair for pair in matched_pairs(records)}
    rows = []
    for group in group_records(records):
        for record in group.records:
            pair = pairs.get(record.path)
            rows.append(
                Row(
                    run=label[record.path],
                    recipe=group.label,
                    kind="PD" if record.distilled else "LM",
                    seed=record.seed,
                    state=record.state,
                    progress=min(1.0, record.tokens / record.planned_tokens),
                    tokens=record.tokens,
                    loss_nats=record.loss_nats,
                    difference_nats=pair.difference_nats if pair else None,
                    bits_per_byte=record.bits_per_byte,
                    kl_nats=record.kl_nats,
                    agreement=record.agreement,
                    ece=record.ece,
                    train_seconds=record.train_seconds,
                    train_cpu_seconds=record.train_cpu_seconds,
                    cost_ratio=pair.cost_ratio if pair else None,
                    flops=record.flops,
                    baseline=label[pair.baseline.path] if pair else None,
                    train_command=record.train_command,
                    evaluate_command=record.evaluate_command,
                )
            )
    return rows


def _settings(record: Record, without: Iterable[str]) -> dict[str, Any]:
    """What moves the loss, with the content of each corpus in the place of its path."""
    settings = {key: value for key, value in record.recipe.items() if key not in without}
    entries = [entry for entry in settings.get("corpus") or () if isinstance(entry, Mapping)]
    if len(record.corpora) == len(entries):
        settings["corpus"] = [
            {**{key: value for key, value in entry.items() if key not in ("path", "store")}, "fingerprint": fingerprint}
            for entry, fingerprint in zip(entries, record.corpora, strict=True)
        ]
    return settings


def _baseline_key(record: Record) -> str:
    return settings_fingerprint([_settings(record, _NOT_IN_THE_LOSS | _OBJECTIVE), record.heldout_tokens])


def _recipe_key(record: Record) -> str:
    without = _NOT_IN_THE_LOSS | {"seed"} | (frozenset() if record.distilled else _OBJECTIVE)
    stores = sorted(store.path for store in record.stores) if record.distilled else []
    return settings_fingerprint([record.distilled, _settings(record, without), stores])


def _name(record: Record) -> str:
    """The recipe's name, less a seed that was written at its end."""
    return re.sub(rf"[-_. ](seed|s)[-_. ]?{record.seed}$", "", record.name)


def _mean_loss(group: Sequence[Record]) -> float:
    losses = [record.loss_nats for record in group if record.state == "finished" and record.loss_nats is not None]
    return fmean(losses) if losses else math.inf


def _apart(record: Record, namesakes: Sequence[Record]) -> dict[str, str]:
    """{"temperature": "2.0"}: the keys of the recipe in which recipes of one name differ, as they stand in this one."""
    alike = [other for other in namesakes if other.distilled == record.distilled]
    kind = {} if len(alike) == len(namesakes) else {"PD" if record.distilled else "LM": ""}
    without = _NOT_IN_THE_LOSS | {"seed"} | (frozenset() if record.distilled else _OBJECTIVE)
    own, others = _flat(_settings(record, without)), [_flat(_settings(other, without)) for other in alike]
    keys = [key for key in own if any(other.get(key, own[key]) != own[key] for other in others)]
    differing = {re.sub(r"[.](kind|value|preset)$", "", key): str(own[key]) for key in keys}
    return differing if record.distilled and differing else kind | differing


def _flat(node: Any, key: str = "") -> dict[str, Any]:
    if isinstance(node, Mapping):
        items = node.items()
    elif isinstance(node, list):
        items = {str(i): item for i, item in enumerate(node)}.items()
    else:
        return {key: node}
    return {k: v for name, item in items for k, v in _flat(item, f"{key}.{name}" if key else str(name)).items()}
