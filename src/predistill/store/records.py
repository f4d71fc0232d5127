"""A sealed store's records: where each row lies, and its bytes, from disk, from a URL or from the cache; checked when
they are parsed, not here."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

from predistill.errors import StoreError
from predistill.store import layout
from predistill.store import record as frame
from predistill.store.cache import DiskCache
from predistill.store.index import Index
from predistill.store.place import File, Place
from predistill.store.shard import HEADER_BYTES, Shard, parse_shard_name

__all__ = ["Line", "Listed", "Records"]


class Listed(NamedTuple):
    """A shard as the manifest lists it."""

    name: str
    bytes: int
    rows: int
    crc32c: str


class Line(NamedTuple):
    """Where a row lies: a shard of the manifest's list, its offset and bytes there."""

    shard: int
    offset: int
    size: int


class Records:
    """The shards that a manifest lists, and the index over them. `damaged(*what)` makes the error to raise."""

    def __init__(
        self,
        place: Place,
        manifest: dict[str, Any],
        *,
        shards: list[Listed],
        cache: DiskCache | None,
        damaged: Callable[..., StoreError],
    ) -> None:
        self._place, self._cache, self._damaged = place, cache, damaged
        self._store_id, self._rows = bytes.fromhex(manifest["store_id"]), int(manifest["rows"])
        self.shards = shards
        try:
            self.index = Index(place.file(layout.INDEX), store_id=self._store_id, rows=self._rows)
        except (OSError, ValueError) as error:
            raise damaged(layout.INDEX, error) from None
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._lock = threading.Lock()

    def line(self, row: int) -> Line:
        """Where a row lies; size 0 when it is not in this store."""
        if not 0 <= row < self._rows:
            raise StoreError(f"{self._place}: row {row:,} was asked for; it holds rows 0 to {self._rows - 1:,}.")
        try:
            line = Line(*self.index[row])
            if line.size and line.shard >= len(self.shards):
                raise ValueError(f"row {row:,}: it names shard {line.shard:,} of {len(self.shards):,}")
            return line
        except (OSError, ValueError) as error:
            raise self._damaged(layout.INDEX, error) from None

    def fetch(self, lines: list[Line]) -> list[bytes]:
        """The bytes of the records that lie there, side by side."""
        kept = [self._kept(line) for line in lines]
        missing = [i for i, data in enumerate(kept) if data is None]
        try:
            wanted = [self._range(lines[i]) for i in missing]
            fetched = dict(zip(missing, self._place.ranges(wanted) if wanted else [], strict=True))
        except OSError as error:
            raise StoreError(f"{self._place}: {error}. Run the same command again.") from None
        if self._cache is not None:
            for i, data in fetched.items():
                self._cache.put(self._cached_as(lines[i]), data)
        return [fetched[i] if data is None else data for i, data in enumerate(kept)]

    def shard(self, number: int) -> Shard:
        """A shard of the list, open: it is the one that was sealed into this store."""
        with self._lock:
            if (shard := self._open.get(number)) is not None:
                self._open.move_to_end(number)
                return shard
        entry = self.shards[number]
        writer, seq = parse_shard_name(entry.name)
        try:
            shard = Shard(self._place.file(f"shards/{entry.name}"), store_id=self._store_id, writer=writer, seq=seq)
            found = (shard.tail.file_bytes, shard.tail.rows, f"{shard.tail.records_crc:08x}")
            if found != (entry.bytes, entry.rows, entry.crc32c):
                raise ValueError("it is not the shard that was sealed into this store")
        except (OSError, ValueError) as error:
            raise self._damaged(f"shard {entry.name}", error) from None
        with self._lock:
            self._open[number] = shard
            while len(self._open) > self._place.many_open:
                self._open.popitem(last=False)
        return shard

    def close(self) -> None:
        """Let go of the open shards; they may still be read, which opens them again."""
        with self._lock:
            self._open.clear()

    def _range(self, line: Line) -> tuple[File, int, int]:
        shard = self.shard(line.shard)
        if not HEADER_BYTES <= line.offset <= line.offset + line.size <= shard.tail.index_offset:
            raise self._damaged(layout.INDEX, f"it names bytes outside of shard {self.shards[line.shard].name}")
        return shard.file, line.offset, line.size

    def _kept(self, line: Line) -> bytes | None:
        """The record from the cache; a damaged copy is dropped, and the record fetched again."""
        if self._cache is None or (data := self._cache.get(self._cached_as(line))) is None:
            return None
        try:
            frame.parse(data)
        except ValueError:
            self._cache.drop(self._cached_as(line))
            return None
        return data

    def _cached_as(self, line: Line) -> str:
        # The same capture, made again, has the same id and other shards.
        shard = self.shards[line.shard]
        return f"{self._store_id.hex()}/{shard.name}-{shard.crc32c}/{line.offset:x}-{line.size:x}"
