"""What the store costs: bytes an entry by stream, and CPU time to write and to read rows, one thread, page cache warm.

    OMP_NUM_THREADS=1 python benchmarks/store.py

Writes benchmarks/results/store.json. The distributions are made up: a Zipf law over the vocabulary under normal noise
on every logit, kept by the definition of top-p-k. Independent noise makes their ids harder to pack than a language
model's; the bytes of real teachers stand in the runs that captured them. Times are the least of 15 rounds.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from record import write_record

from predistill.store import RowTargets, Store, StoreWriter

ROWS, POSITIONS = 32, 256
CASES = {  # vocabulary, p, k, standard deviation of the noise
    "top-.95-100 of 2,048": (2048, 0.95, 100, 3.9),
    "top-.95-50 of 2,048": (2048, 0.95, 50, 3.9),
    "top-.95-100 of 32,768": (32768, 0.95, 100, 5.5),
    "top-100 of 32,768": (32768, 1.0, 100, 5.5),
}


def main() -> None:
    cases = {name: measured(*case) for name, case in CASES.items()}
    write_record("store", {"load": round(os.getloadavg()[0], 1), "row_len": POSITIONS, "cases": cases})


def measured(vocabulary: int, p: float, k: int, noise: float) -> dict[str, Any]:
    rows = [made(row, vocabulary, p, k, noise) for row in range(ROWS)]
    with tempfile.TemporaryDirectory() as folder:
        began = time.process_time()
        with StoreWriter(
            folder, manifest={"truncation": {"p": p, "k": k}}, permutation=np.arange(vocabulary)
        ) as writer:
            for row, targets in enumerate(rows):
                writer.write(row, row, targets)
            write_ms = (time.process_time() - began) * 1e3 / ROWS
            writer.seal({}, rows_expected=ROWS)
        store = Store(folder)
        totals = store.totals
        return {
            "entries_a_position": round(totals["entries"] / totals["positions"], 2),
            "bytes_an_entry": round(totals["bytes"] / totals["entries"], 3),
            "bytes_a_position": {
                name: round(size / totals["positions"], 3) for name, size in store.bytes_by_stream().items()
            },
            "write_ms_a_row": round(write_ms, 3),
            "read_ms_of_1_row": least_ms(lambda: store.rows([5])),
            "read_ms_of_16_rows": least_ms(lambda: store.rows(np.arange(16))),
            "read_ms_of_16_rows_without_label_entropy_std": least_ms(lambda: store.rows(np.arange(16), fields=())),
        }


def made(row: int, vocabulary: int, p: float, k: int, noise: float) -> RowTargets:
    rng = np.random.default_rng([row, vocabulary])
    logit = noise * rng.normal(size=(POSITIONS, vocabulary)) - 1.1 * np.log(np.arange(1, vocabulary + 1))
    logprob = logit - np.log(np.exp(logit).sum(axis=1, keepdims=True))
    order = np.argsort(-logprob, axis=1)[:, :k]
    kept_logprob = np.take_along_axis(logprob, order, axis=1)
    before = np.exp(kept_logprob).cumsum(axis=1) - np.exp(kept_logprob)
    kept = before < p
    return RowTargets(
        row_ids=np.array([row]),
        positions=POSITIONS,
        length_N=kept.sum(axis=1).astype(np.int32),
        ids_E=order[kept].astype(np.int32),
        logprob_E=kept_logprob[kept].astype(np.float32),
        log_rest_N=np.log1p(-np.where(kept, np.exp(kept_logprob), 0.0).sum(axis=1)).astype(np.float32),
        label_logprob_N=logprob[:, 9].astype(np.float32),
        entropy_N=-(np.exp(logprob) * logprob).sum(axis=1).astype(np.float32),
        logit_std_N=logprob.std(axis=1).astype(np.float32),
    )


def least_ms(read: Callable[[], object]) -> float:
    read()
    times = []
    for _ in range(15):
        began = time.process_time()
        for _ in range(10):
            read()
        times.append(time.process_time() - began)
    return round(min(times) * 100, 3)


if __name__ == "__main__":
    main()
