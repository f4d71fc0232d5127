"""`predistill store export`: a store as Parquet, with the tokens of its corpus beside it where they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from predistill.corpus import Corpus
from predistill.errors import StoreError
from predistill.stages.select import parse_rows
from predistill.store import Store
from predistill.store.export import export as export_rows

__all__ = ["export"]


def export(
    where: str | Path,
    *,
    out: str | Path,
    corpus: str | Path | None = None,
    rows: str | None = None,
    overwrite: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """As `store.export.export`; `rows` as in `select`. Raises `StoreError`, `RecipeError` or `CorpusError`."""
    store, source = Store(where), None
    if corpus is not None:
        made = store.manifest["corpus"]
        source = Corpus(corpus, split=made.get("split", "train"))
        if source.fingerprint != made["fingerprint"]:
            raise StoreError(
                f"{where}: it was captured over another corpus (fingerprint {made['fingerprint']}, {corpus} has "
                f"{source.fingerprint}). Name that one."
            )
    return export_rows(
        where,
        out=out,
        rows=None if rows is None else parse_rows(rows, len(store)),
        corpus=source,
        overwrite=overwrite,
        on_progress=on_progress,
    )
