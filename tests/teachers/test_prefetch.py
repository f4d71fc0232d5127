"""Reading ahead: the same rows in the same order from any number of processes, which end when their caller does."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from predistill.assets import tokenizer_path
from predistill.corpus import Corpus
from predistill.errors import StoreError
from predistill.objective import SparseTargets, TopPK
from predistill.stages.prepare import prepare
from predistill.store import Store
from predistill.teachers.prefetch import AHEAD, Part, Prefetcher, Request, Source, default_workers
from predistill.teachers.stored import StoredTeacher

CPU = torch.device("cpu")
KEPT = TopPK(p=0.95, k=100)


def requests(count: int, *, seed: int = 0) -> list[Request]:
    rng = np.random.default_rng(seed)
    return [Request(0, rng.integers(0, 300, rng.integers(1, 9))) for _ in range(count)]


def source(corpus: Path, store: Path, truncation: TopPK = KEPT) -> Source:
    return Source(str(corpus), str(store), StoredTeacher(Store(store), truncation=truncation, device=CPU).reading)


def copied(part: Part) -> list[bytes]:
    arrays = {"ids": part.ids, **(part.targets or {})}
    return [name.encode() + repr((a.dtype, a.shape)).encode() + a.tobytes() for name, a in arrays.items()]


def ended(pid: int) -> bool:
    """Whether a process is gone, or only waits for its parent to notice."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.01)
    return False


@pytest.fixture
def two(corpus: Path, store: Path) -> Iterator[Prefetcher]:
    with Prefetcher([source(corpus, store)], workers=2) as prefetcher:
        yield prefetcher


def test_parts_come_as_asked_whatever_the_number_of_workers(corpus: Path, store: Path, two: Prefetcher) -> None:
    asked = requests(20)
    teacher = StoredTeacher(Store(store), truncation=KEPT, device=CPU)
    with Prefetcher([source(corpus, store)], workers=0) as none:
        expected = [copied(part) for _, part in none.parts(asked)]
    found = []
    for (request, part), wanted in zip(two.parts(iter(asked)), asked, strict=True):
        assert request is wanted
        assert part.targets is not None
        direct = teacher.targets(request.rows, part.ids)
        finished = teacher.finish(request.rows, part.targets)
        assert torch.equal(finished.columns_NK, direct.columns_NK)
        found.append(copied(part))
    assert found == expected
    assert two.cpu_seconds > 0


def test_asking_anew_forgets_what_was_under_way(corpus: Path, store: Path, two: Prefetcher) -> None:
    first, second = requests(12, seed=1), requests(5, seed=2)
    assert next(two.parts(first))[0] is first[0]
    with Prefetcher([source(corpus, store)], workers=0) as none:
        expected = [copied(part) for _, part in none.parts(second)]
    assert [copied(part) for _, part in two.parts(second)] == expected
    assert not list(two.parts([]))


def test_arrays_stay_as_they_are_while_something_refers_to_them(corpus: Path, store: Path) -> None:
    asked = requests(12)
    with Prefetcher([source(corpus, store)], workers=1) as prefetcher:
        held = [part for _, part in prefetcher.parts(asked)]
        before = [copied(part) for part in held]
        for _ in prefetcher.parts(requests(12, seed=3)):
            pass
        assert [copied(part) for part in held] == before
    assert [copied(part) for part in held] == before


def test_memory_is_used_again_once_nothing_refers_to_it(corpus: Path, store: Path) -> None:
    with Prefetcher([source(corpus, store)], workers=1) as prefetcher:
        same = [Request(0, np.arange(8))] * 60
        for _, part in prefetcher.parts(same):
            tensor = torch.from_numpy(part.ids)
            del part, tensor
        (worker,) = prefetcher._workers
        assert len(worker._maps) <= AHEAD + 2


def test_a_narrower_truncation_is_cut_by_the_worker_as_by_the_teacher(corpus: Path, store: Path) -> None:
    few = TopPK(p=0.8, k=7)
    teacher = StoredTeacher(Store(store), truncation=few, device=CPU)
    with Prefetcher([source(corpus, store, few)], workers=1) as prefetcher:
        for request, part in prefetcher.parts(requests(2)):
            direct, found = teacher.targets(request.rows, part.ids), teacher.finish(request.rows, part.targets or {})
            for name in ("ids_NK", "logprob_NK", "log_rest_N"):
                assert torch.equal(getattr(direct, name), getattr(found, name))


def test_a_corpus_alone_has_no_targets(corpus: Path) -> None:
    for workers in (0, 1):
        with Prefetcher([Source(str(corpus))], workers=workers) as prefetcher:
            ((_, part),) = prefetcher.parts([Request(0, np.array([3, 1]))])
            assert part.targets is None
            assert part.ids.shape == (2, 65)


