from __future__ import annotations

import struct

import google_crc32c
import pytest

from predistill.store import record


def packed(**changes: object) -> bytes:
    fields = {
        "kind": record.KIND_TRUNCATED,
        "row_id": 2**40 + 5,
        "token_hash": 2**64 - 3,
        "positions": 3,
        "entries": 2,
        "streams": [(1, 0, 1, 3, b"\x01\x00\x01"), (77, 9, 9, 4, b"what"), (2, 0, 3, 2, bytes(8))],
    }
    return record.pack(**(fields | changes))  # type: ignore[arg-type]


def test_a_record_tells_what_was_packed_and_where_its_streams_lie() -> None:
    data = packed()
    found = record.parse(data)
    assert found[:5] == (1, 2**40 + 5, 2**64 - 3, 3, 2)
    assert found.bytes == len(data)
    assert [data[stream.start : stream.start + stream.bytes] for stream in found.streams] == [
        b"\x01\x00\x01",
        b"what",
        bytes(8),
    ]
    assert record.parse_head(data[: record.MAX_HEAD_BYTES]) == found


def test_every_flipped_bit_of_a_record_is_an_error() -> None:
    data = packed()
    for bit in range(8 * len(data)):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError):
            record.parse(bytes(damaged))


def test_a_record_that_is_cut_off_or_goes_on_is_an_error() -> None:
    data = packed()
    for size in range(len(data)):
        with pytest.raises(ValueError):
            record.parse(data[:size])
    with pytest.raises(ValueError, match="bytes long"):
        record.parse(data + b"\x00")


@pytest.mark.parametrize(("offset", "words"), [(4, "frame version is 7"), (5, "kind is 7")])
def test_an_unknown_frame_version_or_kind_is_an_error_though_the_checksum_holds(offset: int, words: str) -> None:
    data = bytearray(packed())
    head_bytes = 32 + 3 * 12
    data[offset] = 7
    data[head_bytes : head_bytes + 4] = struct.pack("<I", google_crc32c.value(bytes(data[:head_bytes])))
    with pytest.raises(ValueError, match=words):
        record.parse(bytes(data))


def test_a_needed_stream_of_an_unknown_codec_or_dtype_is_an_error() -> None:
    lengths, unknown, _ = record.parse(packed()).streams
    record.check_readable(lengths)
    with pytest.raises(ValueError, match="stream 77 uses the unknown codec 9"):
        record.check_readable(unknown)
    with pytest.raises(ValueError, match="stream 77 uses the unknown dtype 9"):
        record.check_readable(unknown._replace(codec=0))
