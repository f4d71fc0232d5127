"""One split of a corpus on its way to disk: documents shuffled, joined into one stream, cut into rows.

The stream is `<e> document <e> document <e> ...`. Row i is tokens[i * T : i * T + T + 1]: neighbours share one token,
so that every token but the first is a label once. The tokens after the last whole row are dropped and counted.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import numpy.typing as npt
import xxhash

from predistill.corpus.shuffle import DiskShuffle

__all__ = ["SplitStats", "SplitWriter", "id_dtype_of"]

WRITE_BYTES = 1 << 20

IdArray = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def id_dtype_of(vocab_size: int) -> np.dtype[Any]:
    """The dtype of token files: little-endian uint16 while the vocabulary fits, else uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class SplitStats(TypedDict):
    """What one split holds.

    `tokens` are those in the file, rows * T + 1 (0 without a row); `bytes` are the UTF-8 bytes of text that they stand
    for, and `dropped_bytes` those of the dropped tail (where the cut goes through a character, to within its 4 bytes);
    `sha256` is the token file's.
    """

    documents: int
    bytes: int
    tokens: int
    rows: int
    dropped_tokens: int
    dropped_bytes: int
    sha256: str


class SplitWriter:
    """Takes the documents of one split, and writes its token file once all are in."""

    def __init__(self, path: Path, *, row_len: int, end_id: int, id_dtype: np.dtype[Any], seed: int) -> None:
        self._path = path
        self._row_len = row_len
        self._id_dtype = id_dtype
        self._end = np.array([end_id], dtype=id_dtype).tobytes()
        self._seed = seed
        self._shuffle = DiskShuffle(path.with_suffix(".shuffle"))
        self.documents = 0
        self.bytes = 0
        self.token_bytes = 0

    def add(self, text: bytes, ids: bytes) -> None:
        """Take a document. Its place is drawn from the seed, its number in the split and its text: twins part."""
        number = self.documents.to_bytes(8, "little")
        self._shuffle.add(xxhash.xxh64_intdigest(number + text, seed=self._seed), ids + self._end)
        self.documents += 1
        self.bytes += len(text)
        self.token_bytes += len(ids) + len(self._end)

    def finish(self, *, text_bytes: Callable[[IdArray], int], on_bytes: Callable[[int], None]) -> SplitStats:
        """Write the token file. `text_bytes`: how many bytes of text ids stand for; `on_bytes` hears of each write."""
        itemsize = self._id_dtype.itemsize
        row_bytes = self._row_len * itemsize
        digest = hashlib.sha256()
        file_bytes = 0
        stream = bytearray(self._end)
        with self._path.open("wb") as file:

            def put(count: int) -> None:
                nonlocal file_bytes
                file.write(stream[:count])
                digest.update(stream[:count])
                del stream[:count]
                file_bytes += count
                on_bytes(count)

            for payload in self._shuffle:
                stream += payload
                if len(stream) > row_bytes + WRITE_BYTES:
                    put(len(stream) - row_bytes)  # what may have to be dropped is less than a row
            rows, dropped = divmod(file_bytes + len(stream) - itemsize, row_bytes)
            put(len(stream) - dropped if rows else 0)
            file.flush()
            os.fsync(file.fileno())
        dropped_text_bytes = min(self.bytes, text_bytes(np.frombuffer(stream, self._id_dtype))) if rows else self.bytes
        return SplitStats(
            documents=self.documents,
            bytes=self.bytes - dropped_text_bytes,
            tokens=file_bytes // itemsize,
            rows=rows,
            dropped_tokens=dropped // itemsize,
            dropped_bytes=dropped_text_bytes,
            sha256=digest.hexdigest(),
        )
