"""Rows and their targets read ahead of the training loop, by processes of their own.

    with Prefetcher([Source(corpus="corpora/nano", store="stores/nano", reading=teacher.reading)], workers=1) as ahead:
        for request, part in ahead.parts(Request(source=0, rows=rows) for rows in order):
            targets = teacher.finish(request.rows, part.targets)

The order of the rows is known beforehand, so the requests go to the workers in turn, some ahead of the one that is
waited for, and what comes back are exactly the asked rows in the asked order. A worker is an interpreter of its own
that is spoken to over its pipes, as in `corpus/workers.py`: it ends when its caller does, however that ends. Arrays
come back through memory that both have mapped, without being copied again: a piece of it is free once nothing in the
training process refers to its arrays.
"""

# n rows  T position
from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from itertools import islice
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from predistill import errors
from predistill.errors import StoreError
from predistill.teachers.reading import Arrays
from predistill.teachers.worker import Reader, Source

__all__ = ["Part", "Prefetcher", "Request", "Source", "default_workers"]

AHEAD = 3  # parts a worker: one being read, and two for a step that ends early
SERVE = "from predistill.teachers.worker import serve; serve()"


class Asked(Protocol):
    """What is asked for: rows [n] of a source, by its number."""

    @property
    def source(self) -> int: ...
    @property
    def rows(self) -> npt.NDArray[np.int64]: ...


class Request(NamedTuple):
    """The least that can be asked."""

    source: int
    rows: npt.NDArray[np.int64]


class Part(NamedTuple):
    """Rows of a corpus: ids [n, T + 1] int64, which labels count [n, T] (None: all), and what `read_targets` gave."""

    ids: npt.NDArray[np.int64]
    counted: npt.NDArray[np.bool_] | None
    targets: Arrays | None


Asking = TypeVar("Asking", bound=Asked)


def default_workers(busy_threads: int) -> int:
    """One where it has a core to itself beside so many threads that compute; a second never had anything to do in any
    training that was measured, and one without a core of its own cost 3 to 4 % of the time."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 1 if cores > busy_threads else 0


class Prefetcher:
    """Reads parts of the sources: `workers` processes of one thread each, or, with 0, this one when it is asked.

    At most `ahead` parts are under way or waiting. `cpu_seconds` is what the workers have spent.
    """

    def __init__(self, sources: Iterable[Source], *, workers: int, ahead: int | None = None) -> None:
        self._sources = list(sources)
        self._read: Reader | None = None
        self._workers = [_Worker(self._sources) for _ in range(workers)]
        self._ahead = max(workers, ahead or AHEAD * workers)
        self._asked: deque[_Worker] = deque()  # of each part under way, the worker that was asked
        self._turn = 0

    def __enter__(self) -> Prefetcher:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    @property
    def cpu_seconds(self) -> float:
        """CPU time of the workers, as of the last parts that came from them."""
        return sum(worker.cpu_seconds for worker in self._workers)

    def parts(self, requests: Iterable[Asking]) -> Iterator[tuple[Asking, Part]]:
        """Each request with its part, in order. Asking anew gives up what is still under way.

        Raises the StoreError or CorpusError that a worker met, at the part that it met it at.
        """
        if not self._workers:
            self._read = self._read or Reader(self._sources)
            for request in requests:
                yield request, _part(self._read(request.source, request.rows))
            return
        while self._asked:
            self._asked.popleft().receive()
        waiting: deque[Asking] = deque()
        coming = iter(requests)
        while True:
            for request in islice(coming, self._ahead - len(self._asked)):
                worker = self._workers[self._turn % len(self._workers)]
                self._turn += 1
                worker.ask(request.source, request.rows)
                self._asked.append(worker)
                waiting.append(request)
            if not waiting:
                return
            found = self._asked.popleft().receive()
            if isinstance(found, Exception):
                raise found
            yield waiting.popleft(), _part(found)

    def close(self) -> None:
        """End the workers. Arrays that came from them stay as they are."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()
        self._asked.clear()


def _part(arrays: Arrays) -> Part:
    ids, counted = arrays.pop("ids"), arrays.pop("counted", None)
    return Part(ids, counted, arrays or None)


class _Worker:
    """The training process's end of a worker. Messages are a line of JSON each; arrays lie in the shared file."""

    def __init__(self, sources: list[Source]) -> None:
        self.cpu_seconds = 0.0
        self._fd = _memory_file()
        self._maps: dict[int, mmap.mmap] = {}
        self._free: deque[int] = deque()  # slots that nothing refers to any more, to be told to the worker
        environment = {
            **os.environ,
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"),
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        }
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", SERVE, str(self._fd)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            pass_fds=[self._fd],
        )
        self.end = weakref.finalize(self, _end, self._process, self._fd)
        self._send([asdict(source) for source in sources])

    def ask(self, source: int, rows: npt.NDArray[np.int64]) -> None:
        """Ask for a part; `receive` gives the parts in the order that they were asked for in."""
        free = [self._free.popleft() for _ in range(len(self._free))]
        self._send({"source": source, "rows": rows.tolist(), "free": free})

    def receive(self) -> Arrays | Exception:
        """The arrays of the part that was asked for first, or the error that it met."""
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line.endswith(b"\n"):
            return self._gone()
        answer = json.loads(line)
        self.cpu_seconds = answer["cpu_seconds"]
        if "error" in answer:
            kind: type[Exception] = getattr(errors, answer["error"], RuntimeError)
            return kind(answer["words"])
        slot, size = answer["slot"], answer["slot_bytes"]
        if slot not in self._maps:
            self._maps[slot] = mmap.mmap(self._fd, size, offset=answer["slot_start"])
        memory = np.frombuffer(self._maps[slot], np.uint8)
        # All arrays of the part, and tensors made of them, refer to `memory`, and nothing else does.
        weakref.finalize(memory, self._free.append, slot).atexit = False
        return {
            name: memory[start : start + size].view(dtype).reshape(shape)
            for name, dtype, shape, start, size in answer["arrays"]
        }

    def _send(self, message: Any) -> None:
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(message).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._gone() from None

    def _gone(self) -> StoreError:
        return StoreError(
            f"A process that reads the store ended with status {self._process.wait()}. If memory ran short, lower "
            "micro_batch_rows, or set readers: 0 in the recipe to read in the training process."
        )


def _end(process: subprocess.Popen[bytes], fd: int) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):
        process.stdin.close()  # what it waits for
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    process.stdout.close()
    os.close(fd)


def _memory_file() -> int:
    """A file without a name, in memory where the system has such."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("predistill-parts", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())
