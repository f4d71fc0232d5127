"""The documents of a corpus, found in its token stream, and a new corpus of those that were chosen.

Labels are numbered as rows and stores have them: label n is token n + 1 of the stream, position n % T of row n // T. A
document is what lies between two tokens that close one, with its own. The last document may be cut by the end of
the last row; documents that lie wholly behind it are in no row, and not among these.
"""

# D documents  T positions of a row
from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

from predistill.corpus.building import moved_when_whole
from predistill.corpus.chat import TEMPLATE_FILE
from predistill.corpus.marks import mask_path
from predistill.corpus.reader import Corpus
from predistill.corpus.rows import SplitStats, TokenFiles
from predistill.corpus.tokenizer import load_tokenizer
from predistill.errors import CorpusError
from predistill.files import write_sealed_json

__all__ = ["copy_chosen", "document_hashes", "document_stops"]

BLOCK_TOKENS = 1 << 20

Int64s = npt.NDArray[np.int64]
UInt64s = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]


def document_stops(corpus: Corpus, *, block_tokens: int = BLOCK_TOKENS) -> Int64s:
    """One more than the number of each document's last label: int64[D], ascending, the last one all labels."""
    labels = len(corpus) * corpus.row_len
    stops = [
        start + 1 + np.flatnonzero(corpus.closes(start + 1, min(start + block_tokens, labels) + 1))
        for start in range(0, labels, block_tokens)
    ]
    stop_D = np.concatenate([np.empty(0, dtype=np.int64), *stops])
    cut = labels > 0 and (len(stop_D) == 0 or stop_D[-1] < labels)
    return np.append(stop_D, labels) if cut else stop_D


def document_hashes(corpus: Corpus, stop_D: Int64s, *, seed: int) -> UInt64s:
    """xxh64 under `seed` of each document's tokens as little-endian int32: uint64[D]."""
    hashes = (
        xxhash.xxh64_intdigest(corpus.stream(start + 1, stop + 1).astype("<i4").tobytes(), seed=seed)
        for start, stop in _spans(stop_D)
    )
    return np.fromiter(hashes, dtype=np.uint64, count=len(stop_D))


def copy_chosen(
    corpus: Corpus,
    chosen_D: Bools,
    stop_D: Int64s,
    *,
    out: Path,
    facts: dict[str, Any],
    on_bytes: Callable[[int], None],
) -> dict[str, Any]:
    """Write a corpus of the chosen training documents, in their order, and the whole held-out split; its manifest.

    All else is `corpus`'s: tokenizer, row length, document mask. `facts` are what the manifest says otherwise;
    `on_bytes` hears of each document's bytes. Memory grows with the longest document alone.
    Raises `CorpusError` when the documents fill no row.
    """
    assert corpus.split == "train"
    labels = int(np.diff(stop_D, prepend=0)[chosen_D].sum())
    if labels < corpus.row_len:
        found = f"the chosen documents hold {labels:,} tokens and fill no row of {corpus.row_len:,}"
        raise CorpusError(f"{out}: {found}. Select a larger part of {corpus.path}.")
    with moved_when_whole(out) as folder:
        names = ["tokenizer.json", "tokenizer_config.json", "held_out.bin"]
        if corpus.instruct:
            names += [TEMPLATE_FILE, mask_path(folder / "held_out.bin").name]
        for name in names:
            _copy(corpus.path / name, folder / name)
        train = _write(corpus, chosen_D, stop_D, labels=labels, path=folder / "train.bin", on_bytes=on_bytes)
        manifest = {
            **corpus.manifest,
            **facts,
            "splits": {**corpus.manifest["splits"], "train": train},
        }
        write_sealed_json(folder / "manifest.json", manifest)
    return manifest


def _write(
    corpus: Corpus, chosen_D: Bools, stop_D: Int64s, *, labels: int, path: Path, on_bytes: Callable[[int], None]
) -> SplitStats:
    tokenizer = load_tokenizer(corpus.path)
    rows, dropped = divmod(labels, corpus.row_len)
    left = labels - dropped
    opener = corpus.stream(0, 1)
    text_bytes = 0
    tail = [opener[:0]]
    with TokenFiles(path, marked=corpus.instruct) as files:
        files.write(opener, corpus.marks(0, 1))
        for (start, stop), chosen in zip(_spans(stop_D), chosen_D, strict=True):
            if not chosen:
                continue
            ids = corpus.stream(start + 1, stop + 1)
            text_bytes += tokenizer.text_bytes(ids)
            kept = ids[:left]
            files.write(kept, corpus.marks(start + 1, start + 1 + len(kept)))
            tail.append(ids[left:])
            left -= len(kept)
            on_bytes(kept.nbytes)
    dropped_bytes = min(text_bytes, tokenizer.text_bytes(np.concatenate(tail)))
    return SplitStats(
        documents=int(chosen_D.sum()),
        bytes=text_bytes - dropped_bytes,
        tokens=labels - dropped + 1,
        rows=rows,
        dropped_tokens=dropped,
        dropped_bytes=dropped_bytes,
        **files.facts,
    )


def _spans(stop_D: Int64s) -> zip[tuple[int, int]]:
    """The labels of each document: from, to."""
    stops = stop_D.tolist()
    return zip([0, *stops[:-1]], stops, strict=True)


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as read, target.open("wb") as write:
        shutil.copyfileobj(read, write)
        write.flush()
        os.fsync(write.fileno())
