"""The shuffle on disk is a stable sort by key, whatever fits into memory, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from predistill.corpus import shuffle
from predistill.corpus.shuffle import DiskShuffle

keys = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 3), st.just(2**64 - 1))


@given(st.lists(st.tuples(keys, st.binary(max_size=40))), st.sampled_from([0, 100, 1 << 20]))
def test_payloads_come_back_stably_sorted(entries: list[tuple[int, bytes]], bucket_bytes: int) -> None:
    with TemporaryDirectory() as folder:
        disk = DiskShuffle(Path(folder) / "s", bucket_bytes=bucket_bytes)
        for key, payload in entries:
            disk.add(key, payload)
        assert list(disk) == [payload for _, payload in sorted(entries, key=lambda entry: entry[0])]
        assert list(Path(folder).iterdir()) == []


def test_memory_holds_one_bucket_and_small_spills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    entries = shuffle._entries

    def noted_entries(path: Path) -> Iterator[tuple[int, bytes]]:
        sizes.append(path.stat().st_size)
        return entries(path)

    monkeypatch.setattr(shuffle, "_entries", noted_entries)
    disk = DiskShuffle(tmp_path / "s", bucket_bytes=1000)
    for number in range(5000):
        disk.add(number * 2**64 // 5000, bytes(20))
        assert sum(map(len, disk._spills)) <= 64 * shuffle.SPILL_BYTES
    assert sum(1 for _ in disk) == 5000
    assert max(sizes) > 1000, "no bucket was too large to be sorted alone"
    assert sum(size for size in sizes if size <= 1000) == 5000 * (16 + 20)
