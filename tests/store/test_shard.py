from __future__ import annotations

import os
import struct
from pathlib import Path

import google_crc32c
import pytest

from predistill.store.growing import GrowingShard
from predistill.store.place import LocalFile, LocalPlace
from predistill.store.record import pack, parse_head
from predistill.store.shard import FOOTER, HEADER_BYTES, TAIL_BYTES, Shard

STORE_ID = bytes(range(16))


def record(row: int) -> bytes:
    return pack(
        kind=1,
        row_id=row,
        token_hash=row,
        positions=2,
        entries=0,
        streams=[(1, 0, 1, 2, bytes(2)), (99, 0, 1, row, bytes(row))],
    )


def sealed(folder: Path, rows: list[int]) -> Path:
    growing = GrowingShard(folder / "shards", store_id=STORE_ID, writer=3, seq=8)
    for row in rows:
        growing.append(parse_head(record(row)), record(row))
    return folder / "shards" / growing.seal(LocalPlace(folder)).name


def opened(path: Path, **changes: int | bytes) -> Shard:
    return Shard(LocalFile(path), **({"store_id": STORE_ID, "writer": 3, "seq": 8} | changes))  # type: ignore[arg-type]


def test_a_sealed_shard_gives_its_records_back_and_is_laid_out_as_the_format_says(tmp_path: Path) -> None:
    path = sealed(tmp_path, [5, 900, 2])
    assert path.name == "00003-000008.pds"
    assert not path.with_name(path.name + ".tmp").exists()
    shard = opened(path)
    assert [(found.row_id, data) for found, data in shard.records()] == [(row, record(row)) for row in (5, 900, 2)]
    data = path.read_bytes()
    records = record(5) + record(900) + record(2)
    assert data[: HEADER_BYTES - 4] == struct.pack("<8sHHI16sII20x", b"\x89PDS\r\n\x1a\n", 1, 0, 0, STORE_ID, 3, 8)
    assert data[HEADER_BYTES : HEADER_BYTES + len(records)] == records
    index = data[HEADER_BYTES + len(records) : -TAIL_BYTES]
    line = struct.pack("<QQIIII", 900, 64 + len(record(5)), len(record(900)), 2, 0, google_crc32c.value(record(900)))
    assert index[FOOTER.itemsize : 2 * FOOTER.itemsize] == line
    crcs = (google_crc32c.value(index), google_crc32c.value(records))
    assert data[-TAIL_BYTES:-4] == struct.pack("<8sQQQIII", b"PDS-TAIL", 64 + len(records), len(data), 3, *crcs, 0)
    for part in (data[:HEADER_BYTES], data[-TAIL_BYTES:]):
        assert part[-4:] == struct.pack("<I", google_crc32c.value(part[:-4]))


def test_a_shard_of_another_store_or_under_another_name_is_an_error(tmp_path: Path) -> None:
    path = sealed(tmp_path, [1])
    with pytest.raises(ValueError, match="belongs to another store"):
        opened(path, store_id=STORE_ID[::-1])
    for changes in ({"writer": 2}, {"seq": 7}):
        with pytest.raises(ValueError, match=r"shard 00003-000008.pds under another name"):
            opened(path, **changes)


def test_a_shard_of_another_major_version_is_an_error_and_of_a_later_minor_one_is_read(tmp_path: Path) -> None:
    path = sealed(tmp_path, [1])
    data = bytearray(path.read_bytes())
    for offset, value in ((10, 9), (8, 2)):
        data[offset] = value
        data[60:64] = struct.pack("<I", google_crc32c.value(bytes(data[:60])))
        path.write_bytes(data)
        if offset == 10:
            assert len(list(opened(path).records())) == 1
        else:
            with pytest.raises(ValueError, match="format version 2, this predistill reads 1"):
                opened(path)


def test_every_cut_of_a_shard_is_an_error_on_opening(tmp_path: Path) -> None:
    path = sealed(tmp_path, [5, 40])
    data = path.read_bytes()
    for size in range(len(data)):
        path.write_bytes(data[:size])
        with pytest.raises(ValueError):
            opened(path)
    path.write_bytes(data + b"\x00")
    with pytest.raises(ValueError):
        opened(path)


def test_every_flipped_bit_of_a_shard_is_an_error(tmp_path: Path) -> None:
    path = sealed(tmp_path, [5, 40])
    data = path.read_bytes()
    with path.open("r+b", buffering=0) as file:
        for bit in range(8 * len(data)):
            byte = bit // 8
            os.pwrite(file.fileno(), bytes([data[byte] ^ 1 << bit % 8]), byte)
            with pytest.raises(ValueError):
                list(opened(path).records())
            os.pwrite(file.fileno(), data[byte : byte + 1], byte)
    assert len(list(opened(path).records())) == 2


def test_a_shard_in_the_making_gives_back_its_whole_records_wherever_it_was_cut(tmp_path: Path) -> None:
    rows = [5, 900, 2]
    whole = sealed(tmp_path, rows).read_bytes()
    ends = [HEADER_BYTES + sum(len(record(row)) for row in rows[:n]) for n in range(len(rows) + 1)]
    cuts = sorted(
        {0, 1, 63, *range(64, len(whole), 37), *(end + step for end in ends for step in (-1, 0, 1)), len(whole)}
    )
    growing_path = tmp_path / "shards" / "00003-000008.pds.tmp"
    for cut in cuts:
        growing_path.write_bytes(whole[:cut])
        growing = GrowingShard(tmp_path / "shards", store_id=STORE_ID, writer=3, seq=8)
        recovered = [found.row_id for found in growing.recover()]
        assert recovered == rows[: sum(end <= cut for end in ends[1:])]
        for row in rows[len(recovered) :]:
            growing.append(parse_head(record(row)), record(row))
        assert (tmp_path / "shards" / growing.seal(LocalPlace(tmp_path)).name).read_bytes() == whole
