"""`predistill store export`: targets as Parquet, a line a position, for DuckDB, pandas and Hugging Face datasets.

A position is what one asks about: where is the entropy high, what did the teacher give the label, which words does it
keep beside it. Everything a position has is a plain column then, and its kept entries are two short lists; a line a
corpus row would make every question begin with taking long arrays apart. What is written is what `Store.rows` gives.
"""

# T positions of a row  N = n * T positions of n rows
from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError
from predistill.files import fsync_dir
from predistill.fingerprint import row_hash
from predistill.store.reader import Store
from predistill.store.rows import RowTargets

__all__ = ["TokenRows", "export"]

BATCH_POSITIONS = 1 << 15  # of one row group, about: DuckDB and datasets read a group at a time
FILE_BYTES = 256 << 20
OPTIONAL = {"entropy": "entropy_N", "logit_std": "logit_std_N", "label_logprob": "label_logprob_N"}
FLOATS = ("logprobs.list.element", "log_rest", "normaliser", *OPTIONAL)
Progress = Callable[[int, int], None]
Rows = npt.NDArray[np.int64]


class TokenRows(Protocol):
    """A corpus split, as far as an export needs it."""

    def rows(self, indices: npt.ArrayLike) -> tuple[npt.NDArray[np.int64], Any]:
        """(ids [n, T + 1], ...)"""


