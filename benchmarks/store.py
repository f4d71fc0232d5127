"""What the store costs on real targets, beside other people's stores of the same positions: bytes, error, time.

    PREDISTILL_GGUF=SmolLM2-135M-Instruct.Q4_1.gguf PREDISTILL_PEERS=FOLDER python benchmarks/store.py --work FOLDER

The targets come from store_data.py, which makes them first where FOLDER has none (20 CPU minutes; the rest takes 6).
Writes benchmarks/results/store.json. What cannot be had (the teacher, a peer) is left out and named.

  bytes            everything on disk, with index.bin and all frames. Not counted: label, entropy and standard deviation,
                   which no peer holds and which stand apart, and `once_a_store`: files whose size is that of the
                   vocabulary or of the manifest, not of the text (`everything` counts all of it)
  floor            order-0 entropy of the values of a stream over all rows: what a perfect coder of single values needs
  grid_error       of a log-probability on its grid; read_error has the shift to the kept mass in it as well, nats
  kl               of the kept part, both sides normalised over it, nats a position
  entries_a_second a CPU second, one thread, page cache warm, checksums included; medians over the rounds, in which the
                   case that begins moves on; ratios are taken within a round
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import store_peers as peers
import torch
from peers import DISTILLKIT, MEGATRON
from record import write_record
from store_data import DRAWS, KEPT, MIXTURE_FACTS, MIXTURE_WORDS, ROW_LEN, Arrays, targets_of, work_folder
from store_reading import flips, flips_of, random_row, reader_memory
from store_targets import answers

from predistill.fingerprint import row_hash
from predistill.memory import keep_freed_memory
from predistill.stages.capture import SAMPLE_GROUPS, group_rows
from predistill.store import GRIDS, OPTIONAL_FIELDS, RowTargets, Store, StoreWriter

ROUNDS = 5
ROWS_A_READ = 4  # of 2,048 positions: a batch
FEW = 4  # rows, where a peer is slow and its bytes a position are fixed


class Cut(NamedTuple):
    """A truncation; p None: all k words; k None: the draws."""

    p: float | None
    k: int | None


CUTS = {
    "top-.95-100": Cut(0.95, 100), "top-100": Cut(None, 100), "top-.95-50": Cut(0.95, 50), "sampled-50": Cut(None, None),
}  # fmt: skip
VOCABULARY = {"smollm2": 49_152, "mixture": MIXTURE_WORDS}


class Work(NamedTuple):
    """Something to time, and how many entries it is worth."""

    run: Callable[[], object]
    entries: int


def main() -> None:
    keep_freed_memory()  # as the program does
    torch.set_num_threads(1)
    work = work_folder()
    rows = {name: targets_of(name, work) for name in VOCABULARY}
    content: dict[str, Any] = {
        "command": "python benchmarks/store.py --work FOLDER",
        "load": round(os.getloadavg()[0], 1),
        "row_len": ROW_LEN,
        "rounds": ROUNDS,
        "mixture": MIXTURE_FACTS,
        "peers": {origin.checkout: version_of(origin) for origin in (MEGATRON, DISTILLKIT, peers.SAMPLED_KD)},
        "teachers": {},
    }
    with tempfile.TemporaryDirectory(dir=work) as temporary:
        folder = Path(temporary)
        for name, arrays in rows.items():
            if arrays is None:
                content["teachers"][name] = "absent: $PREDISTILL_GGUF names no file"
                continue
            content["teachers"][name] = measured(folder / name, arrays, VOCABULARY[name])
        first = next(name for name, arrays in rows.items() if arrays is not None)
        content["bit_flips"] = bit_flips(folder / "flips", rows[first][:2], VOCABULARY[first])
        content["reader_memory"] = reader_memory(folder / first / "top-.95-100", work)
    write_record("store", {**content, "targets": answers(content)})


def measured(folder: Path, rows: list[Arrays], vocabulary: int) -> dict[str, Any]:
    """One teacher: every cut in our store and in the peers', then all of them read in turns."""
    cases, works = {}, {}
    for name, cut in CUTS.items():
        targets = [row_targets(arrays, row, cut) for row, arrays in enumerate(rows)]
        store = built(folder / name, targets, rows, cut, vocabulary)
        case = {**sizes(store, targets), **fidelity(store, targets)}
        works[name] = Work(lambda store=store: read_all(store), store.totals["entries"])
        with StoreWriter(folder / f"{name}-encode", manifest=facts_of(cut), permutation=store.permutation) as writer:
            some = targets[:: max(1, len(targets) // 8)]
            works[f"{name}: encode"] = Work(
                lambda some=some, writer=writer: [writer.packed(int(t.row_ids[0]), 0, t) for t in some],
                sum(len(t.ids_E) for t in some),
            )
        if name == "top-.95-100":
            case["random_row_2048"] = random_row(store)
            short = [piece for arrays in rows[: len(rows) // 4] for piece in split(arrays, ROW_LEN // 8)]
            targets_256 = [row_targets(arrays, row, cut) for row, arrays in enumerate(short)]
            case["random_row_256"] = random_row(built(folder / f"{name}-256", targets_256, short, cut, vocabulary))
        case["peers"] = beside(folder / f"{name}-peers", name, rows, targets, vocabulary, works)
        cases[name] = case
    speeds = entries_a_second(works)
    for name, speed in speeds.items():
        case, _, what = name.partition(": ")
        here = cases[case]["peers"][what] if what in cases[case]["peers"] else cases[case]
        here["encode_entries_a_second" if what == "encode" else "entries_a_second"] = round(statistics.median(speed))
        if what in cases[case]["peers"]:
            ratios = (ours / theirs for ours, theirs in zip(speeds[case], speed, strict=True))
            here["our_speed_of_theirs"] = round(statistics.median(ratios), 2)
    facts = {
        "vocabulary": vocabulary,
        "rows": len(rows),
        "positions": len(rows) * ROW_LEN,
        "loss_nats": round(float(-np.mean([arrays["label"] for arrays in rows])), 3),
        "entropy_nats": round(float(np.mean([arrays["entropy"] for arrays in rows])), 3),
    }
    return {**facts, "cases": cases}


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
    unseen = [store._record(row, None)[0] for row in range(len(store)) if row not in seen]
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
