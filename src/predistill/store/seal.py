"""Sealing: every writer's shards become one store, with a row index and, last of all, a manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError
from predistill.files import write_atomic, write_sealed_json
from predistill.store import index, layout
from predistill.store.shard import Shard, parse_shard_name

__all__ = ["seal_store"]


def seal_store(path: Path, *, self_test: dict[str, Any], rows_expected: int) -> None:
    """Write index.bin and manifest.json over the finished parts of a store.

    Raises `StoreError` unless every writer has finished and rows 0 .. rows_expected - 1 are there exactly once.
    """
    parts = [layout.read_json(part) for part in sorted((path / "parts").glob("part-*.json"))]
    assert parts, "a writer seals after it has written its part"
    first = parts[0]
    for part in parts:
        if part["store_id"] != first["store_id"]:
            raise StoreError(
                f"{path}: the parts of writers {first['writer']} and {part['writer']} are of two captures."
            )
        if not part["finished"]:
            raise StoreError(f"{path}: writer {part['writer']} has not finished. Run its capture again.")
    listed = [shard for part in parts for shard in part["shards"]]
    streams = list(dict.fromkeys(name for shard in listed for name in shard["streams"]))
    if any(list(shard["streams"]) != streams for shard in listed):
        raise StoreError(f"{path}: the writers' rows hold different streams. Capture the store again.")
    entries = _entries(path, listed, store_id=bytes.fromhex(first["store_id"]), rows_expected=rows_expected)
    index_data = index.pack_index(entries, store_id=bytes.fromhex(first["store_id"]))
    write_atomic(layout.index_path(path), index_data)
    totals: dict[str, Any] = {
        name: sum(shard[name] for shard in listed) for name in ("rows", "positions", "entries", "bytes")
    }
    totals["bytes"] += len(index_data)
    by_stream = {name: sum(shard["streams"][name] for shard in listed) for name in streams}
    totals["bytes_by_stream"] = {**by_stream, "overhead": totals["bytes"] - sum(by_stream.values())}
    manifest = {
        "format": layout.FORMAT,
        "version": layout.VERSION,
        "store_id": first["store_id"],
        "kind": "sampled" if "sampling" in first["facts"] else "truncated",
        "alignment": layout.ALIGNMENT,
        "row_len": first["row_len"],
        "streams": streams,
        "permutation": first["permutation"],
        **first["facts"],
        "index": {"bytes": len(index_data), "crc32c": f"{google_crc32c.value(index_data):08x}"},
        "shards": [{name: value for name, value in shard.items() if name != "streams"} for shard in listed],
        "totals": totals,
        "self_test": self_test,
    }
    write_sealed_json(layout.manifest_path(path), manifest)


def _entries(path: Path, listed: list[dict[str, Any]], *, store_id: bytes, rows_expected: int) -> npt.NDArray[np.void]:
    """index.bin's lines from the shards' footers; every row exactly once."""
    entries = np.zeros(rows_expected, index.ENTRY)
    for number, entry in enumerate(listed):
        writer, seq = parse_shard_name(entry["name"])
        try:
            shard = Shard(layout.shard_path(path, entry["name"]), store_id=store_id, writer=writer, seq=seq)
            footer = shard.footer()
        except (FileNotFoundError, ValueError) as error:
            raise StoreError(f"{path}: shard {entry['name']}: {error}. Capture its rows again.") from None
        rows = footer["row"]
        if len(rows) and rows.max() >= rows_expected:
            raise StoreError(f"{path}: shard {entry['name']} holds row {rows.max():,} of {rows_expected:,} rows.")
        twice = rows[(entries["bytes"][rows] > 0)]
        if len(twice):
            raise StoreError(f"{path}: row {twice[0]:,} is there twice, once in shard {entry['name']}.")
        entries["shard"][rows] = number
        entries["offset"][rows] = footer["offset"]
        entries["bytes"][rows] = footer["bytes"]
    missing = np.flatnonzero(entries["bytes"] == 0)
    if len(missing):
        raise StoreError(f"{path}: {len(missing):,} rows are missing, the first is row {missing[0]:,}.")
    return entries
