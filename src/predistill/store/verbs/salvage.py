"""What can be saved of a shard: its whole records, wherever they lie, and whether they are this store's.

A record is whole when both of its checksums hold (CRC32C over its head, CRC32C over its streams). After damage the
next one is found by its magic: that other bytes look like a record has a chance of 2^-64 at each "PDRC" in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from predistill.store.place import File
from predistill.store.record import MAGIC, MAX_HEAD_BYTES, Record, parse, parse_head
from predistill.store.shard import FOOTER, HEADER_BYTES, TAIL_BYTES, Tail, parse_tail, store_of

__all__ = ["belongs", "footer_of", "whole_records"]

WINDOW_BYTES = 1 << 22


def whole_records(file: File) -> Iterator[tuple[int, Record, bytes]]:
    """(offset, record, bytes) of every whole record, in the order of the file."""
    offset = _next_magic(file, 0)
    while offset is not None:
        end = offset + 1
        if (found := _record_at(file, offset)) is not None:
            yield offset, *found
            end = offset + len(found[1])
        offset = _next_magic(file, end)


def footer_of(file: File) -> npt.NDArray[np.void] | None:
    """The shard's index, if it and the tail are whole."""
    if (tail := _tail_of(file)) is None:
        return None
    data = file.read(tail.index_offset, tail.rows * FOOTER.itemsize)
    return np.frombuffer(data, FOOTER) if google_crc32c.value(data) == tail.index_crc else None


def belongs(file: File, *, store_id: bytes, listed: dict[str, Any] | None) -> bool:
    """Whether a shard's records are this store's. Its header says so; where the header is damaged, only what its
    writer noted of the shard can: a shard of another store may lie there by mistake, and be damaged too.

    `listed`: the writer's line about it. Its length in bytes, or the checksum of all records in a whole tail, is taken
    as proof; the name alone is not.
    """
    found, whole = store_of(file.read(0, HEADER_BYTES))
    if found == store_id or whole:
        return found == store_id
    if listed is None:
        return False
    tail = _tail_of(file)
    return file.size == listed["bytes"] or (tail is not None and f"{tail.records_crc:08x}" == listed["crc32c"])


def _tail_of(file: File) -> Tail | None:
    try:
        return parse_tail(file.read(max(0, file.size - TAIL_BYTES), TAIL_BYTES), file_bytes=file.size)
    except ValueError:
        return None


def _record_at(file: File, offset: int) -> tuple[Record, bytes] | None:
    try:
        record = parse_head(file.read(offset, MAX_HEAD_BYTES))
        if offset + record.bytes > file.size:
            return None
        data = file.read(offset, record.bytes)
        return parse(data), data
    except ValueError:
        return None


def _next_magic(file: File, offset: int) -> int | None:
    """Where the next record may start; mostly at once."""
    size = 4096
    while offset < file.size:
        window = file.read(offset, size)
        if (place := window.find(MAGIC)) >= 0:
            return offset + place
        offset += max(1, len(window) - len(MAGIC) + 1)
        size = min(2 * size, WINDOW_BYTES)
    return None
