"""`predistill store seal`: seal a store in the making, of which a corpus or the user knows how many rows it would have."""

from __future__ import annotations

from pathlib import Path

from predistill.corpus import Corpus
from predistill.errors import RecipeError, StoreError
from predistill.store import Store
from predistill.store.begun import begun_parts
from predistill.store.begun import seal as seal_rows
from predistill.store.place import open_place

__all__ = ["seal"]


def seal(
    where: str | Path, *, corpus: str | Path | None = None, rows: int | None = None, partial: bool = False
) -> Store:
    """As `store.begun.seal`, for a store over `corpus`, or over a corpus split of so many rows. Raises `StoreError`,
    `RecipeError` or `CorpusError`."""
    facts = begun_parts(open_place(where))[0]["facts"]
    if (corpus is None) == (rows is None):
        raise RecipeError(
            f"{where}: a store in the making does not know how many rows its corpus split has. Give --corpus, or --rows."
        )
    if corpus is not None:
        made = facts["corpus"]
        source = Corpus(corpus, split=made.get("split", "train"))
        if source.fingerprint != made["fingerprint"]:
            raise StoreError(
                f"{where}: it is captured over another corpus (fingerprint {made['fingerprint']}, {corpus} has "
                f"{source.fingerprint}). Name that one."
            )
        rows = len(source)
    assert rows is not None
    if rows < 1:
        raise RecipeError(f"--rows {rows}: give how many rows the corpus split has.")
    return seal_rows(where, rows_expected=rows, partial=partial)