def export(
    where: str | Path,
    *,
    out: str | Path,
    rows: tuple[int, int] | None = None,
    corpus: TokenRows | None = None,
    file_bytes: int = FILE_BYTES,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Write the rows of a store that are there (of `rows`: start, stop) as Parquet: `out` is a file when it ends in
    .parquet, else a folder of files of about `file_bytes`.

    Columns: row int64, position int32, ids list<int32>, then logprobs list<float32> (nats, in descending order) or
    counts list<int32> of random draws, log_rest float32 (-inf: nothing was left out), and entropy, logit_std,
    label_logprob, normaliser float32 where the store has them. `corpus` adds input_id and label_id int32: the token
    that is read at the position, and the one to be predicted there; its rows must be those that were captured. Returns
    {"out", "files", "rows", "positions", "bytes"}. `on_progress(rows done, rows)`. Raises `StoreError`.
    """
    parquet = _parquet()
    store, out = Store(where), Path(out)
    if out.exists() and not overwrite:
        raise StoreError(f"{out}: is there already. Name another --out, or pass --overwrite.")
    start, stop = rows or (0, len(store))
    chosen = store.present()
    chosen = chosen[(chosen >= start) & (chosen < stop)]
    if not len(chosen):
        raise StoreError(f"{store.path}: none of its {store.totals['rows']:,} rows is among those asked for.")
    partial = out.with_name(f".{out.name}.partial")
    _remove(partial)
    single = out.suffix == ".parquet"
    try:
        (partial.parent if single else partial).mkdir(parents=True, exist_ok=True)
        with _Files(parquet, partial, single=single, file_bytes=file_bytes, about=_about(store)) as files:
            for done, table in _tables(store, chosen, corpus):
                files.write(table)
                if on_progress is not None:
                    on_progress(done, len(chosen))
        _remove(out)
        partial.rename(out)
        fsync_dir(out.parent)
    except OSError as error:
        raise StoreError(f"{out}: could not be written: {error.strerror or error}.") from None
    finally:
        _remove(partial)
    written = [out] if single else sorted(out.iterdir())
    return {
        "out": str(out),
        "files": len(written),
        "rows": len(chosen),
        "positions": len(chosen) * int(store.manifest["row_len"]),
        "bytes": sum(file.stat().st_size for file in written),
    }


class _Files:
    """Parquet files one after the other, the next one when one is large enough."""

    def __init__(
        self, parquet: ModuleType, path: Path, *, single: bool, file_bytes: int, about: dict[str, str]
    ) -> None:
        self._parquet, self._path, self._single, self._about = parquet, path, single, about
        self._file_bytes = file_bytes
        self._writer: Any = None
        self._count = 0

    def __enter__(self) -> _Files:
        return self

    def __exit__(self, *failure: object) -> None:
        self._close()

    def write(self, table: Any) -> None:
        """One row group."""
        if self._writer is None:
            self._current = self._path if self._single else self._path / f"{self._count:05d}.parquet"
            self._writer = self._opened(table.schema.with_metadata(self._about))
        self._writer.write_table(table.replace_schema_metadata(self._about), row_group_size=len(table))
        if not self._single and self._current.stat().st_size >= self._file_bytes:
            self._close()

    def _opened(self, schema: Any) -> Any:
        # Floats are split by byte, so that zstd sees exponents together; ids and row numbers repeat: a dictionary.
        split = [name for name in FLOATS if name.split(".", maxsplit=1)[0] in schema.names]
        return self._parquet.ParquetWriter(
            self._current,
            schema,
            compression="zstd",
            use_dictionary=["row", "position", "ids.list.element", "counts.list.element", "input_id", "label_id"],
            use_byte_stream_split=split,
            write_page_checksum=True,
        )

    def _close(self) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer, self._count = None, self._count + 1


def _tables(store: Store, chosen: Rows, corpus: TokenRows | None) -> Iterator[tuple[int, Any]]:
    """(rows done, a table of some positions)."""
    step = max(1, BATCH_POSITIONS // max(int(store.manifest["row_len"]), 1))
    for start in range(0, len(chosen), step):
        batch = chosen[start : start + step]
        ids_RT1 = None if corpus is None else corpus.rows(batch)[0]
        hashes = None if ids_RT1 is None else np.array([row_hash(ids) for ids in ids_RT1], np.uint64)
        yield start + len(batch), _table(store.rows(batch, hashes), ids_RT1)


def _table(targets: RowTargets, ids_RT1: npt.NDArray[np.int64] | None) -> Any:
    import pyarrow

    stop_N = np.concatenate((np.zeros(1, np.int32), np.cumsum(targets.length_N, dtype=np.int32)))

    def lists(values_E: npt.NDArray[Any]) -> Any:
        return pyarrow.ListArray.from_arrays(pyarrow.array(stop_N), pyarrow.array(values_E))

    columns: dict[str, Any] = {
        "row": np.repeat(targets.row_ids, targets.positions),
        "position": np.tile(np.arange(targets.positions, dtype=np.int32), len(targets.row_ids)),
    }
    if ids_RT1 is not None:
        columns["input_id"] = ids_RT1[:, :-1].reshape(-1).astype(np.int32)
        columns["label_id"] = ids_RT1[:, 1:].reshape(-1).astype(np.int32)
    columns["ids"] = lists(targets.ids_E)
    if targets.count_E is not None:
        columns["counts"] = lists(targets.count_E)
    if targets.logprob_E is not None:
        columns["logprobs"] = lists(targets.logprob_E)
    named = {"log_rest": targets.log_rest_N, "normaliser": targets.normaliser_N}
    named |= {name: getattr(targets, field) for name, field in OPTIONAL.items()}
    return pyarrow.table(columns | {name: values for name, values in named.items() if values is not None})


def _about(store: Store) -> dict[str, str]:
    """What the files say of themselves, in their schema's metadata."""
    keys = ("store_id", "alignment", "kind", "truncation", "sampling", "teacher", "tokenizer", "corpus")
    facts = {key: store.manifest[key] for key in keys if key in store.manifest}
    return {"predistill": json.dumps(facts, ensure_ascii=False)}


def _parquet() -> ModuleType:
    try:
        from pyarrow import parquet
    except ImportError:
        raise StoreError(
            "Parquet needs pyarrow, which is not installed. Install it with `pip install 'predistill[parquet]'`."
        ) from None
    module: ModuleType = parquet
    return module


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
