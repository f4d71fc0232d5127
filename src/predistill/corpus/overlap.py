"""Task files, and the documents that share a gram with them (`grams.py`).

A row's texts are its strings, wherever they stand in it. One in a list is an option: it is also read in the place of a
gap (`____`) of each other text of the row, or behind a text without one, as it would stand in the document that the
row was made of. Which strings are questions, passages, answers is not asked: an id or a label is shorter than a gram,
and is left so.
"""

# G grams
from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.corpus.grams import GRAM_WORDS, grams
from predistill.corpus.sources import json_records
from predistill.errors import CorpusError
from predistill.fingerprint import file_sha256

__all__ = ["TaskFile", "TaskGrams", "row_texts", "task_grams"]

BATCH_CHARS = 1 << 18
FILTER_BITS = 16  # a gram; one look-up in 16 of what no task holds goes on to the search
GAP = re.compile("_+")
NAMES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True)
class TaskFile:
    """A file of rows: how many, how many of these are shorter than a gram, and how many different grams there are."""

    name: str
    sha256: str
    rows: int
    short_rows: int
    grams: int


@dataclass(frozen=True)
class TaskGrams:
    """Grams of task files: `hash_G` ascending, each once for every file that has it, and its number in `file_G`."""

    hash_G: npt.NDArray[np.uint64]
    file_G: npt.NDArray[np.uint16]

    def __len__(self) -> int:
        """How many are different."""
        return int(np.count_nonzero(self.hash_G[1:] != self.hash_G[:-1])) + min(len(self.hash_G), 1)

    def files_met(self, texts: Sequence[str]) -> list[list[int]]:
        """Of each of `texts` the numbers of the files it shares a gram with, ascending."""
        met: list[set[int]] = [set() for _ in texts]
        for hash_G, text_G in grams(texts):
            maybe = np.flatnonzero(self._may_have(hash_G))
            first = np.searchsorted(self.hash_G, hash_G[maybe])
            found = self.hash_G.take(first, mode="clip") == hash_G[maybe]
            for each, start in zip(maybe[found], first[found], strict=True):
                stop = np.searchsorted(self.hash_G, hash_G[each], side="right")
                met[text_G[each]].update(self.file_G[start:stop].tolist())
        return [sorted(files) for files in met]

    def save(self, folder: Path) -> None:
        """Write it to a new folder."""
        folder.mkdir()
        np.save(folder / "hash.npy", self.hash_G)
        np.save(folder / "file.npy", self.file_G)

    @classmethod
    def load(cls, folder: Path) -> TaskGrams:
        """What was saved there, in memory that processes share."""
        return cls(*(np.asarray(np.load(folder / name, mmap_mode="r")) for name in ("hash.npy", "file.npy")))

    @cached_property
    def _filter(self) -> tuple[npt.NDArray[np.uint8], np.uint64]:
        """A bit for every beginning of a hash, and by how far a hash is shifted to be one."""
        bits = max((FILTER_BITS * len(self.hash_G) - 1).bit_length(), 3)
        shift = np.uint64(64 - bits)
        seen = np.zeros(1 << bits, np.bool_)
        seen[self.hash_G >> shift] = True
        return np.packbits(seen, bitorder="little"), shift

    def _may_have(self, hash_G: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
        seen, shift = self._filter
        begins_G = (hash_G >> shift).astype(np.int64)
        bit_G: npt.NDArray[np.uint8] = (seen[begins_G >> 3] >> (begins_G & 7).astype(np.uint8)) & 1
        return bit_G


def task_grams(sources: Sequence[str | Path]) -> tuple[TaskGrams, list[TaskFile]]:
    """The grams of the task files `sources`, a folder standing for those in it, and what each file holds.

    Raises `CorpusError` for a source that is missing, holds no file of rows or no row as long as a gram, and for a line
    that is not JSON.
    """
    files: dict[Path, tuple[npt.NDArray[np.uint64], TaskFile]] = {}
    for source in map(Path, sources):
        within = _files_of(source)
        for path in within:
            if path.resolve() not in files:
                files[path.resolve()] = _file_grams(path)
        if not any(files[path.resolve()][1].grams for path in within):
            found = f"no row has {GRAM_WORDS} words in a row, so that nothing can be found in documents"
            raise CorpusError(f"{source}: {found}. Leave it out of --decontaminate.")
    hash_G = np.concatenate([each for each, _ in files.values()])
    file_G = np.repeat(np.arange(len(files), dtype=np.uint16), [facts.grams for _, facts in files.values()])
    order = np.argsort(hash_G, kind="stable")
    return TaskGrams(hash_G[order], file_G[order]), [facts for _, facts in files.values()]


def row_texts(row: Mapping[str, Any]) -> list[str]:
    """The texts of a row: each of its strings, and each option in or behind each text."""
    stems: list[str] = []
    options: list[str] = []
    for value in row.values():
        _gather(value, stems, options)
    sentences = [stem for stem in stems if " " in stem or not stem.isascii()]  # one word is a label
    return [*stems, *options, *(_completed(stem, option) for stem in sentences for option in options)]


def _completed(stem: str, option: str) -> str:
    return GAP.sub(lambda _: option, stem) if GAP.search(stem) else f"{stem} {option}"


def _gather(value: Any, strings: list[str], options: list[str]) -> None:
    """Add the strings of `value` to `strings`, and those in a list to `options`."""
    if isinstance(value, str):
        strings.append(value)
    elif isinstance(value, dict):
        for each in value.values():
            _gather(each, strings, options)
    elif isinstance(value, list):
        for each in value:
            _gather(each, options, options)


def _file_grams(path: Path) -> tuple[npt.NDArray[np.uint64], TaskFile]:
    rows = long_rows = 0
    found = [np.empty(0, np.uint64)]
    for batch in _batches(row_texts(record) for _, record in json_records(path)):
        rows += len(batch)
        row_of = np.repeat(np.arange(len(batch)), [len(texts) for texts in batch])
        long = np.zeros(len(batch), np.bool_)
        for hash_G, text_G in grams([text for texts in batch for text in texts]):
            long[row_of[text_G]] = True
            found.append(hash_G)
        long_rows += int(np.count_nonzero(long))
    hash_G = np.sort(np.concatenate(found))  # np.unique hashes: 20 s for ten million, against 1.3
    hash_G = hash_G[np.diff(hash_G, prepend=~hash_G[:1]) != 0]
    return hash_G, TaskFile(path.name, file_sha256(path), rows, rows - long_rows, len(hash_G))


def _batches(rows: Iterable[list[str]]) -> Iterator[list[list[str]]]:
    batch: list[list[str]] = []
    chars = 0
    for texts in rows:
        batch.append(texts)
        chars += sum(map(len, texts))
        if chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch


def _files_of(source: Path) -> list[Path]:
    if not source.exists():
        raise CorpusError(f"{source}: no such file or folder. Check the path given to --decontaminate.")
    within = [source]
    if source.is_dir():
        within = [path for path in sorted(source.rglob("*")) if path.name.endswith(NAMES) and path.is_file()]
    if not within or not within[0].name.endswith(NAMES):
        found = "the folder holds none" if source.is_dir() else "this is none"
        raise CorpusError(f"{source}: --decontaminate reads .jsonl files (plain, .gz or .zst), and {found}.")
    return within
