"""`predistill store inspect`: what a store holds, where its bytes go, what it was made from and what that took."""

# n rows  N positions of the sample
from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.store import layout
from predistill.store.calibration import measured
from predistill.store.place import Place
from predistill.store.reader import Store
from predistill.store.verbs.begun import begun_parts, begun_writers, reached, sample_of
from predistill.store.verbs.costs import total_cost

__all__ = ["contents"]

SAMPLE_ROWS = 256
MADE_FROM = ("teacher", "tokenizer", "corpus", "truncation", "sampling", "capture", "selected_from", "merged_from")


def contents(where: str | Path, *, rows: int = SAMPLE_ROWS) -> dict[str, Any]:
    """The facts of a store, sealed or in the making; means and histogram are over so many of its rows, evenly spaced.

    Of a sealed one: {"store", "complete": True, "rows", "rows_there", "row_len", "positions", "entries", "bytes",
    "shards", "writers", "bytes_per_position", "streams": {name: {"bytes", "per_position", "per_entry", "share"}},
    "sample": means, and "histogram": [{"from", "to", "share"}] of the entries a position, "made_from", "self_test",
    "cost", "manifest"}. Of one in the making: {"store", "complete": False, "rows_there", "bytes", "writers":
    [{"number", "state", "rows", "bytes", "heard"}], "made_from", "cost"}. Raises `StoreError`.
    """
    place = reached(where)
    if not layout.is_complete(place):
        return _begun(place)
    store = Store(where)
    manifest, totals = store.manifest, store.manifest["totals"]
    return {
        "store": store.path,
        "complete": True,
        "store_id": manifest["store_id"],
        "rows": len(store),
        "rows_there": totals["rows"],
        "rows_twice": totals["rows_twice"],
        "row_len": manifest["row_len"],
        **{name: totals[name] for name in ("positions", "entries", "bytes")},
        "shards": len(place.names("shards")),
        "writers": len(manifest["writers"]),
        "bytes_per_position": totals["bytes"] / max(totals["positions"], 1),
        "streams": _streams(store),
        "sample": _sample(store, rows),
        "made_from": _made_from(manifest),
        "self_test": manifest["self_test"],
        "cost": total_cost(place),
        "manifest": manifest,
    }


def _begun(place: Place) -> dict[str, Any]:
    if not place.names("parts"):
        Store(str(place))  # which says what is wrong
    parts = begun_parts(place)
    writers = begun_writers(place, parts)
    return {
        "store": str(place),
        "complete": False,
        "store_id": parts[0]["store_id"],
        "rows_there": sum(writer.rows for writer in writers),
        "row_len": next((part["row_len"] for part in parts if part["row_len"] is not None), None),
        "bytes": sum(writer.bytes for writer in writers),
        "writers": [asdict(writer) for writer in writers],
        "made_from": _made_from(parts[0]["facts"]),
        "cost": total_cost(place),
    }


def _made_from(facts: dict[str, Any]) -> dict[str, Any]:
    return {key: facts[key] for key in MADE_FROM if key in facts}


def _streams(store: Store) -> dict[str, dict[str, float]]:
    totals = store.totals
    return {
        name: {
            "bytes": size,
            "per_position": size / max(totals["positions"], 1),
            "per_entry": size / max(totals["entries"], 1),
            "share": size / max(totals["bytes"], 1),
        }
        for name, size in store.bytes_by_stream().items()
    }


def _sample(store: Store, rows: int) -> dict[str, Any]:
    """Means over some rows, and how many entries their positions keep."""
    there = store.present()
    if not len(there):
        return {"sample_rows": 0, "histogram": []}
    targets = store.rows(sample_of(there, rows))
    return {**measured([targets]), "histogram": _histogram(targets.length_N)}


def _histogram(length_N: npt.NDArray[np.int32]) -> list[dict[str, Any]]:
    """Shares of the positions with 0, 1, 2, 3 to 4, 5 to 8, ... entries, from the fewest to the most found."""
    least, most = int(length_N.min()), int(length_N.max())
    bins = [(0, 0), (1, 1)]
    while bins[-1][1] < most:
        bins.append((bins[-1][1] + 1, 2 * bins[-1][1]))
    found = []
    for start, stop in bins:
        if stop >= least and start <= most:
            share = float(((length_N >= start) & (length_N <= stop)).mean())
            found.append({"from": start, "to": min(stop, most), "share": share})
    return found
