"""The frame of one record: one corpus row's streams between a checksummed header and a checksum.

    header   magic "PDRC", frame version u8, kind u8, streams u16, row id u64, token hash u64, positions u32,
             entries u32
    table    one a stream: stream id u16, codec u8, dtype u8, bytes u32, values u32
    u32      CRC32C of header and table
    streams  in the table's order
    u32      CRC32C of the streams

All little-endian. A stream with an unknown id is skipped by its length.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import google_crc32c
import numpy as np

from predistill.store.codec import CODECS, DTYPES

__all__ = [
    "KIND_SAMPLED",
    "KIND_TRUNCATED",
    "MAGIC",
    "MAX_HEAD_BYTES",
    "Record",
    "Stream",
    "check_readable",
    "pack",
    "parse",
    "parse_head",
]

MAGIC = b"PDRC"
FRAME_VERSION = 2
KIND_TRUNCATED, KIND_SAMPLED = 1, 2
_HEAD = struct.Struct("<4sBBHQQII")
_STREAM = struct.Struct("<HBBII")
_CRC = struct.Struct("<I")
MAX_STREAMS = 255
MAX_HEAD_BYTES = _HEAD.size + MAX_STREAMS * _STREAM.size + _CRC.size


class Stream(NamedTuple):
    """One line of a record's table; `start` counts from the record's first byte."""

    id: int
    codec: int
    dtype: int
    bytes: int
    values: int
    start: int


class Record(NamedTuple):
    """A record's header, parsed."""

    kind: int
    row_id: int
    token_hash: int
    positions: int
    entries: int
    streams: list[Stream]
    bytes: int  # of the whole record, checksums included


def pack(
    *,
    kind: int,
    row_id: int,
    token_hash: int,
    positions: int,
    entries: int,
    streams: list[tuple[int, int, int, int, bytes]],
) -> bytes:
    """The record's bytes; `streams` are (stream id, codec, dtype, values, payload), in the order to write them."""
    assert len(streams) <= MAX_STREAMS
    head = _HEAD.pack(MAGIC, FRAME_VERSION, kind, len(streams), row_id, token_hash, positions, entries)
    head += b"".join(_STREAM.pack(id_, codec, dtype, len(data), values) for id_, codec, dtype, values, data in streams)
    body = b"".join(data for *_, data in streams)
    return b"".join((head, _CRC.pack(google_crc32c.value(head)), body, _CRC.pack(google_crc32c.value(body))))


def parse_head(data: bytes) -> Record:
    """The header of the record that `data` begins with; the streams need not be there yet.

    Raises `ValueError` when it is not a record, its checksum fails, or this version cannot read it.
    """
    if len(data) < _HEAD.size:
        raise ValueError("its header is cut off")
    magic, version, kind, count, row_id, token_hash, positions, entries = _HEAD.unpack_from(data)
    if magic != MAGIC:
        raise ValueError("no record starts here")
    end = _HEAD.size + count * _STREAM.size
    if len(data) < end + _CRC.size:
        raise ValueError("its header is cut off")
    if google_crc32c.value(data[:end]) != _CRC.unpack_from(data, end)[0]:
        raise ValueError("its header's checksum does not match")
    if version != FRAME_VERSION:
        raise ValueError(f"its frame version is {version}, this predistill reads {FRAME_VERSION}")
    if kind not in (KIND_TRUNCATED, KIND_SAMPLED):
        raise ValueError(f"its kind is {kind}, this predistill reads 1 (truncated) and 2 (sampled)")
    start = end + _CRC.size
    streams = []
    for id_, codec, dtype, size, values in _STREAM.iter_unpack(data[_HEAD.size : end]):
        streams.append(Stream(id_, codec, dtype, size, values, start))
        start += size
    return Record(kind, row_id, token_hash, positions, entries, streams, start + _CRC.size)


def parse(data: bytes) -> Record:
    """The header of a whole record, with the streams' checksum verified too; `ValueError` as in `parse_head`."""
    record = parse_head(data)
    if record.bytes != len(data):
        raise ValueError(f"it is {record.bytes:,} bytes long, expected {len(data):,}")
    body = np.frombuffer(data, np.uint8)[record.streams[0].start : -_CRC.size] if record.streams else b""  # no copy
    if google_crc32c.value(body) != _CRC.unpack_from(data, len(data) - _CRC.size)[0]:
        raise ValueError("its checksum does not match")
    return record


def check_readable(stream: Stream) -> None:
    """`ValueError` for a needed stream whose codec or dtype this version does not know."""
    if stream.codec not in CODECS:
        raise ValueError(f"stream {stream.id} uses the unknown codec {stream.codec}; a newer predistill wrote it")
    if stream.dtype not in DTYPES:
        raise ValueError(f"stream {stream.id} uses the unknown dtype {stream.dtype}; a newer predistill wrote it")
