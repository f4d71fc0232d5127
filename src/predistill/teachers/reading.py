"""What is read of a store for training, as numpy arrays: by the training process itself, or by others ahead of it.

No torch in here, so that a process that only reads starts at once; only a truncation narrower than the store's needs
it, since the cut is the objective's own.
"""

# n rows  T position
from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.fingerprint import row_hash
from predistill.store import RawRows, Store
from predistill.teachers.padded import padded_arrays

__all__ = ["Arrays", "Reading", "raw_rows_of", "read_targets"]

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, slots=True)
class Reading:
    """How a store is read; plain data, to be sent to another process.

    `raw`: the stored integers, for an accelerator to finish; else padded arrays. `cut`: the narrower truncation, as
    plain data, that padded arrays are cut to.
    """

    fields: tuple[str, ...] = ()
    draws: int | None = None
    tau: float | None = None
    raw: bool = False
    cut: dict[str, Any] | None = None


def read_targets(store: Store, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], reading: Reading) -> Arrays:
    """The arrays of `RawRows` or `SparseTargets`, by their names, of corpus rows `rows`, whose token ids are `ids`
    [n, T + 1]. A row that is not in the store has no entries.

    Raises StoreError when a record is damaged or was made from other tokens.
    """
    hashes = np.array([row_hash(row) for row in ids], dtype=np.uint64)
    if reading.raw:
        return _compact(store.raw_rows(rows, hashes, fields=reading.fields, absent_ok=True))
    stored = store.rows(rows, hashes, fields=reading.fields, absent_ok=True)
    arrays = padded_arrays(stored, draws=reading.draws, tau=reading.tau)
    return arrays if reading.cut is None else _cut(arrays, rows, reading)


def raw_rows_of(arrays: Arrays, rows: npt.NDArray[np.int64]) -> RawRows:
    """The raw rows that `read_targets` gave the arrays of."""
    return RawRows(row_ids=rows, positions=len(arrays["length_N"]) // len(rows), sampled="count_E" in arrays, **arrays)


def _compact(raw: RawRows) -> Arrays:
    """The arrays, each in the narrowest integers that hold it."""
    found = {field.name: getattr(raw, field.name) for field in fields(raw) if field.name.endswith(("_N", "_E"))}
    return {
        name: array.astype(np.min_scalar_type(array.max(initial=0)))
        for name, array in found.items()
        if array is not None
    }


def _cut(arrays: Arrays, rows: npt.NDArray[np.int64], reading: Reading) -> Arrays:
    import torch
    from pydantic import TypeAdapter

    from predistill.objective import SparseTargets, Truncation
    from predistill.teachers.narrowed import narrowed

    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    targets = SparseTargets(**tensors, draws=reading.draws, tau=reading.tau)
    targets = narrowed(targets, rows, TypeAdapter(Truncation).validate_python(reading.cut))
    return {name: array.numpy() for name in arrays if (array := getattr(targets, name)) is not None}
