"""A shard: a 64-byte header, records, a footer index of 32 bytes a record, a 48-byte tail.

Without a tail it is a shard in the making (`.tmp`): `scan` finds its whole records by magic and checksum. Everything
is little-endian and under a CRC32C: the header and the tail under their own, the index under one in the tail, each
record under its own two, under one of its line in the index, and under one over all records in the tail.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import google_crc32c
import numpy as np
import numpy.typing as npt

from predistill.store import record as frame
from predistill.store.place import File
from predistill.store.record import Record

__all__ = [
    "FOOTER",
    "HEADER_BYTES",
    "TAIL_BYTES",
    "Shard",
    "Tail",
    "pack_header",
    "pack_tail",
    "parse_shard_name",
    "scan",
    "shard_name",
    "store_of",
]

VERSION = (1, 0)
HEADER_BYTES, TAIL_BYTES = 64, 48
_MAGIC = b"\x89PDS\r\n\x1a\n"
_TAIL_MAGIC = b"PDS-TAIL"
_HEADER = struct.Struct("<8sHHI16sII20x")  # magic, major, minor, flags, store id, writer, seq; then the CRC
_TAIL = struct.Struct("<8sQQQIII")  # magic, index offset, file bytes, rows, index CRC, records CRC, flags; then the CRC
_CRC = struct.Struct("<I")
_SCAN_BYTES = 1 << 20

FOOTER = np.dtype(
    [("row", "<u8"), ("offset", "<u8"), ("bytes", "<u4"), ("positions", "<u4"), ("entries", "<u4"), ("crc", "<u4")]
)


def shard_name(writer: int, seq: int) -> str:
    """`00000-000000.pds`."""
    return f"{writer:05d}-{seq:06d}.pds"


def parse_shard_name(name: str) -> tuple[int, int]:
    """(writer, seq) of a shard's name."""
    writer, seq = name.removesuffix(".pds").split("-")
    return int(writer), int(seq)


def pack_header(*, store_id: bytes, writer: int, seq: int) -> bytes:
    """The 64 bytes that open a shard."""
    return _sealed(_HEADER.pack(_MAGIC, *VERSION, 0, store_id, writer, seq))


@dataclass(frozen=True, slots=True)
class Tail:
    """A shard's last 48 bytes."""

    index_offset: int
    file_bytes: int
    rows: int
    index_crc: int
    records_crc: int


def pack_tail(tail: Tail) -> bytes:
    """The 48 bytes that close a shard."""
    return _sealed(
        _TAIL.pack(_TAIL_MAGIC, tail.index_offset, tail.file_bytes, tail.rows, tail.index_crc, tail.records_crc, 0)
    )


def check_header(data: bytes, *, store_id: bytes, writer: int, seq: int) -> None:
    """`ValueError` unless `data` is the header of just this shard of just this store."""
    if len(data) != HEADER_BYTES or not data.startswith(_MAGIC):
        raise ValueError("it is not a shard of a predistill store")
    if not _intact(data):
        raise ValueError("its header's checksum does not match")
    _, major, _, _, found_id, found_writer, found_seq = _HEADER.unpack_from(data)
    if major != VERSION[0]:
        raise ValueError(f"it has format version {major}, this predistill reads {VERSION[0]}")
    if found_id != store_id:
        raise ValueError(f"it belongs to another store ({found_id.hex()}, not {store_id.hex()})")
    if (found_writer, found_seq) != (writer, seq):
        raise ValueError(f"it is shard {shard_name(found_writer, found_seq)} under another name")


def store_of(header: bytes) -> tuple[bytes, bool]:
    """(store id in a shard's first 64 bytes, whether their checksum holds)."""
    whole = len(header) == HEADER_BYTES and header.startswith(_MAGIC) and _intact(header)
    return header[16:32], whole


def parse_tail(data: bytes, *, file_bytes: int) -> Tail:
    """The tail of a sealed shard; `ValueError` when it is damaged or the file's length is not what it says."""
    if len(data) != TAIL_BYTES or not data.startswith(_TAIL_MAGIC):
        raise ValueError("it has no tail: it was cut short, or never sealed")
    if not _intact(data):
        raise ValueError("its tail's checksum does not match")
    _, index_offset, size, rows, index_crc, records_crc, _ = _TAIL.unpack_from(data)
    if size != file_bytes or index_offset + rows * FOOTER.itemsize + TAIL_BYTES != size:
        raise ValueError(f"it is {file_bytes:,} bytes long, its tail says {size:,}")
    return Tail(index_offset, size, rows, index_crc, records_crc)


class Shard:
    """A sealed shard, open for positional reads from any thread; header and tail are checked on opening.

    Raises `ValueError` (one clause, no path) for damage.
    """

    def __init__(self, file: File, *, store_id: bytes, writer: int, seq: int) -> None:
        self.file = file
        check_header(file.read(0, HEADER_BYTES), store_id=store_id, writer=writer, seq=seq)
        tail = file.read(max(0, file.size - TAIL_BYTES), TAIL_BYTES)
        self.tail = parse_tail(tail, file_bytes=file.size)

    def read(self, offset: int, size: int) -> bytes:
        """`size` bytes at `offset`; fewer only at the end of the file."""
        return self.file.read(offset, size)

    def footer(self) -> npt.NDArray[np.void]:
        """The index, one line a record in the order of writing; its checksum is verified."""
        data = self.read(self.tail.index_offset, self.tail.rows * FOOTER.itemsize)
        if google_crc32c.value(data) != self.tail.index_crc:
            raise ValueError("its index's checksum does not match")
        return np.frombuffer(data, FOOTER)

    def records(self) -> Iterator[tuple[Record, bytes]]:
        """Every record, with every checksum of the shard verified; `ValueError` at the first that fails."""
        crc, end = 0, HEADER_BYTES
        for line in self.footer():
            where = f"row {int(line['row']):,}: "
            if int(line["offset"]) != end or end + int(line["bytes"]) > self.tail.index_offset:
                raise ValueError(f"{where}its index and its records do not fit together")
            data = self.read(end, int(line["bytes"]))
            crc = google_crc32c.extend(crc, data)
            if google_crc32c.value(data) != line["crc"]:
                raise ValueError(f"{where}its checksum does not match")
            try:
                record = frame.parse(data)
            except ValueError as error:
                raise ValueError(f"{where}{error}") from None
            if (record.row_id, record.positions, record.entries) != (line["row"], line["positions"], line["entries"]):
                raise ValueError(f"{where}the index and the record disagree")
            end += len(data)
            yield record, data
        if end != self.tail.index_offset or crc != self.tail.records_crc:
            raise ValueError("its records' checksum does not match")


def scan(fd: int) -> Iterator[tuple[Record, bytes]]:
    """(record, bytes) of the whole records of a shard in the making, up to the first that is not whole."""
    size, offset = os.fstat(fd).st_size, HEADER_BYTES
    while offset < size:
        try:
            record = frame.parse_head(os.pread(fd, frame.MAX_HEAD_BYTES, offset))
            if offset + record.bytes > size:
                return
            data = os.pread(fd, record.bytes, offset)
            frame.parse(data)
        except ValueError:
            return
        yield record, data
        offset += len(data)


def _sealed(data: bytes) -> bytes:
    return data + _CRC.pack(google_crc32c.value(data))


def _intact(data: bytes) -> bool:
    return bool(google_crc32c.value(data[: -_CRC.size]) == _CRC.unpack_from(data, len(data) - _CRC.size)[0])
