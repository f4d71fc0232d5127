"""A token file is what its definition says: documents in the order of their keys, joined, cut, the tail dropped."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from predistill.corpus import rows
from predistill.corpus.marks import CLOSES, COUNTED, joined
from predistill.corpus.rows import SplitStats, SplitWriter, id_dtype_of

END = 9
documents = st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=12), max_size=12)


def written(folder: Path, texts: list[list[int]], *, row_len: int, seed: int = 3, vocab_size: int = 10) -> SplitStats:
    dtype = id_dtype_of(vocab_size)
    writer = SplitWriter(folder / "train.bin", row_len=row_len, end_id=END, id_dtype=dtype, seed=seed)
    for ids in texts:
        writer.add(bytes(ids), np.array(ids, dtype).tobytes())  # one byte of text per token
    heard: list[int] = []
    stats = writer.finish(text_bytes=lambda ids: int((ids != END).sum()), on_bytes=heard.append)
    assert sum(heard) == (folder / "train.bin").stat().st_size
    return stats


def stream_by_definition(texts: list[list[int]], *, seed: int) -> list[int]:
    keyed = [
        (xxhash.xxh64_intdigest(number.to_bytes(8, "little") + bytes(ids), seed=seed), ids)
        for number, ids in enumerate(texts)
    ]
    return [END] + [token for _, ids in sorted(keyed, key=lambda pair: pair[0]) for token in [*ids, END]]


@given(texts=documents, row_len=st.integers(1, 20), seed=st.integers(0, 2**64 - 1), write_bytes=st.integers(0, 30))
@settings(max_examples=60)
def test_the_file_is_the_stream_up_to_the_last_whole_row(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[int]], row_len: int, seed: int, write_bytes: int
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "WRITE_BYTES", write_bytes)
        stats = written(folder, texts, row_len=row_len, seed=seed)
    stream = stream_by_definition(texts, seed=seed)
    row_count = (len(stream) - 1) // row_len
    kept = stream[: row_count * row_len + 1] if row_count else []
    data = (folder / "train.bin").read_bytes()
    assert np.frombuffer(data, "<u2").tolist() == kept
    assert stats == {
        "documents": len(texts),
        "bytes": sum(token != END for token in kept),
        "tokens": len(kept),
        "rows": row_count,
        "dropped_tokens": (len(stream) - 1) % row_len,
        "dropped_bytes": sum(map(len, texts)) - sum(token != END for token in kept),
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    assert [path.name for path in folder.iterdir()] == ["train.bin"]


@given(texts=documents, row_len=st.integers(1, 20), write_bytes=st.integers(0, 30))
@settings(max_examples=30)
def test_marks_stay_with_their_tokens(
    tmp_path_factory: pytest.TempPathFactory, texts: list[list[int]], row_len: int, write_bytes: int
) -> None:
    plain, folder = tmp_path_factory.mktemp("rows"), tmp_path_factory.mktemp("rows")
    stats = written(plain, texts, row_len=row_len)
    writer = SplitWriter(
        folder / "train.bin", row_len=row_len, end_id=END, id_dtype=id_dtype_of(10), seed=3, marked=True
    )
    for ids in texts:
        marks = [COUNTED * (token % 2) for token in ids] + [CLOSES]  # odd ids are counted
        writer.add(bytes(ids), joined(np.array([*ids, END]), np.array(marks, np.uint8)).tobytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rows, "WRITE_BYTES", write_bytes)
        found = writer.finish(text_bytes=lambda ids: int((ids != END).sum()), on_bytes=lambda _: None)
    tokens = np.fromfile(folder / "train.bin", "<u2")
    expected = np.where(tokens == END, CLOSES, COUNTED * (tokens % 2))
    expected[:1] = 0  # what opens the stream is no label
    mask = (folder / "train.mask.bin").read_bytes()
    assert (folder / "train.bin").read_bytes() == (plain / "train.bin").read_bytes()
    assert mask == expected.astype(np.uint8).tobytes()
    marked = {"counted": int((expected == COUNTED).sum()), "mask_sha256": hashlib.sha256(mask).hexdigest()}
    assert found == {**stats, **marked}


def test_large_vocabularies_take_four_bytes(tmp_path: Path) -> None:
    assert [id_dtype_of(size).str for size in (1 << 16, (1 << 16) + 1)] == ["<u2", "<u4"]
    written(tmp_path, [[1, 2, 3]], row_len=2, vocab_size=70_000)
    assert np.fromfile(tmp_path / "train.bin", "<u4").tolist() == [END, 1, 2, 3, END]


def test_twins_do_not_end_up_side_by_side(tmp_path: Path) -> None:
    others = [[1, 1 + number % 7, number // 7] for number in range(56)]
    written(tmp_path, [[0, 0], *others, [0, 0]], row_len=1)
    stream = np.fromfile(tmp_path / "train.bin", "<u2").tolist()
    first, second = (place for place in range(len(stream) - 1) if stream[place : place + 3] == [0, 0, END])
    assert second - first > 3
