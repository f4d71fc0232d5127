"""`predistill store export`: a store as Parquet, with the tokens of its corpus beside it where they are asked for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from predistill.stages.seal import corpus_of
from predistill.stages.select import parse_rows
from predistill.store import Store
from predistill.store.verbs.export import export as export_rows

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
    store = Store(where)
    source = None if corpus is None else corpus_of(where, store.manifest, corpus)
    return export_rows(
        where,
        out=out,
        rows=None if rows is None else parse_rows(rows, len(store)),
        corpus=source,
        overwrite=overwrite,
        on_progress=on_progress,
    )
