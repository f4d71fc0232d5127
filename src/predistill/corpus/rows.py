"""One split of a corpus on its way to disk: documents shuffled, joined into one stream, cut into rows.

The stream is `<e> document <e> document <e> ...`. Row i is tokens[i * T : i * T + T + 1]: neighbours share one token,
so that every token but the first is a label once. The tokens after the last whole row are dropped and counted. Marks on
tokens (`marks.py`) go to a file of their own, a byte a token of the stream.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np
import numpy.typing as npt
import xxhash

from predistill.corpus.marks import COUNTED, MARKED_DTYPE, ids_and_marks, mask_path
from predistill.corpus.shuffle import DiskShuffle

__all__ = ["SplitStats", "SplitWriter", "TokenFiles", "id_dtype_of"]

WRITE_BYTES = 1 << 20

IdArray = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]


def id_dtype_of(vocab_size: int) -> np.dtype[Any]:
    """The dtype of token files: little-endian uint16 while the vocabulary fits, else uint32."""
    return np.dtype("<u2") if vocab_size <= 1 << 16 else np.dtype("<u4")


class FileFacts(TypedDict):
    """Hashes of a split's files; with marks also how many labels of the rows are `counted`."""

    sha256: str
    counted: NotRequired[int]
    mask_sha256: NotRequired[str]


class SplitStats(FileFacts):
    """What one split holds.

    `tokens` are those in the file, rows * T + 1 (0 without a row); `bytes` are the UTF-8 bytes of text that they stand
    for, and `dropped_bytes` those of the dropped tail (where the cut goes through a character, to within its 4 bytes).
    """

    documents: int
    bytes: int
    tokens: int
    rows: int
    dropped_tokens: int
    dropped_bytes: int


class TokenFiles:
    """The token file of a split, and its mask file where there is one, while they are written: `with` makes them
    durable."""

    def __init__(self, path: Path, *, marked: bool) -> None:
        self._paths = [path, mask_path(path)] if marked else [path]
        self._digests = [hashlib.sha256() for _ in self._paths]
        self._counted = 0

    def __enter__(self) -> TokenFiles:
        self._files = [path.open("wb") for path in self._paths]
        return self

    def __exit__(self, *failure: object) -> None:
        for file in self._files:
            file.flush()
            os.fsync(file.fileno())
            file.close()

    def write(self, ids: npt.NDArray[Any], marks: npt.NDArray[np.uint8] | None) -> None:
        """Go on with `ids`, and their marks in a marked split."""
        arrays = [ids] if marks is None else [ids, marks]
        for file, digest, array in zip(self._files, self._digests, arrays, strict=True):
            data = array.tobytes()
            file.write(data)
            digest.update(data)
        if marks is not None:
            self._counted += int(np.count_nonzero(marks & COUNTED))

    @property
    def facts(self) -> FileFacts:
        """What the manifest says of what was written."""
        tokens, *mask = (digest.hexdigest() for digest in self._digests)
        if not mask:
            return FileFacts(sha256=tokens)
        return FileFacts(sha256=tokens, counted=self._counted, mask_sha256=mask[0])


class SplitWriter:
    """Takes the documents of one split, and writes its token file once all are in."""

    def __init__(
        self, path: Path, *, row_len: int, end_id: int, id_dtype: np.dtype[Any], seed: int, marked: bool = False
    ) -> None:
        """`marked`: ids come as `marked_ids` gives them, with their marks and the end token."""
        self._path = path
        self._row_len = row_len
        self._id_dtype = id_dtype
        self._marked = marked
        self._dtype = MARKED_DTYPE if marked else id_dtype
        self._opener = np.array([end_id], dtype=self._dtype).tobytes()
        self._end = b"" if marked else self._opener
        self._seed = seed
        self._shuffle = DiskShuffle(path.with_suffix(".shuffle"))
        self._number = 0
        self.documents = 0
        self.bytes = 0
        self.token_bytes = 0

    def add(self, text: bytes, ids: bytes) -> None:
        """Take a document. Its place is drawn from the seed, its number in the split and its text: twins part."""
        number = self._number.to_bytes(8, "little")
        self._shuffle.add(xxhash.xxh64_intdigest(number + text, seed=self._seed), ids + self._end)
        self._number += 1
        self.documents += 1
        self.bytes += len(text)
        self.token_bytes += len(ids) + len(self._end)

    def leave_out(self) -> None:
        """Pass over a document: all others are in the order that they have beside it."""
        self._number += 1

    def finish(self, *, text_bytes: Callable[[IdArray], int], on_bytes: Callable[[int], None]) -> SplitStats:
        """Write the token file. `text_bytes`: how many bytes of text ids stand for; `on_bytes` hears of each write."""
        itemsize = self._dtype.itemsize
        row_bytes = self._row_len * itemsize
        file_bytes = 0
        stream = bytearray(self._opener)
        with TokenFiles(self._path, marked=self._marked) as files:

            def put(count: int) -> None:
                nonlocal file_bytes
                files.write(*self._parted(stream[:count]))
                del stream[:count]
                file_bytes += count
                on_bytes(count)

            for payload in self._shuffle:
                stream += payload
                if len(stream) > row_bytes + WRITE_BYTES:
                    put(len(stream) - row_bytes)  # what may have to be dropped is less than a row
            rows, dropped = divmod(file_bytes + len(stream) - itemsize, row_bytes)
            put(len(stream) - dropped if rows else 0)
        dropped_text_bytes = min(self.bytes, text_bytes(self._parted(stream)[0])) if rows else self.bytes
        return SplitStats(
            documents=self.documents,
            bytes=self.bytes - dropped_text_bytes,
            tokens=file_bytes // itemsize,
            rows=rows,
            dropped_tokens=dropped // itemsize,
            dropped_bytes=dropped_text_bytes,
            **files.facts,
        )

    def _parted(self, data: bytearray) -> tuple[IdArray, npt.NDArray[np.uint8] | None]:
        ids = np.frombuffer(bytes(data), self._dtype)
        return ids_and_marks(ids, self._id_dtype) if self._marked else (ids, None)
