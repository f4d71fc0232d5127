"""`predistill store VERB`: look into teacher stores, check and mend them, make others of them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from predistill.errors import RecipeError
from predistill.terminal import progress, show

__all__ = ["store_app"]

store_app = typer.Typer(
    help="Look into teacher stores, check and mend them, make others of them.", no_args_is_help=True
)

# A store is named by a path or a URL; as a Path "s3://" would lose a slash.
Store = Annotated[str, typer.Argument(metavar="STORE", help="Directory or URL of a store.")]
NewStore = Annotated[str, typer.Option("--out", help="Directory or URL of the new store.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of words.")]


@store_app.command("inspect")
def store_inspect(store: Store, as_json: Json = False) -> None:
    """Where a store's bytes go, what it holds and was made from; of one in the making, who writes it."""
    from predistill.store.verbs.contents import contents
    from predistill.store.verbs.shown import shown

    facts = contents(store)
    show(facts, as_json, shown(facts))


@store_app.command("verify")
def store_verify(
    store: Store,
    teacher: Annotated[Path | None, typer.Option(help="Also compute rows again with the teacher it names.")] = None,
    corpus: Annotated[Path | None, typer.Option(help="The corpus it was captured over, for --teacher.")] = None,
    rows: Annotated[int | None, typer.Option(help="Compare at least so many rows; default: 64.")] = None,
    dtype: Annotated[str | None, typer.Option(help="Precision of the teacher; it has to be the store's.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the corpus; it has to be the store's.")] = None,
    seed: Annotated[int | None, typer.Option(help="Rows at random instead of evenly spaced.")] = None,
    as_json: Json = False,
) -> None:
    """Compare every checksum of a store; with --teacher and --corpus also what is stored with what the teacher says."""
    from predistill.store import Store as Opened

    given = {"--rows": rows, "--dtype": dtype, "--split": split, "--seed": seed}
    if (teacher is None) != (corpus is None):
        raise RecipeError("--teacher and --corpus go together: the teacher is run over rows of the corpus.")
    if teacher is None and (unread := [name for name, value in given.items() if value is not None]):
        raise RecipeError(f"{', '.join(unread)}: without --teacher and --corpus only checksums are compared.")
    opened = Opened(store)
    with progress("verify", unit="shards", quiet=as_json) as advance:
        opened.verify(advance)
    facts: dict[str, Any] = {"rows": opened.totals["rows"], "intact": True}
    words = f"{store}: {facts['rows']:,} rows, every checksum matches."
    if teacher is not None and corpus is not None:
        from predistill.stages.verify import in_words, verify_teacher

        with progress("teacher", unit="groups", quiet=as_json) as advance:
            found = verify_teacher(
                store,
                teacher=teacher,
                corpus=corpus,
                rows=64 if rows is None else rows,
                dtype=dtype,
                split=split,
                seed=seed,
                on_progress=advance,
            )
        facts["teacher"] = found
        words += "\n" + in_words(found)
    show(facts, as_json, words)


@store_app.command("repair")
def store_repair(store: Store, as_json: Json = False) -> None:
    """Keep every whole record of a damaged store, and say which rows to capture again."""
    from predistill.store.verbs.repair import in_words, repair

    with progress("repair", unit="shards", quiet=as_json) as advance:
        facts = repair(store, on_progress=advance)
    show(facts, as_json, in_words(facts))


@store_app.command("seal")
def store_seal(
    store: Store,
    corpus: Annotated[Path | None, typer.Option(help="The corpus it is captured over, which knows its rows.")] = None,
    rows: Annotated[int | None, typer.Option(help="How many rows the corpus split has, instead of --corpus.")] = None,
    partial: Annotated[bool, typer.Option("--partial", help="Seal what is there, though rows are missing.")] = False,
    as_json: Json = False,
) -> None:
    """Seal a store in the making whose capture you do not go on with."""
    from predistill.stages.seal import seal

    sealed = seal(store, corpus=corpus, rows=rows, partial=partial)
    _show_store(sealed, as_json)


@store_app.command("merge")
def store_merge(
    stores: Annotated[list[str], typer.Argument(metavar="STORE...", help="Stores of different rows of one corpus.")],
    out: NewStore,
    as_json: Json = False,
) -> None:
    """Make one store of several that hold different rows of one corpus."""
    from predistill.store.verbs.merge import merge

    with progress("merge", unit="rows", quiet=as_json) as advance:
        merged = merge(stores, out=out, on_progress=advance)
    _show_store(merged, as_json)


@store_app.command("select")
def store_select(
    store: Store,
    out: NewStore,
    top_p: Annotated[float | None, typer.Option(help="Keep the smallest set with at least this mass.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Keep at most so many words.")] = None,
    draws: Annotated[int | None, typer.Option(help="Keep so many of the random draws.")] = None,
    rows: Annotated[str | None, typer.Option(help="START:STOP, or how many from the first on.")] = None,
    fraction: Annotated[float | None, typer.Option(help="A random part of the rows.")] = None,
    seed: Annotated[int, typer.Option(help="Of --fraction.")] = 0,
    as_json: Json = False,
) -> None:
    """Make a smaller store: a narrower cut, or some of the rows. The teacher is not needed."""
    from predistill.stages.select import select

    with progress("select", unit="rows", quiet=as_json) as advance:
        selected = select(
            store,
            out=out,
            top_p=top_p,
            top_k=top_k,
            draws=draws,
            rows=rows,
            fraction=fraction,
            seed=seed,
            on_progress=advance,
        )
    _show_store(selected, as_json)


@store_app.command("export")
def store_export(
    store: Store,
    out: Annotated[Path, typer.Option("--out", help="A .parquet file, or a folder for several.")],
    corpus: Annotated[Path | None, typer.Option(help="Its corpus: adds the tokens, input_id and label_id.")] = None,
    rows: Annotated[str | None, typer.Option(help="START:STOP, or how many from the first on.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a store as Parquet, a line a position, for DuckDB, pandas or Hugging Face datasets."""
    from predistill.stages.export import export

    with progress("export", unit="rows", quiet=as_json) as advance:
        facts = export(store, out=out, corpus=corpus, rows=rows, overwrite=overwrite, on_progress=advance)
    words = f"{facts['out']}: {facts['rows']:,} rows, {facts['positions']:,} positions, {facts['bytes']:,} bytes in "
    show(facts, as_json, words + (f"{facts['files']:,} files" if facts["files"] != 1 else "one file"))


def _show_store(store: Any, as_json: bool) -> None:
    """What a store that was just sealed holds."""
    facts = {"store": store.path, "store_id": store.manifest["store_id"], "rows_expected": len(store), **store.totals}
    missing = len(store) - facts["rows"]
    words = f"{store.path}: {facts['rows']:,} rows, {facts['bytes']:,} bytes, " + (
        f"sealed; {missing:,} rows of the corpus split are not in it" if missing else "complete"
    )
    show(facts, as_json, words)
