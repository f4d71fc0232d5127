"""`predistill store select`: a narrower cut of a store, or some of its rows, as a new store; no teacher is needed.

What is kept keeps its log-probabilities to the bit of the grid, what is dropped joins the rest: reading the new store
is reading the old one through the narrower truncation, up to the grid of the rest.
"""

# n rows  E entries of all positions
from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pydantic import TypeAdapter

from predistill.errors import RecipeError
from predistill.objective import Sampled, TopK, TopP, TopPK, Truncation, check_narrower
from predistill.store import RowTargets, Store, StoreWriter
from predistill.store.calibration import measured
from predistill.store.layout import facts_of
from predistill.store.record import parse_head
from predistill.store.verbs.begun import check_going_on, sample_of
from predistill.store.verbs.costs import carry_costs
from predistill.teachers.csr import csr_arrays, padded_targets
from predistill.teachers.narrowed import narrowed
from predistill.teachers.stored import stored_truncation

__all__ = ["choose_rows", "narrower_cut", "parse_rows", "select"]

BATCH_ROWS = 32
Progress = Callable[[int, int], None]
Rows = npt.NDArray[np.int64]


def select(
    where: str | Path,
    *,
    out: str | Path,
    top_p: float | None = None,
    top_k: int | None = None,
    draws: int | None = None,
    rows: str | None = None,
    fraction: float | None = None,
    seed: int = 0,
    shard_bytes: int = 256 << 20,
    on_progress: Progress | None = None,
) -> Store:
    """Write a part of store `where` to a new store `out`, partial where rows are left out.

    `top_p`, `top_k`, `draws`: at most what the store kept; what is not given stays. `rows`: "0:1000", or "1000" for the
    first so many of the corpus split; `fraction`: a random part of the rows that are there, nested: with the same
    `seed` a smaller one is part of a larger one. The same call goes on after a stop. `on_progress(rows done, rows)`.
    Raises `StoreError` or `RecipeError`.
    """
    store = Store(where)
    kept = stored_truncation(store)
    cut = narrower_cut(kept, top_p=top_p, top_k=top_k, draws=draws)
    chosen = choose_rows(store, rows=rows, fraction=fraction, seed=seed)
    selection = _Selection(store, kept, cut)
    with StoreWriter(out, manifest=selection.facts(), permutation=store.permutation, shard_bytes=shard_bytes) as writer:
        check_going_on(writer, chosen)
        for start in range(0, len(chosen), BATCH_ROWS):
            batch = np.array([row for row in chosen[start : start + BATCH_ROWS].tolist() if row not in writer])
            for record in selection.records(batch, writer) if len(batch) else ():
                writer.append(record)
            if on_progress is not None:
                on_progress(min(start + BATCH_ROWS, len(chosen)), len(chosen))
        carry_costs([store.place], writer.place)
        writer.seal(selection.self_test(chosen), rows_expected=len(store), partial=True)
    return Store(out)


def narrower_cut(kept: Truncation, *, top_p: float | None, top_k: int | None, draws: int | None) -> Truncation:
    """The truncation that is asked for; what was not given is what the store kept. Raises RecipeError for a wider."""
    if isinstance(kept, Sampled):
        if top_p is not None or top_k is not None:
            raise RecipeError(
                f"The store holds {kept.draws} random draws: --draws makes them fewer, nothing else does."
            )
        return kept if draws is None else _checked(replace(kept, draws=draws), kept)
    if draws is not None:
        raise RecipeError("--draws: the store holds no random draws. Capture some with `predistill capture --draws`.")
    p = top_p if top_p is not None else getattr(kept, "p", None)
    k = top_k if top_k is not None else getattr(kept, "k", None)
    cut: Truncation = TopP(p=1.0)
    if p is not None:
        cut = TopP(p=p) if k is None else TopPK(p=p, k=k)
    elif k is not None:
        cut = TopK(k=k)
    return _checked(cut, kept)


