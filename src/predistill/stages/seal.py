"""`predistill store seal`: seal a store in the making; its corpus, or the user, knows how many rows it would have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from predistill.corpus import Corpus
from predistill.errors import RecipeError, StoreError
from predistill.store import Store
from predistill.store.verbs.begun import begun_parts, reached
from predistill.store.verbs.begun import seal as seal_rows

__all__ = ["corpus_of", "seal"]


def seal(
    where: str | Path, *, corpus: str | Path | None = None, rows: int | None = None, partial: bool = False
) -> Store:
    """As `store.begun.seal`, for a store over `corpus`, or over a corpus split of so many rows. Raises `StoreError`,
    `RecipeError` or `CorpusError`."""
    facts = begun_parts(reached(where))[0]["facts"]
    if (corpus is None) == (rows is None):
        raise RecipeError(
            f"{where}: a store in the making does not know how many rows its corpus split has. Give --corpus or --rows."
        )
    if corpus is not None:
        rows = len(corpus_of(where, facts, corpus))
    assert rows is not None
    if rows < 1:
        raise RecipeError(f"--rows {rows}: give how many rows the corpus split has.")
    return seal_rows(where, rows_expected=rows, partial=partial)


def corpus_of(where: str | Path, facts: dict[str, Any], corpus: str | Path) -> Corpus:
    """The split that store `where` of such facts is captured over; `StoreError` where `corpus` is another."""
    made = facts["corpus"]
    source = Corpus(corpus, split=made.get("split", "train"))
    if source.fingerprint != made["fingerprint"]:
        raise StoreError(
            f"{where}: it is captured over another corpus (fingerprint {made['fingerprint']}, {corpus} has "
            f"{source.fingerprint}). Name that one."
        )
    return source
