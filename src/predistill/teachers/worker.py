"""The process that reads ahead: rows and their targets, for whoever speaks to it over its pipes (`prefetch.py`).

No torch in here, so that it starts at once.
"""

# n rows  T position
from __future__ import annotations

import json
import mmap
import os
import signal
import sys
import traceback
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from time import process_time
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.corpus import Corpus
from predistill.errors import PredistillError
from predistill.memory import keep_freed_memory
from predistill.store import Store
from predistill.teachers.reading import Arrays, Reading, read_targets

__all__ = ["Reader", "Source", "serve", "source_of"]

ALIGNED = 64  # bytes


@dataclass(frozen=True, slots=True)
class Source:
    """The training rows of a corpus, and the store (a directory or a URL) that knows their targets."""

    corpus: str
    store: str | None = None
    reading: Reading | None = None


class Reader:
    """What reads a part, in whichever process."""

    def __init__(self, sources: list[Source]) -> None:
        self._sources = sources
        self._corpora: dict[int, Corpus] = {}
        self._stores: dict[int, Store] = {}

    def __call__(self, number: int, rows: npt.NDArray[np.int64]) -> Arrays:
        source = self._sources[number]
        if number not in self._corpora:
            self._corpora[number] = Corpus(source.corpus)
        ids, counted = self._corpora[number].rows(rows)
        arrays: Arrays = {"ids": ids} if counted is None else {"ids": ids, "counted": counted}
        if source.store is None:
            return arrays
        assert source.reading is not None
        if number not in self._stores:
            self._stores[number] = Store(source.store)
        return arrays | read_targets(self._stores[number], rows, ids, source.reading)


class Slots:
    """A worker's end of the shared file: pieces of it, each for the arrays of one part."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._slots: list[tuple[int, int]] = []  # start, bytes
        self._free: set[int] = set()

    def free(self, slots: Iterable[int]) -> None:
        """Take back pieces that are no longer looked at."""
        self._free.update(slots)

    def put(self, arrays: Arrays) -> dict[str, Any]:
        """Write the arrays to a piece that is free and long enough, and say where they are."""
        lines, end = [], 0
        for name, array in arrays.items():
            lines.append((name, array.dtype.str, array.shape, end, array.nbytes))
            end += -(-array.nbytes // ALIGNED) * ALIGNED
        slot = min(
            (slot for slot in self._free if self._slots[slot][1] >= end),
            key=lambda slot: self._slots[slot][1],
            default=None,
        )
        if slot is None:
            slot = self._longer(end)
        self._free.discard(slot)
        start, size = self._slots[slot]
        for (_, _, _, offset, _), array in zip(lines, arrays.values(), strict=True):
            _write(self._fd, np.ascontiguousarray(array), start + offset)
        return {"slot": slot, "slot_start": start, "slot_bytes": size, "arrays": lines}

    def _longer(self, needed: int) -> int:
        """A new piece, with room for parts that are a quarter larger."""
        page = mmap.ALLOCATIONGRANULARITY
        size = -(-(needed + needed // 4 + 1) // page) * page
        start = sum(self._slots[-1]) if self._slots else 0
        os.ftruncate(self._fd, start + size)
        self._slots.append((start, size))
        return len(self._slots) - 1


def _write(fd: int, array: npt.NDArray[Any], offset: int) -> None:
    data = array.reshape(-1).view(np.uint8).data
    while data:
        written = os.pwrite(fd, data, offset)
        data, offset = data[written:], offset + written


def serve() -> None:
    """The worker's side: a line for each part asked for, until the caller has gone."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they reach the whole group; the caller decides
        signal.signal(number, signal.SIG_IGN)
    keep_freed_memory()
    if hasattr(os, "SCHED_BATCH"):  # being asked must not push aside the step that asks: that took 2 ms a time
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever prints does not answer
    slots = Slots(int(sys.argv[1]))
    read: Reader | None = None
    with suppress(BrokenPipeError):
        for line in sys.stdin.buffer:
            message = json.loads(line)
            if read is None:
                read = Reader([source_of(source) for source in message])
                continue
            slots.free(message["free"])
            answer: dict[str, Any]
            try:
                answer = slots.put(read(message["source"], np.array(message["rows"], np.int64)))
            except PredistillError as error:
                answer = {"error": type(error).__name__, "words": str(error)}
            except Exception as error:
                traceback.print_exc()
                answer = {"error": "", "words": f"a process that reads the store failed: {error!r}"}
            answers.write(json.dumps({**answer, "cpu_seconds": process_time()}).encode() + b"\n")
            answers.flush()


def source_of(content: dict[str, Any]) -> Source:
    """A source from plain data."""
    reading = content.pop("reading")
    if reading is not None:
        reading = Reading(**{**reading, "fields": tuple(reading["fields"])})
    return Source(**content, reading=reading)