def choose_rows(store: Store, *, rows: str | None, fraction: float | None, seed: int) -> Rows:
    """The rows of the store that are asked for, ascending; `RecipeError` where that is none."""
    there = store.present()
    if rows is not None and fraction is not None:
        raise RecipeError("--rows and --fraction both choose rows: give one.")
    if rows is not None:
        start, stop = parse_rows(rows, len(store))
        there = there[(there >= start) & (there < stop)]
    if fraction is not None:
        if not 0 < fraction <= 1:
            raise RecipeError(f"--fraction {fraction:g}: give a fraction above 0 and at most 1.")
        place = np.random.default_rng(seed).random(len(store))  # a row's own, whatever else is there
        there = there[place[there] < fraction]
    if not len(there):
        raise RecipeError(f"{store.path}: none of its {store.totals['rows']:,} rows is among those asked for.")
    return there


def parse_rows(text: str, rows: int) -> tuple[int, int]:
    """(start, stop) of "start:stop", "start:" or "stop"; `RecipeError` for anything else."""
    start, colon, stop = text.rpartition(":")
    try:
        span = int(start or 0), int(stop) if stop or not colon else rows
    except ValueError:
        span = (0, 0)
    if not 0 <= span[0] < span[1]:
        raise RecipeError(f'--rows "{text}": give START:STOP, such as 0:1000, or how many from the first on.')
    return span[0], min(span[1], rows)


class _Selection:
    """Rows of a store under a narrower cut."""

    def __init__(self, store: Store, kept: Truncation, cut: Truncation) -> None:
        self._store, self._kept, self._cut = store, kept, cut
        self._draws = kept.draws if isinstance(kept, Sampled) else None
        self._tau = None
        if isinstance(kept, Sampled) and kept.proposal_temperature != 1:
            self._tau = kept.proposal_temperature

    def facts(self) -> dict[str, Any]:
        """The source's, with the cut, and where it is from."""
        facts = facts_of(self._store.manifest)
        key = "sampling" if isinstance(self._cut, Sampled) else "truncation"
        fields = TypeAdapter(type(self._cut)).dump_python(self._cut, mode="json")
        facts[key] = {**({"seed": facts[key]["seed"]} if "seed" in facts[key] else {}), **fields}
        if self._cut == self._kept:
            facts[key] = self._store.manifest[key]
        return {**facts, "selected_from": self._store.manifest["store_id"]}

    def records(self, rows: Rows, writer: StoreWriter) -> list[bytes]:
        """The new records."""
        records = self._store.records(rows)
        if self._cut == self._kept:
            return records
        targets = self._narrowed(rows)
        return [
            writer.packed(row, parse_head(data).token_hash, targets.row(i))
            for i, (row, data) in enumerate(zip(rows.tolist(), records, strict=True))
        ]

    def self_test(self, rows: Rows) -> dict[str, Any]:
        """What the source measured of its teacher; of what is kept, means over rows evenly spaced."""
        found = dict(self._store.manifest["self_test"])
        if self._cut == self._kept:
            return found
        sample = measured([self._narrowed(sample_of(rows))])
        return found | {name: sample[name] for name in ("mean_entries", "mean_kept_mass") if name in sample}

    def _narrowed(self, rows: Rows) -> RowTargets:
        """Rows as they are to be written: values on the grid, whose integers stay as they are."""
        stored = self._store.rows(rows)
        if self._cut == self._kept:
            return stored
        padded = padded_targets(stored, draws=self._draws, device=torch.device("cpu"), tau=self._tau)
        cut: dict[str, Any] = csr_arrays(narrowed(padded, rows, self._cut))
        if isinstance(self._cut, Sampled):
            return replace(stored, **cut)
        # A prefix of each position; the log-probabilities as they lie in the store, not scaled to the old kept mass.
        length_N = cut["length_N"].astype(np.int32)
        place_E = np.arange(len(stored.ids_E)) - np.repeat(
            np.cumsum(stored.length_N) - stored.length_N, stored.length_N
        )
        kept_E = place_E < np.repeat(length_N, stored.length_N)
        grid = self._store.rows(rows, fields=(), scaled=False)
        assert grid.logprob_E is not None
        return replace(
            stored,
            length_N=length_N,
            ids_E=stored.ids_E[kept_E],
            logprob_E=grid.logprob_E[kept_E],
            log_rest_N=cut["log_rest_N"],
        )


def _checked(cut: Truncation, kept: Truncation) -> Truncation:
    check_narrower(cut, kept)
    return cut
