"""The index of a 10 TB store: 49 million rows, of which a reader keeps a few pages."""

from __future__ import annotations

import tracemalloc
from functools import lru_cache
from pathlib import Path

import google_crc32c
import numpy as np
import pytest

from predistill.store import Store
from predistill.store.index import ENTRY, Index, index_bytes, pack_index
from predistill.store.place import LocalPlace
from tests.store.made import token_hash, truncated_row, write_store

ROWS = 49_000_000
PAGE_ROWS = 4096
PAGE = PAGE_ROWS * ENTRY.itemsize + 4
STORE_ID = bytes(range(16))
MOST = 6 << 20  # 64 pages of 64 KiB, and what is on its way


def entry(row: int) -> tuple[int, int, int]:
    return row // 1200, 64 + row % 1200 * 220_000, 200_000 + row % 9999


class Made:
    """The file, whose pages are made when they are read: 784 MB that nobody has to write."""

    size = index_bytes(ROWS)

    def __init__(self) -> None:
        self.reads = 0

    def read(self, start: int, size: int) -> bytes:
        self.reads += 1
        assert size <= PAGE
        if start == 0:
            return header()
        number = (start - 64) // PAGE
        rows = np.arange(number * PAGE_ROWS, min(ROWS, (number + 1) * PAGE_ROWS))
        lines = np.zeros(len(rows), ENTRY)
        lines["shard"], lines["offset"], lines["bytes"] = entry(rows)  # type: ignore[arg-type]
        page = lines.tobytes()
        return page + google_crc32c.value(page).to_bytes(4, "little")


@lru_cache
def header() -> bytes:
    empty = bytearray(pack_index(np.zeros(0, ENTRY), store_id=STORE_ID))
    empty[24:32] = ROWS.to_bytes(8, "little")
    empty[60:64] = google_crc32c.value(bytes(empty[:60])).to_bytes(4, "little")
    return bytes(empty)


def test_a_readers_memory_does_not_grow_with_the_store_or_with_what_was_read() -> None:
    file = Made()
    found = Index(file, store_id=STORE_ID, rows=ROWS)
    rng = np.random.default_rng(3)
    tracemalloc.start()
    try:
        peaks = []
        for _ in range(3):
            for row in rng.integers(0, ROWS, 400).tolist():
                assert found[row] == entry(row)
            peaks.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()
    assert peaks[-1] < MOST
    assert file.reads > 1000
    assert found[ROWS - 1] == entry(ROWS - 1)


def test_neighbouring_rows_cost_one_read_a_page() -> None:
    file = Made()
    found = Index(file, store_id=STORE_ID, rows=ROWS)
    before = file.reads
    for row in range(5 * PAGE_ROWS, 8 * PAGE_ROWS, 7):
        assert found[row] == entry(row)
    assert file.reads - before == 3


@pytest.mark.slow
def test_a_store_of_so_many_rows_is_sealed_opened_and_read_in_flat_memory(tmp_path: Path) -> None:
    """Its index is a real file of 784 MB; all but a few rows are still missing."""
    from predistill.store.index import index_bytes as length
    from predistill.store.seal import seal_store

    write_store(tmp_path / "store", rows=6)
    (tmp_path / "store" / "manifest.json").unlink()
    seal_store(LocalPlace(tmp_path / "store"), self_test={}, rows_expected=ROWS, partial=True)
    assert (tmp_path / "store" / "index.bin").stat().st_size == length(ROWS)
    rng = np.random.default_rng(3)
    tracemalloc.start()
    try:
        store = Store(tmp_path / "store")
        assert not store.has(np.append(rng.integers(6, ROWS, 1500), ROWS - 1)).any()
        found = store.rows([5, 0], np.array([token_hash(5), token_hash(0)], np.uint64))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    np.testing.assert_array_equal(found.row(0).ids_E, truncated_row(5).ids_E)
    assert peak < MOST + (8 << 20)  # grids, permutation, two rows
