"""Forged stores, read and gone on with: nothing but a StoreError, no hang, no memory beyond a bound."""

from __future__ import annotations

import multiprocessing
import random
import resource
import shutil
import signal
import traceback
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from predistill.errors import StoreError
from predistill.store import SharedWriter, Store
from tests.store.forged import CHANGES, Pieces
from tests.store.made import PERMUTATION, SAMPLED, TRUNCATED, sampled_row, token_hash, truncated_row

ROWS = 6
MORE_BYTES = 128 << 20  # of address space: a zstd or pco decoder takes some of its own
SECONDS = 10


def base(folder: Path, *, sampled: bool = False) -> Path:
    """One shard, one page of index."""
    from predistill.store import StoreWriter

    make, facts = (sampled_row, SAMPLED) if sampled else (truncated_row, TRUNCATED)
    with StoreWriter(folder, manifest=facts, permutation=PERMUTATION) as writer:
        for row in range(ROWS):
            writer.write(row, token_hash(row), make(row))
        writer.seal({"teacher_ce": 1.25}, rows_expected=ROWS)
    return folder


def use(path: Path, *, sampled: bool) -> None:
    """All that one does with a store; each on its own, so that one refusal does not hide the next act."""
    refusals: list[StoreError] = []

    def act(what: Any) -> None:
        try:
            what()
        except StoreError as error:
            refusals.append(error)

    act(lambda: Store(path).verify())
    act(lambda: Store(path).rows(np.arange(ROWS)))
    for row in range(ROWS):
        act(lambda row=row: Store(path).rows([row], absent_ok=True))
    act(lambda: Store(path).raw_rows([1, 0]))
    act(lambda: column(path))
    act(lambda: Store(path).has([0, 1, 5]))
    act(lambda: Store(path).bytes_by_stream())
    act(lambda: Store(path).totals)
    (path / "manifest.json").unlink()
    act(lambda: go_on(path, sampled=sampled))
    if (path / "manifest.json").exists():
        act(lambda: Store(path).verify())
    for error in refusals:
        assert "\n" not in str(error)
    if refusals:
        raise refusals[0]


def column(path: Path) -> None:
    store = Store(path)
    if "entropy" in store.manifest["streams"]:
        store.column([0, 2], "entropy_N")


def go_on(path: Path, *, sampled: bool) -> None:
    """As a capture does with what lies there."""
    make, facts = (sampled_row, SAMPLED) if sampled else (truncated_row, TRUNCATED)
    with SharedWriter(
        path, rows=ROWS, span_rows=2, self_test={}, manifest=facts, permutation=PERMUTATION, lease=0.0
    ) as shared:
        for span in shared.spans():
            for row in span.tolist():
                shared.append(shared.writer.packed(row, token_hash(row), make(row)))


def _cases(folder: Path, bases: list[Path], seed: int, cases: int, answers: Any) -> None:
    warnings.simplefilter("error")
    outcomes: Counter[str] = Counter()
    whole = [Pieces.of(path) for path in bases]
    for path in bases:
        shutil.copytree(path, folder / "warm")
        use(folder / "warm", sampled=path.name == "sampled")
        shutil.rmtree(folder / "warm")
    status = Path("/proc/self/status").read_text()
    size = int(status.split("VmSize:")[1].split()[0]) * 1024
    resource.setrlimit(resource.RLIMIT_AS, (size + MORE_BYTES, size + MORE_BYTES))
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f"a case took over {SECONDS} s")))
    failures = []
    for case in range(cases):
        rng = random.Random(f"{seed} {case}")
        pieces, change = whole[case % len(whole)].copy(), rng.choice(CHANGES)
        path = folder / str(case)
        signal.alarm(SECONDS)
        try:
            change(pieces, rng)
            pieces.write(path)
            use(path, sampled=pieces.source.name == "sampled")
            outcomes[f"{change.__name__}: read"] += 1
        except StoreError:
            outcomes[f"{change.__name__}: refused"] += 1
        except BaseException:
            outcomes[f"{change.__name__}: CRASHED"] += 1
            failures.append(f"case {case} of seed {seed}, {change.__name__}:\n{traceback.format_exc()[-1500:]}")
        finally:
            signal.alarm(0)
            shutil.rmtree(path, ignore_errors=True)
    answers.put((dict(outcomes), failures))


def fuzz(folder: Path, *, seed: int, cases: int) -> tuple[dict[str, int], list[str]]:
    """(outcome -> cases, what went wrong), in a process of its own with a bound on its memory."""
    bases = [base(folder / "truncated"), base(folder / "sampled", sampled=True)]
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=_cases, args=(folder, bases, seed, cases, answers))
    process.start()
    found = answers.get() if _ready(answers, process) else ({}, [f"seed {seed}: it ended with {process.exitcode}"])
    process.join()
    return found  # type: ignore[no-any-return]


def _ready(answers: Any, process: Any) -> bool:
    while answers.empty():
        process.join(0.05)
        if process.exitcode is not None and answers.empty():
            return False
    return True
