"""The shard that a writer is filling: a `.tmp` file whose whole records survive a kill, until it is sealed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import google_crc32c
import numpy as np

from predistill.store.layout import ShardStats
from predistill.store.place import Place
from predistill.store.record import Record
from predistill.store.shard import FOOTER, HEADER_BYTES, TAIL_BYTES, Tail, pack_header, pack_tail, scan, shard_name
from predistill.store.streams import STREAM_NAMES

__all__ = ["GrowingShard", "count_record"]


class GrowingShard:
    """An open `.tmp` shard: `recover` what an earlier process left, `append` records, `seal` it."""

    def __init__(self, folder: Path, *, store_id: bytes, writer: int, seq: int) -> None:
        """`folder`: a local one, where the file grows."""
        folder.mkdir(parents=True, exist_ok=True)
        self.stats = ShardStats(shard_name(writer, seq), bytes=HEADER_BYTES)
        self._path = folder / (self.stats.name + ".tmp")
        self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        self._lines: list[tuple[int, int, int, int, int, int]] = []
        self._records_crc = 0
        header = pack_header(store_id=store_id, writer=writer, seq=seq)
        if os.pread(self._fd, len(header), 0) != header:  # new, or killed before even the header was whole
            os.ftruncate(self._fd, 0)
            self._write(header, 0)

    def recover(self) -> Iterator[Record]:
        """Take the whole records that are already there into the books, one by one, and cut off what follows them.

        What follows may be half a record, or the index of a shard that was killed before its rename.
        """
        for record, data in scan(self._fd):
            self._take(record, data)
            yield record
        os.ftruncate(self._fd, self.stats.bytes)

    def append(self, record: Record, data: bytes) -> None:
        """Write one record; it is in the page cache when this returns."""
        try:
            self._write(data, self.stats.bytes)
        except OSError:  # a full disk: what was written of it would lie behind a shorter end
            os.ftruncate(self._fd, self.stats.bytes)
            raise
        self._take(record, data)

    def seal(self, place: Place) -> ShardStats:
        """Write index and tail, make them durable, and give the shard to `place` under its final name."""
        footer = np.array(self._lines, FOOTER).tobytes()
        index_offset = self.stats.bytes
        size = index_offset + len(footer) + TAIL_BYTES
        tail = Tail(index_offset, size, self.stats.rows, google_crc32c.value(footer), self._records_crc)
        self._write(footer + pack_tail(tail), index_offset)
        os.fsync(self._fd)
        place.take_in(self._path, f"shards/{self.stats.name}")
        self.stats.bytes = size
        self.stats.crc32c = f"{self._records_crc:08x}"
        self.close()
        return self.stats

    def close(self) -> None:
        """Close the file as it is."""
        os.fsync(self._fd)
        os.close(self._fd)

    def discard(self) -> None:
        """Remove the file: its rows are not wanted."""
        os.close(self._fd)
        self._path.unlink(missing_ok=True)

    def _take(self, record: Record, data: bytes) -> None:
        crc = google_crc32c.value(data)
        self._lines.append((record.row_id, self.stats.bytes, len(data), record.positions, record.entries, crc))
        self._records_crc = google_crc32c.extend(self._records_crc, data)
        count_record(self.stats, record)

    def _write(self, data: bytes, offset: int) -> None:
        while data:
            written = os.pwrite(self._fd, data, offset)
            data, offset = data[written:], offset + written


def count_record(stats: ShardStats, record: Record) -> None:
    """Add one record to its shard's line of the manifest."""
    stats.rows += 1
    stats.bytes += record.bytes
    stats.positions += record.positions
    stats.entries += record.entries
    for stream in record.streams:
        name = STREAM_NAMES.get(stream.id, f"stream {stream.id}")
        stats.streams[name] = stats.streams.get(name, 0) + stream.bytes
