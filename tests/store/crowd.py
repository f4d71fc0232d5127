"""Many writers of one store of made rows: as threads, as real processes, and how their store has to look."""

from __future__ import annotations

import multiprocessing
import re
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np

from predistill.store import SharedWriter, Store, StoreComplete
from tests.store.made import PERMUTATION, TRUNCATED, all_bytes, token_hash, truncated_row

SELF_TEST = {"teacher_ce": 1.25}
PATIENCE_SECONDS = 60.0


def shared_writer(where: str | Path, *, rows: int, span_rows: int = 4, **changes: Any) -> SharedWriter:
    settings = {"manifest": TRUNCATED, "permutation": PERMUTATION, "shard_bytes": 20_000} | changes
    return SharedWriter(where, rows=rows, span_rows=span_rows, self_test=SELF_TEST, **settings)


def write_row(shared: SharedWriter, row: int) -> None:
    shared.append(shared.writer.packed(row, token_hash(row), truncated_row(row)))


def work(where: str | Path, *, rows: int, pause: float = 0.0, spans: int | None = None, **changes: Any) -> None:
    """One writer's share, of at most so many spans."""
    try:
        shared = shared_writer(where, rows=rows, **changes)
    except StoreComplete:
        return
    with shared:
        for number, span in enumerate(shared.spans()):
            for row in span.tolist():
                write_row(shared, row)
                time.sleep(pause)
            if spans is not None and number + 1 == spans:
                return


def start(where: str | Path, **settings: Any) -> BaseProcess:
    """`work` in a process of its own. A fork: for local stores."""
    process = multiprocessing.get_context("fork").Process(target=work, args=(where,), kwargs=settings)
    process.start()
    return process


def wait_for(what: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not what():
        assert time.monotonic() < until, "it did not come about"
        time.sleep(0.002)


def assert_sealed(where: str | Path, expected: Path) -> Store:
    """The rows of `expected`, record by record; every checksum right."""
    store, single = Store(where), Store(expected)
    rows = np.arange(len(single))
    assert store.records(rows) == single.records(rows)
    assert {name: store.totals[name] for name in ("rows", "positions", "entries")} == {
        name: single.totals[name] for name in ("rows", "positions", "entries")
    }
    assert sum(store.bytes_by_stream().values()) == store.totals["bytes"]
    assert store.manifest["self_test"] == single.manifest["self_test"]
    store.verify()
    return store


def left_behind(path: Path) -> list[str]:
    """Files that a sealed store does not have."""
    pattern = (
        r"manifest\.json|index\.bin|id_permutation\.npy|(parts/part|costs/)-?[0-9]{5}\.json|shards/[0-9-]{12}\.pds"
    )
    return [name for name in all_bytes(path) if not re.fullmatch(pattern, name)]
