"""`predistill prepare CORPUS --select`: a part of a prepared corpus, whole documents, by difference or at random.

Difference sampling (Gu et al. 2024, MiniPLM, arXiv 2410.17215): keep the documents which a teacher finds
likelier than a small reference model does. What both find easy, and noise, which neither can foresee, goes.
"""

# D documents  N labels of some rows  T positions of a row
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill import __version__
from predistill.corpus import Corpus
from predistill.corpus.building import check_free
from predistill.corpus.chosen import copy_chosen, document_hashes, document_stops
from predistill.errors import CorpusError, RecipeError, StoreError
from predistill.fingerprint import row_hash
from predistill.store import Store

__all__ = ["difference_scores", "select", "top_documents"]

BLOCK_TOKENS = 1 << 14  # a store's rows come with all their entries: about 100 bytes a token here

Floats = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
OnProgress = Callable[[int, int, str], None]


def select(
    corpus: str | Path,
    *,
    out: str | Path,
    frac: float,
    by: str | Path | None = None,
    reference: str | Path | None = None,
    seed: int = 0,
    overwrite: bool = False,
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Write to `out` the documents of `corpus` with the highest score, until `frac` of its training tokens are full.

    With the stores `by` (a teacher's) and `reference`, both captured over the train split, a document's score is the
    mean over its labels of the teacher's log-probability less the reference's, in nats. With neither it is a hash of
    the document's tokens under `seed`, in [0, 1): a random part. The documents keep their order, the held-out split
    stays as it is. `on_progress` hears (done bytes, total bytes, phase), the phase score or copy. Returns the manifest
    with `path`, `fingerprint` and `notes`. Raises `RecipeError`, `CorpusError` or `StoreError`, one sentence.
    """
    _check_settings(frac=frac, by=by, reference=reference, seed=seed)
    source, out = Corpus(corpus), Path(out)
    check_free(out, overwrite=overwrite)
    if out.resolve() == source.path.resolve():
        raise CorpusError(f"{out}: is the corpus that is selected from. Choose another --out.")
    stores = [_opened(path, source) for path in (by, reference) if path is not None]
    if stores and stores[0].manifest["store_id"] == stores[1].manifest["store_id"]:
        raise StoreError(f"{by} and {reference} are one store, so that every score is 0. Give the reference's own.")
    for split in "held_out", "train":
        Corpus(corpus, split).verify()

    stop_D = document_stops(source)
    done = _Progress(source, frac, on_progress)
    if stores:
        score_D = difference_scores(source, stop_D, *stores, on_tokens=done.scored)
    else:
        score_D = document_hashes(source, stop_D, seed=seed) / 2.0**64
    chosen_D = top_documents(score_D, stop_D, frac=frac)
    selected = {
        "corpus": source.fingerprint,
        "frac": frac,
        "score": "difference" if stores else "hash",
        **({} if stores else {"seed": seed}),
        **{name: _facts(store) for name, store in zip(("teacher", "reference"), stores, strict=False)},
        "threshold": float(score_D[chosen_D].min()),
        "kept": _part(score_D, stop_D, chosen_D),
        "dropped": _part(score_D, stop_D, ~chosen_D),
        "without_score": max(0, source.split_stats["documents"] - len(stop_D)),
    }
    facts = {"predistill": __version__, "selected": [*source.manifest.get("selected", []), selected]}
    manifest = copy_chosen(source, chosen_D, stop_D, out=out, facts=facts, on_bytes=done.copied)
    return {"path": str(out), "fingerprint": Corpus(out).fingerprint, "notes": _notes(selected), **manifest}


def difference_scores(
    corpus: Corpus,
    stop_D: Int64s,
    teacher: Store,
    reference: Store,
    *,
    block_tokens: int = BLOCK_TOKENS,
    on_tokens: Callable[[int], None] | None = None,
) -> Floats:
    """Mean over each document's labels of the teacher's log-probability less the reference's: nats, float64[D].

    The rows are read a block at a time; log-probabilities are whole steps of a store's grid, so that their sums are
    exact and the size of a block changes nothing. `on_tokens` hears how many labels each block had.
    """
    total_D = np.zeros(len(stop_D))
    block_rows = max(1, block_tokens // corpus.row_len)
    for first in range(0, len(corpus), block_rows):
        rows = np.arange(first, min(first + block_rows, len(corpus)))
        hashes = [row_hash(ids) for ids in corpus.rows(rows)[0]]
        difference_N = _label_logprob(teacher, rows, hashes) - _label_logprob(reference, rows, hashes)
        label_N = rows[0] * corpus.row_len + np.arange(len(difference_N))
        document_N = np.searchsorted(stop_D, label_N, side="right")
        total_D[document_N[0] : document_N[-1] + 1] += np.bincount(document_N - document_N[0], weights=difference_N)
        if on_tokens is not None:
            on_tokens(len(difference_N))
    return total_D / np.diff(stop_D, prepend=0)


def top_documents(score_D: Floats, stop_D: Int64s, *, frac: float) -> Bools:
    """The documents with the highest score, the fewest that hold `frac` of all labels; equal scores in their order."""
    order = np.argsort(-score_D, kind="stable")
    filled = np.cumsum(np.diff(stop_D, prepend=0)[order])
    chosen_D = np.zeros(len(score_D), dtype=bool)
    chosen_D[order[: np.searchsorted(filled, frac * filled[-1]) + 1]] = True
    return chosen_D


class _Progress:
    """Bytes of the token file that were scored, then those that were copied, out of as many as there will be."""

    def __init__(self, corpus: Corpus, frac: float, hears: OnProgress | None) -> None:
        self._itemsize = corpus.stream(0, 1).itemsize
        self._score_bytes = len(corpus) * corpus.row_len * self._itemsize
        self._copy_bytes = int(frac * self._score_bytes)
        self._hears = hears
        self._scored = self._copied = 0

    def scored(self, tokens: int) -> None:
        self._scored += tokens * self._itemsize
        if self._hears is not None:
            self._hears(self._scored, self._score_bytes, "score")

    def copied(self, count: int) -> None:
        self._copied += count
        if self._hears is not None:
            self._hears(self._copied, max(self._copied, self._copy_bytes), "copy")


def _check_settings(*, frac: float, by: str | Path | None, reference: str | Path | None, seed: int) -> None:
    if not 0 < frac <= 1:
        raise RecipeError(f"--select {frac:g}: give a fraction above 0, at most 1.")
    if (by is None) != (reference is None):
        given, missing = ("--reference", "--by") if by is None else ("--by", "--reference")
        raise RecipeError(
            f"{given} without {missing}: a score is the difference of two stores, the teacher's (--by) and a smaller "
            "model's (--reference). Give both, or neither for a random part."
        )
    if not 0 <= seed < 1 << 64:
        raise RecipeError(f"--seed {seed}: give a number from 0 to below 2^64.")


def _opened(path: str | Path, corpus: Corpus) -> Store:
    store = Store(path)
    made_from = store.manifest["corpus"]
    for what, found, expected in (
        ("fingerprint", made_from["fingerprint"], corpus.fingerprint),
        ("split", made_from["split"], corpus.split),
    ):
        if found != expected:
            raise StoreError(
                f"{path}: was captured over something else than the train split of {corpus.path} ({what} {found}, "
                f"expected {expected}). Capture that with `predistill capture`, or select from the store's own corpus."
            )
    if store.totals["rows"] != len(corpus):
        raise StoreError(
            f"{path}: holds {store.totals['rows']:,} of the corpus's {len(corpus):,} rows, and scores are made of all. "
            "Capture the whole split with `predistill capture`."
        )
    if store.rows([0], fields=("label_logprob_N",)).label_logprob_N is None:
        raise StoreError(
            f"{path}: holds no log-probability of the labels, of which scores are made. Capture it again with "
            "`predistill capture`, which keeps them."
        )
    return store


def _label_logprob(store: Store, rows: Int64s, hashes: list[int]) -> Floats:
    logprob_N = store.rows(rows, np.array(hashes, dtype=np.uint64), fields=("label_logprob_N",)).label_logprob_N
    assert logprob_N is not None  # all records of a store keep the same
    return logprob_N.astype(np.float64)


def _facts(store: Store) -> dict[str, Any]:
    return {"store_id": store.manifest["store_id"], **{k: store.manifest["teacher"][k] for k in ("name", "sha256")}}


def _part(score_D: Floats, stop_D: Int64s, part_D: Bools) -> dict[str, Any]:
    return {
        "documents": int(part_D.sum()),
        "tokens": int(np.diff(stop_D, prepend=0)[part_D].sum()),
        "mean_score": float(score_D[part_D].mean()) if part_D.any() else None,
    }


def _notes(selected: dict[str, Any]) -> list[str]:
    kept, dropped = selected["kept"], selected["dropped"]
    documents, tokens = (kept[name] + dropped[name] for name in ("documents", "tokens"))
    notes = [f"Kept {kept['documents']:,} of {documents:,} documents, {kept['tokens']:,} of {tokens:,} tokens."]
    if selected["score"] == "difference" and dropped["documents"]:
        notes.append(
            f"The teacher is ahead of the reference by {kept['mean_score']:.3f} nats a token in the mean of the "
            f"documents kept, by {dropped['mean_score']:.3f} in that of the others; the last one kept has "
            f"{selected['threshold']:.3f}."
        )
    if selected["without_score"]:
        notes.append(
            f"Not kept: {selected['without_score']:,} documents behind the last whole row, which have no label in it."
        )
    return notes