def test_which_labels_count_comes_along_from_every_number_of_workers(tmp_path: Path) -> None:
    records = [{"question": f"What is {n} + 1?", "answer": f"It is {n + 1}. " * 5} for n in range(60)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    settings: dict[str, Any] = {"tokenizer": tokenizer_path(), "row_len": 32, "held_out": 0.0, "processes": 1}
    prepare(tmp_path / "t.jsonl", out=tmp_path / "c", instruct=True, **settings)
    ids, counted = Corpus(tmp_path / "c").rows([7, 2, 9])
    assert counted is not None
    assert 0 < counted.mean() < 1
    for workers in (0, 1):
        with Prefetcher([Source(str(tmp_path / "c"))], workers=workers) as prefetcher:
            ((_, part),) = prefetcher.parts([Request(0, np.array([7, 2, 9]))])
            assert part.counted is not None
            assert part.counted.dtype == np.bool_
            assert np.array_equal(part.counted, counted)
            assert np.array_equal(part.ids, ids)
            assert part.targets is None


def test_a_damaged_record_is_the_same_sentence_from_every_number_of_workers(
    corpus: Path, store: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(store, tmp_path / "store"))
    shard = next((copy / "shards").iterdir())
    data = bytearray(shard.read_bytes())
    data[len(data) // 3] ^= 1
    shard.write_bytes(data)
    asked = [Request(0, np.arange(i, i + 10)) for i in range(0, 300, 10)]
    words = []
    for workers in (0, 1, 2):
        with Prefetcher([source(corpus, copy)], workers=workers) as prefetcher:
            with pytest.raises(StoreError, match=r"row [\d,]+ .*damaged") as caught:
                for _ in prefetcher.parts(asked):
                    pass
            words.append(str(caught.value))
    assert len(set(words)) == 1


def test_a_worker_that_was_killed_is_an_error_that_says_so(corpus: Path, store: Path) -> None:
    with Prefetcher([source(corpus, store)], workers=1) as prefetcher:
        next(prefetcher.parts(requests(3)))
        os.kill(prefetcher._workers[0]._process.pid, signal.SIGKILL)
        with pytest.raises(StoreError, match=r"ended with status -9.*readers: 0"):
            for _ in prefetcher.parts(requests(30)):
                pass


def test_closing_ends_the_workers(corpus: Path, store: Path) -> None:
    prefetcher = Prefetcher([source(corpus, store)], workers=2)
    pids = [worker._process.pid for worker in prefetcher._workers]
    next(prefetcher.parts(requests(9)))
    prefetcher.close()
    assert all(ended(pid) for pid in pids)
    forgotten = Prefetcher([source(corpus, store)], workers=1)
    pid = forgotten._workers[0]._process.pid
    del forgotten
    assert ended(pid)


CALLER = """
import json, sys, time
from predistill.teachers.prefetch import Prefetcher, Request
from predistill.teachers.worker import source_of
import numpy as np
prefetcher = Prefetcher([source_of(json.loads(sys.argv[1]))], workers=2)
parts = prefetcher.parts(Request(0, np.arange(8)) for _ in range(10**9))
next(parts)
print(json.dumps([worker._process.pid for worker in prefetcher._workers] + ["torch" in sys.modules]), flush=True)
for _ in parts:
    pass
"""


def test_workers_end_with_a_caller_that_is_killed_and_need_no_torch(corpus: Path, store: Path) -> None:
    from dataclasses import asdict

    command = [sys.executable, "-c", CALLER, json.dumps(asdict(source(corpus, store)))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as caller:
        assert caller.stdout is not None
        *pids, torch_loaded = json.loads(caller.stdout.readline())
        caller.send_signal(signal.SIGKILL)
        caller.wait()
    assert all(ended(pid) for pid in pids)
    assert not torch_loaded


def test_a_rows_targets_do_not_depend_on_its_neighbours(store: Path, two: Prefetcher) -> None:
    def targets(rows: list[int]) -> SparseTargets:
        teacher = StoredTeacher(Store(store), truncation=KEPT, device=CPU)
        ((request, part),) = two.parts([Request(0, np.array(rows))])
        return teacher.finish(request.rows, part.targets or {})

    together, alone = targets([9, 2, 70]), targets([2])
    width = alone.columns_NK.shape[1]
    assert torch.equal(together.columns_NK[64:128, :width], alone.columns_NK)


@pytest.mark.parametrize(("cores", "busy", "readers"), [(1, 1, 0), (2, 1, 1), (2, 2, 0), (16, 1, 1), (16, 16, 0)])
def test_a_reader_is_started_only_where_a_core_is_free(
    cores: int, busy: int, readers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)))
    assert default_workers(busy) == readers
