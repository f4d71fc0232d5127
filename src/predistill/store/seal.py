"""Sealing: every writer's shards become one store, with a row index and, last of all, a manifest."""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np

from predistill.errors import StoreError
from predistill.files import sealed_json
from predistill.store import index, layout
from predistill.store.place import Place
from predistill.store.record import MAX_HEAD_BYTES, parse_head
from predistill.store.shard import Shard, parse_shard_name
from predistill.store.streams import STREAM_NAMES

__all__ = ["PartsRows", "seal_store"]


class PartsRows:
    """Which rows the closed shards of all parts hold: `rows`, bool, one a row of the corpus split."""

    def __init__(self, place: Place, *, store_id: bytes, rows: int, writer: int | None = None) -> None:
        """`writer`: the part to leave out."""
        self._place, self._store_id, self._writer = place, store_id, writer
        self._seen: set[str] = set()
        self.rows = np.zeros(rows, bool)
        self.unfinished: list[int] = []

    def refresh(self) -> None:
        """Look at the parts again; each shard's index is read once."""
        self.unfinished = []
        for part in layout.read_parts(self._place):
            if part["writer"] == self._writer:
                continue
            if not part["finished"]:
                self.unfinished.append(part["writer"])
            for entry in part["shards"]:
                if entry["name"] not in self._seen:
                    footer = _opened(self._place, entry["name"], store_id=self._store_id).footer()
                    self.rows[footer["row"][footer["row"] < len(self.rows)]] = True
                    self._seen.add(entry["name"])


def seal_store(place: Place, *, self_test: dict[str, Any], rows_expected: int, partial: bool = False) -> None:
    """Write index.bin and manifest.json over the parts of a store of rows 0 .. rows_expected - 1.

    A row that two writers captured is taken from the first. Raises `StoreError` when a row is missing, unless
    `partial`, or when shards are damaged.
    """
    parts = layout.read_parts(place)
    assert parts, "a writer seals after it has written its part"
    first = next((part for part in parts if part["shards"]), parts[0])
    for part in parts:
        if part["store_id"] != first["store_id"]:
            raise StoreError(
                f"{place}: the parts of writers {first['writer']} and {part['writer']} are of two captures."
            )
    listed = [shard for part in parts for shard in part["shards"]]
    streams = list(dict.fromkeys(name for shard in listed for name in shard["streams"]))
    if any(list(shard["streams"]) != streams for shard in listed):
        raise StoreError(f"{place}: the writers' rows hold different streams. Capture the store again.")
    store_id = bytes.fromhex(first["store_id"])
    rows = _Rows(place, listed, store_id=store_id, rows_expected=rows_expected)
    missing = np.flatnonzero(rows.entries["bytes"] == 0)
    if len(missing) and not partial:
        raise StoreError(f"{place}: {len(missing):,} rows are missing, the first is row {missing[0]:,}.")
    index_data = index.pack_index(rows.entries, store_id=store_id)
    place.sweep()
    place.put(layout.INDEX, index_data)
    totals: dict[str, Any] = {
        name: sum(shard[name] for shard in listed) - rows.twice.get(name, 0)
        for name in ("rows", "positions", "entries")
    }
    totals["rows_twice"] = rows.twice.get("rows", 0)
    totals["bytes"] = sum(shard["bytes"] for shard in listed) + len(index_data)
    by_stream = {name: sum(shard["streams"][name] for shard in listed) - rows.twice.get(name, 0) for name in streams}
    totals["bytes_by_stream"] = {**by_stream, "overhead": totals["bytes"] - sum(by_stream.values())}
    manifest = {
        "format": layout.FORMAT,
        "version": layout.VERSION,
        "store_id": first["store_id"],
        "kind": "sampled" if "sampling" in first["facts"] else "truncated",
        "alignment": layout.ALIGNMENT,
        "row_len": first["row_len"],
        "rows": rows_expected,
        "streams": streams,
        "permutation": first["permutation"],
        **first["facts"],
        "writers": [part["writer"] for part in parts],
        "index": {"bytes": len(index_data), "crc32c": f"{google_crc32c.value(index_data):08x}"},
        "shards": [{name: value for name, value in shard.items() if name != "streams"} for shard in listed],
        "totals": totals,
        "self_test": self_test,
    }
    place.put(layout.MANIFEST, sealed_json(manifest))


class _Rows:
    """index.bin's lines from the shards' footers, and what lies there twice."""

    def __init__(self, place: Place, listed: list[dict[str, Any]], *, store_id: bytes, rows_expected: int) -> None:
        self._place = place
        self.entries = np.zeros(rows_expected, index.ENTRY)
        self.twice: dict[str, int] = {}
        for number, entry in enumerate(listed):
            shard = _opened(place, entry["name"], store_id=store_id)
            footer = shard.footer()
            if len(footer) and footer["row"].max() >= rows_expected:
                raise StoreError(
                    f"{place}: shard {entry['name']} holds row {footer['row'].max():,} of {rows_expected:,} rows."
                )
            new = self.entries["bytes"][footer["row"]] == 0
            for line in footer[~new]:
                self._count_twice(entry["name"], shard, line)
            lines = footer[new]
            if len(np.unique(lines["row"])) < len(lines):
                raise StoreError(f"{place}: shard {entry['name']} holds a row twice. Delete it, and capture again.")
            for name, values in (("shard", number), ("offset", lines["offset"]), ("bytes", lines["bytes"])):
                self.entries[name][lines["row"]] = values

    def _count_twice(self, name: str, shard: Shard, line: np.void) -> None:
        try:
            head = parse_head(shard.read(int(line["offset"]), min(MAX_HEAD_BYTES, int(line["bytes"]))))
        except ValueError as error:
            raise _damaged(self._place, name, f"row {int(line['row']):,}: {error}") from None
        found = {"rows": 1, "positions": head.positions, "entries": head.entries}
        for stream in head.streams:
            found[STREAM_NAMES.get(stream.id, f"stream {stream.id}")] = stream.bytes
        for what, value in found.items():
            self.twice[what] = self.twice.get(what, 0) + value


def _opened(place: Place, name: str, *, store_id: bytes) -> Shard:
    writer, seq = parse_shard_name(name)
    try:
        shard = Shard(place.file(f"shards/{name}"), store_id=store_id, writer=writer, seq=seq)
        shard.footer()
    except (FileNotFoundError, ValueError) as error:
        raise _damaged(place, name, error) from None
    return shard


def _damaged(place: Place, name: str, what: object) -> StoreError:
    return StoreError(
        f"{place}: shard {name}: {what}. `predistill store repair` keeps its whole rows; delete it to capture them all "
        "again."
    )
