"""A truncation of the rows of store_data.py in our own store: bytes, and what a reader gives. Not a benchmark itself.

T positions of a row  N positions  K kept entries  E entries of all positions  V vocabulary
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from store_data import DRAWS, KEPT, ROW_LEN, Arrays

from predistill.fingerprint import row_hash
from predistill.stages.capture import SAMPLE_GROUPS, group_rows
from predistill.store import GRIDS, RowTargets, Store, StoreWriter


class Cut(NamedTuple):
    """A truncation; p None: all k words; k None: the draws."""

    p: float | None
    k: int | None


CUTS = {
    "top-.95-100": Cut(p=0.95, k=100),
    "top-100": Cut(p=None, k=100),
    "top-.95-50": Cut(p=0.95, k=50),
    "sampled-50": Cut(p=None, k=None),
}


def row_targets(arrays: Arrays, row: int, cut: Cut) -> RowTargets:
    """One row, truncated: the most probable words while those before them have less than p, at most k."""
    about = {
        "row_ids": np.array([row]), "positions": len(arrays["ids"]), "label_logprob_N": arrays["label"],
        "entropy_N": arrays["entropy"], "logit_std_N": arrays["std"],
    }  # fmt: skip
    if cut.k is None:
        drawn_NR = arrays["s_ids"] >= 0
        length_N = drawn_NR.sum(axis=1, dtype=np.int32)
        return RowTargets(
            **about, length_N=length_N, ids_E=arrays["s_ids"][drawn_NR], count_E=arrays["s_count"][drawn_NR]
        )
    logprob_NK = arrays["logprob"].astype(np.float64)
    prob_NK = np.exp(logprob_NK)
    kept_NK = np.arange(KEPT) < np.full((len(prob_NK), 1), cut.k)
    if cut.p is not None:
        kept_NK &= prob_NK.cumsum(axis=1) - prob_NK < cut.p
    with np.errstate(divide="ignore"):
        dropped_N = np.log(np.where(kept_NK, 0.0, prob_NK).sum(axis=1))
    return RowTargets(
        **about,
        length_N=kept_NK.sum(axis=1, dtype=np.int32),
        ids_E=arrays["ids"][kept_NK],
        logprob_E=arrays["logprob"][kept_NK],
        log_rest_N=np.logaddexp(arrays["rest"], dropped_N).astype(np.float32),
    )


def split(arrays: Arrays, row_len: int) -> list[Arrays]:
    """The row as shorter rows."""
    starts = range(0, ROW_LEN, row_len)
    return [
        {name: values[start : start + row_len + (name == "tokens")] for name, values in arrays.items()}
        for start in starts
    ]


def facts_of(cut: Cut) -> dict[str, Any]:
    if cut.k is None:
        return {"sampling": {"kind": "sampled", "draws": DRAWS, "proposal_temperature": 1.0}}
    return {"truncation": {"kind": "top_p_k", "p": cut.p or 1.0, "k": cut.k}}


def built(folder: Path, targets: list[RowTargets], rows: list[Arrays], cut: Cut, vocabulary: int) -> Store:
    """As capture makes it: ranks from the kept words of a few evenly spaced groups of rows."""
    counts_V = np.zeros(vocabulary, np.int64)
    for row in calibration_rows(targets):
        counts_V += np.bincount(targets[row].ids_E, minlength=vocabulary)
    permutation = np.argsort(-counts_V, kind="stable")
    with StoreWriter(folder, manifest=facts_of(cut), permutation=permutation) as writer:
        for row, (target, arrays) in enumerate(zip(targets, rows, strict=True)):
            writer.write(row, row_hash(arrays["tokens"]), target)
        writer.seal({}, rows_expected=len(targets))
    return Store(folder)


def calibration_rows(targets: list[RowTargets]) -> list[int]:
    size = group_rows(targets[0].positions)
    groups = np.linspace(0, -(-len(targets) // size) - 1, SAMPLE_GROUPS).astype(int)
    return [row for group in groups for row in range(group * size, min((group + 1) * size, len(targets)))]


def sizes(store: Store, targets: list[RowTargets]) -> dict[str, Any]:
    totals, streams = store.totals, store.bytes_by_stream()
    entries, positions = totals["entries"], totals["positions"]
    extra = sum(streams.pop(name) for name in ("label", "entropy", "std"))
    folder = Path(store.path)
    once = {
        "id_permutation.npy": (folder / "id_permutation.npy").stat().st_size,
        "manifest.json, parts": sum(file.stat().st_size for file in folder.rglob("*.json")),
    }
    held, everything = totals["bytes"] - extra, totals["bytes"] + sum(once.values())
    seen = set(calibration_rows(targets))
    unseen = [record for record, _ in store._records([row for row in range(len(store)) if row not in seen], None)[1]]
    unseen_bytes = sum(s.bytes for record in unseen for s in record.streams if s.id < 7)  # 7, 8, 9: label and the like
    return {
        "entries_a_position": round(entries / positions, 2),
        "bytes_an_entry": round(held / entries, 3),
        "bytes_a_position": round(held / positions, 2),
        "streams_a_position": {name: round(size / positions, 3) for name, size in streams.items()},
        "floor_a_position": floors(store, targets),
        "label_entropy_std_a_position": round(extra / positions, 2),
        "with_label_entropy_std": {
            "bytes_an_entry": round(totals["bytes"] / entries, 3),
            "bytes_a_position": round(totals["bytes"] / positions, 2),
        },
        "once_a_store": once,
        "everything_bytes_a_position": round(everything / positions, 2),
        "streams_an_entry_outside_the_calibration_rows": round(unseen_bytes / sum(r.entries for r in unseen), 3),
    }


def floors(store: Store, targets: list[RowTargets]) -> dict[str, float]:
    """Of the streams that hold a value an entry, bytes a position."""
    rank_of_V = np.argsort(store.permutation)
    length_N = np.concatenate([t.length_N for t in targets])
    first_E = np.zeros(length_N.sum(), bool)
    first_E[np.cumsum(length_N)[:-1][length_N[1:] > 0]] = first_E[0] = True
    rank_E = rank_of_V[np.concatenate([t.ids_E for t in targets])]
    if targets[0].sampled:
        place_E = np.sort(np.cumsum(first_E) * len(rank_of_V) + rank_E) % len(rank_of_V)
        counts = np.concatenate([t.count_E for t in targets])
        values = {"ids": differences(place_E, first_E), "counts": counts}
    else:
        q_E = GRIDS["logprob"].encode(np.concatenate([t.logprob_E for t in targets])).astype(np.int64)
        values = {"ids": rank_E, "logprobs": differences(q_E, first_E)}
    return {name: round(entropy_bytes(array) / len(length_N), 3) for name, array in values.items()}


def differences(values_E: npt.NDArray[Any], first_E: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    return np.where(first_E, values_E, np.diff(values_E, prepend=0))


def entropy_bytes(values: npt.NDArray[Any]) -> float:
    counts = np.unique(values, return_counts=True)[1]
    return float(counts @ np.log2(len(values) / counts)) / 8


def fidelity(store: Store, targets: list[RowTargets]) -> dict[str, Any]:
    """Whether what is read is what was written: exactly for draws, else how far off."""
    read = store.rows(np.arange(len(store)), fields=())
    length_N = np.concatenate([t.length_N for t in targets])
    ids_E = np.concatenate([t.ids_E for t in targets])
    if targets[0].sampled:
        counts = np.concatenate([t.count_E for t in targets])
        position_E = np.repeat(np.arange(len(length_N)), length_N)
        mine, theirs = (np.lexsort((ids, position_E)) for ids in (ids_E, read.ids_E))
        pairs = ((read.length_N, length_N), (read.ids_E[theirs], ids_E[mine]), (read.count_E[theirs], counts[mine]))
        return {"lossless": all(np.array_equal(*pair) for pair in pairs)}
    logprob_E = np.concatenate([t.logprob_E for t in targets])
    grid_E = GRIDS["logprob"].decode(GRIDS["logprob"].encode(logprob_E))
    shift_E = np.where(read.logprob_E < 0, read.logprob_E - grid_E, np.nan)  # one number a position, if all is well
    start_N = (np.cumsum(length_N) - length_N)[length_N > 0]
    spread_N = np.fmax.reduceat(shift_E, start_N) - np.fmin.reduceat(shift_E, start_N)
    assert np.nanmax(spread_N) < 1e-4, "what is read is not the grid, shifted"
    rest_N = np.concatenate([t.log_rest_N for t in targets])
    return {
        "ids_exact": bool(np.array_equal(read.ids_E, ids_E) and np.array_equal(read.length_N, length_N)),
        "grid_error": round(float(np.abs(grid_E - logprob_E).max()), 6),
        "read_error": round(float(np.abs(read.logprob_E - logprob_E).max()), 6),
        "rest_error": round(float(np.abs(np.exp(read.log_rest_N) - np.exp(rest_N)).max()), 6),
        "kl": kl(logprob_E, read.logprob_E, start_N),
    }


def kl(logprob_E: npt.NDArray[Any], read_E: npt.NDArray[Any], start_N: npt.NDArray[np.int64]) -> float:
    """Mean over positions of the KL between the kept parts, each normalised."""
    true_E, read_E = logprob_E.astype(np.float64), read_E.astype(np.float64)
    mass_N, read_mass_N = (np.add.reduceat(np.exp(x), start_N) for x in (true_E, read_E))
    inside_N = np.add.reduceat(np.exp(true_E) * (true_E - read_E), start_N)
    return float(f"{(inside_N / mass_N - np.log(mass_N / read_mass_N)).mean():.2g}")
