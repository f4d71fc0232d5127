"""`predistill store merge`: stores of different rows of one corpus become one, their records as they are."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError
from predistill.store.layout import facts_of
from predistill.store.reader import Store
from predistill.store.record import parse_head
from predistill.store.verbs.begun import check_going_on
from predistill.store.verbs.costs import carry_costs
from predistill.store.writer import StoreWriter

__all__ = ["merge"]

BATCH_ROWS = 64
OWN = ("capture", "selected_from", "merged_from")  # in which stores to merge may differ, beside the engine's versions
Progress = Callable[[int, int], None]


def merge(
    stores: Sequence[str | Path],
    *,
    out: str | Path,
    shard_bytes: int = 256 << 20,
    on_progress: Progress | None = None,
) -> Store:
    """Write the rows of `stores` to a new store `out`, in row order; it is partial where not all rows are there.

    They are of one corpus, teacher and truncation; how each was captured may differ, and stands in the new manifest
    under merged_from. A row that several hold is taken once, if they hold the same of it. Records are copied, or
    written anew through the first store's id permutation, which changes no value. The same call goes on after a stop.
    `on_progress(rows done, rows)`. Raises `StoreError`.
    """
    if len(stores) < 2:
        raise StoreError("merge takes two stores or more. Name them, then --out.")
    opened = [Store(where) for where in stores]
    first = opened[0]
    for other in opened[1:]:
        _check_alike(first, other)
    source = _first_holders(opened)
    rows = np.flatnonzero(source >= 0)
    facts = facts_of(first.manifest)
    if any(store.manifest["store_id"] != first.manifest["store_id"] for store in opened):
        facts.pop("selected_from", None)
        facts["merged_from"] = [_origin(store) for store in opened]
    with StoreWriter(out, manifest=facts, permutation=first.permutation, shard_bytes=shard_bytes) as writer:
        check_going_on(writer, rows)
        for start in range(0, len(rows), BATCH_ROWS):
            batch = rows[start : start + BATCH_ROWS]
            records: dict[int, bytes] = {}
            for store in opened:
                held = batch[store.has(batch)]
                for row, data in zip(held.tolist(), _records(store, held, writer, first), strict=True):
                    if records.setdefault(row, data) != data:
                        raise StoreError(
                            f"{store.path}: row {row:,} is in {opened[source[row]].path} too, and not the same there. "
                            f"Leave one out (`predistill store select --rows`), then merge into another place than "
                            f"{out}."
                        )
            for row in batch.tolist():
                if row not in writer:
                    writer.append(records[row])
            if on_progress is not None:
                on_progress(start + len(batch), len(rows))
        carry_costs([store.place for store in opened], writer.place)
        writer.seal(_self_test(opened), rows_expected=len(first), partial=True)
    return Store(out)


def _check_alike(first: Store, other: Store) -> None:
    """`StoreError` unless the two can be parts of one store."""
    ours, theirs = _comparable(first), _comparable(other)
    for key in sorted(ours.keys() | theirs.keys(), key=lambda key: (key not in ("truncation", "sampling"), key)):
        if ours.get(key) != theirs.get(key):
            raise StoreError(
                f"{other.path}: its {key} is not that of {first.path} ({theirs.get(key)} and {ours.get(key)}). Only "
                "stores of one corpus, teacher and truncation merge; `predistill store select` makes a cut narrower."
            )


def _comparable(store: Store) -> dict[str, Any]:
    """The facts that all rows of a store share, flat enough to name in a sentence."""
    facts = {key: value for key, value in facts_of(store.manifest).items() if key not in OWN}
    teacher = {f"teacher {key}": value for key, value in facts.pop("teacher").items() if key != "engine"}
    corpus = {f"corpus {key}": value for key, value in facts.pop("corpus", {}).items()}
    rows = {"number of rows": len(store), "row length": store.manifest["row_len"]}
    return {**facts, **teacher, **corpus, **rows, "streams": sorted(store.manifest["streams"])}


def _first_holders(opened: list[Store]) -> npt.NDArray[np.int16]:
    """Of each row the first store that holds it; -1: none."""
    source = np.full(len(opened[0]), -1, np.int16)
    for number, store in reversed(list(enumerate(opened))):
        source[store.present()] = number
    return source


def _records(store: Store, rows: npt.NDArray[np.int64], writer: StoreWriter, first: Store) -> list[bytes]:
    """The records of rows, as the new store holds them."""
    if not len(rows):
        return []
    records = store.records(rows)
    if store.manifest["permutation"] == first.manifest["permutation"]:
        return records
    targets = store.rows(rows, scaled=False)  # on the grid, so that they are packed to the same integers
    return [
        writer.packed(row, parse_head(data).token_hash, targets.row(i))
        for i, (row, data) in enumerate(zip(rows.tolist(), records, strict=True))
    ]


def _origin(store: Store) -> dict[str, Any]:
    manifest = store.manifest
    return {
        "store_id": manifest["store_id"],
        "rows": store.totals["rows"],
        "engine": manifest["teacher"].get("engine"),
        **{key: manifest[key] for key in OWN if key in manifest},
    }


def _self_test(opened: list[Store]) -> dict[str, Any]:
    """Means over all samples, weighted by their rows; counts are summed."""
    tests = [store.manifest["self_test"] for store in opened]
    if all(test == tests[0] for test in tests):
        return dict(tests[0])
    weights = [float(test.get("sample_rows", 1)) for test in tests]
    merged: dict[str, Any] = {}
    for name in tests[0]:
        values = [test.get(name) for test in tests]
        if not all(isinstance(value, int | float) for value in values):
            continue
        counted = name.endswith("_rows")
        merged[name] = sum(values) if counted else float(np.average(values, weights=weights))
    return merged
