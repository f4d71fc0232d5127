from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from predistill.store import index
from predistill.store.place import LocalFile

STORE_ID = bytes(range(16))


def made(rows: int) -> np.ndarray:
    entries = np.zeros(rows, index.ENTRY)
    entries["shard"] = np.arange(rows) % 7
    entries["offset"] = np.arange(rows, dtype=np.uint64) * 2**33 + 64
    entries["bytes"] = np.arange(rows) + 100
    return entries


@pytest.mark.parametrize("rows", [0, 1, 4095, 4096, 4097, 9000])
def test_every_row_is_found_across_pages(rows: int, tmp_path: Path) -> None:
    data = index.pack_index(made(rows), store_id=STORE_ID)
    assert len(data) == index.index_bytes(rows) == 64 + 16 * rows + 4 * -(-rows // 4096)
    (tmp_path / "index.bin").write_bytes(data)
    found = index.Index(LocalFile(tmp_path / "index.bin"), store_id=STORE_ID, rows=rows)
    assert [found[row] for row in range(rows)] == [tuple(map(int, line)) for line in made(rows)]


def test_damage_of_one_page_is_an_error_there_and_leaves_the_other_pages_readable(tmp_path: Path) -> None:
    data = bytearray(index.pack_index(made(9000), store_id=STORE_ID))
    data[64 + 4096 * 16 + 4 + 1234] ^= 16  # in the second page
    (tmp_path / "index.bin").write_bytes(data)
    found = index.Index(LocalFile(tmp_path / "index.bin"), store_id=STORE_ID, rows=9000)
    assert found[4095][2] == 4195
    assert found[8192][2] == 8292
    for row in (4096, 8191):
        with pytest.raises(ValueError, match="page 1 does not match"):
            found[row]


def test_an_index_of_another_store_or_length_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "index.bin").write_bytes(index.pack_index(made(10), store_id=STORE_ID))
    with pytest.raises(ValueError, match="belongs to another store"):
        index.Index(LocalFile(tmp_path / "index.bin"), store_id=STORE_ID[::-1], rows=10)
    with pytest.raises(ValueError, match="228 bytes long, expected 244"):
        index.Index(LocalFile(tmp_path / "index.bin"), store_id=STORE_ID, rows=11)
