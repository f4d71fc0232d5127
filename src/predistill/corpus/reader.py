"""A prepared corpus, read: rows of token ids by number, and which labels count, from memory-mapped files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.corpus.marks import CLOSES, COUNTED, mask_path
from predistill.errors import CorpusError, did_you_mean
from predistill.files import read_sealed_json
from predistill.fingerprint import file_sha256, settings_fingerprint

__all__ = ["FORMAT", "INSTRUCT_FORMAT", "SPLITS", "Corpus"]

FORMAT = "predistill-corpus-1"
INSTRUCT_FORMAT = "predistill-instruct-1"  # of its own, so that nobody who knows no mask reads one without it
SPLITS = ("train", "held_out")


class Corpus:
    """One split of the corpus that `predistill prepare` left at `path`. Safe to read from many threads.

    Raises `CorpusError` when there is no complete corpus or no such split, or when its files are not the manifest's.
    """

    def __init__(self, path: str | Path, split: str = "train") -> None:
        self.path = Path(path)
        self.split = split
        self.manifest = _manifest(self.path)
        if split not in SPLITS:
            raise CorpusError(f'{path}: no split "{split}"{did_you_mean(split, SPLITS)} One of {", ".join(SPLITS)}.')
        self.row_len: int = self.manifest["row_len"]
        self.document_mask: bool = self.manifest["document_mask"]
        self.vocab_size: int = self.manifest["tokenizer"]["vocab_size"]
        self.end_id: int = self.manifest["tokenizer"]["end_id"]
        self.tokenizer_path = self.path / "tokenizer.json"
        self.split_stats: dict[str, Any] = self.manifest["splits"][split]
        self.instruct: bool = self.manifest["format"] == INSTRUCT_FORMAT
        self._token_path = self.path / f"{split}.bin"
        self._tokens = _mapped(self._token_path, np.dtype(self.manifest["id_dtype"]), self.split_stats["tokens"])
        self._marks = None
        if self.instruct:
            self._marks = _mapped(mask_path(self._token_path), np.dtype(np.uint8), self.split_stats["tokens"])

    def __len__(self) -> int:
        rows: int = self.split_stats["rows"]
        return rows

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits over all that decides what a row holds: tokenizer, row rules, token files, masks."""
        decides = {key: self.manifest[key] for key in ("format", "row_len", "document_mask", "stream")}
        decides["tokenizer"] = self.manifest["tokenizer"]["sha256"]
        decides["tokens"] = {split: self.manifest["splits"][split]["sha256"] for split in SPLITS}
        if self.instruct:
            decides["masks"] = {split: self.manifest["splits"][split]["mask_sha256"] for split in SPLITS}
        return settings_fingerprint(decides)

    def rows(self, indices: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
        """Ids int64 [n, T + 1] of the rows `indices`, in the order asked, and which labels count: bool [n, T], of a row
        perhaps none; or None where all do, as in every corpus of text."""
        index = np.asarray(indices, dtype=np.int64)
        if index.size and (index.min() < 0 or index.max() >= len(self)):
            raise IndexError(f"rows of {self.path} ({self.split}) go from 0 to {len(self) - 1:,}")
        place = index[:, None] * self.row_len + np.arange(self.row_len + 1)
        counted = None if self._marks is None else (self._marks[place[:, 1:]] & COUNTED).astype(np.bool_)
        return self._tokens[place].astype(np.int64), counted

    def stream(self, start: int, stop: int) -> npt.NDArray[Any]:
        """Tokens `start` to `stop` of the split's stream, in the file's dtype; not a copy."""
        assert 0 <= start <= stop <= len(self._tokens)
        return self._tokens[start:stop]

    def marks(self, start: int, stop: int) -> npt.NDArray[np.uint8] | None:
        """The bytes of the mask file for tokens `start` to `stop` of the stream; None in a corpus of text."""
        return None if self._marks is None else self._marks[start:stop]

    def closes(self, start: int, stop: int) -> npt.NDArray[np.bool_]:
        """Which of the tokens `start` to `stop` close a document: a chat template may write end tokens within one."""
        ends: npt.NDArray[np.bool_]
        if self._marks is None:
            ends = self.stream(start, stop) == self.end_id
        else:
            ends = (self._marks[start:stop] & CLOSES).astype(np.bool_)
        return ends

    def verify(self) -> None:
        """Read token file, mask and tokenizer whole; raises `CorpusError` unless their hashes are the manifest's."""
        files = [
            (self._token_path, self.split_stats["sha256"]),
            (self.tokenizer_path, self.manifest["tokenizer"]["sha256"]),
        ]
        if self.instruct:
            files.append((mask_path(self._token_path), self.split_stats["mask_sha256"]))
        for path, sha256 in files:
            if file_sha256(path) != sha256:
                raise CorpusError(f"{path}: its bytes are not those that were written. Prepare the corpus again.")


def _manifest(path: Path) -> dict[str, Any]:
    file = path / "manifest.json"
    if not file.is_file():
        raise CorpusError(f"{path}: no prepared corpus here (no manifest.json). Make it with `predistill prepare`.")
    try:
        manifest = read_sealed_json(file)
    except ValueError as error:
        raise CorpusError(f"{file}: damaged: {error}. Prepare the corpus again.") from None
    if manifest.get("format") not in (FORMAT, INSTRUCT_FORMAT):
        raise CorpusError(
            f"{file}: format {manifest.get('format')!r}, and this version reads {FORMAT!r} and {INSTRUCT_FORMAT!r}. "
            "Prepare the corpus again."
        )
    return manifest


def _mapped(path: Path, id_dtype: np.dtype[Any], tokens: int) -> npt.NDArray[Any]:
    found = path.stat().st_size if path.is_file() else None
    if found != tokens * id_dtype.itemsize:
        state = "is missing" if found is None else f"has {found:,} bytes"
        raise CorpusError(
            f"{path}: {state}, the manifest says {tokens * id_dtype.itemsize:,} bytes. Prepare the corpus again."
        )
    return np.asarray(np.memmap(path, dtype=id_dtype, mode="r")) if tokens else np.empty(0, dtype=id_dtype)
