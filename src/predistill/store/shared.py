"""One of any number of writers of one store: processes and machines that join, leave and die at any moment."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError
from predistill.lock import Lock
from predistill.store import layout
from predistill.store.calibration import CALIBRATION
from predistill.store.claims import Claims
from predistill.store.place import LocalPlace
from predistill.store.seal import PartsRows, seal_store
from predistill.store.working import explained
from predistill.store.writer import StoreComplete, StoreWriter

__all__ = ["SharedWriter"]

POLL_SECONDS = 0.25  # between two looks at the others, when there is nothing left to do but wait for them ...
URL_POLL_SECONDS = 2.0  # ... behind a URL, where a look is a dozen requests
LEASE_SECONDS = 300.0


class SharedWriter:
    """Rows to capture, a span at a time, until the store is sealed.

    Everybody gives the same `rows` and `span_rows`. `self_test` goes into the manifest by whoever seals; it must be
    everybody's. The other settings are `StoreWriter`'s.
    """

    def __init__(
        self,
        where: str | Path,
        *,
        rows: int,
        span_rows: int,
        self_test: dict[str, Any],
        lease: float = LEASE_SECONDS,
        **settings: Any,
    ) -> None:
        self._where, self._settings, self._self_test = where, settings, self_test
        self._rows, self._span_rows = rows, span_rows
        self._over = False  # it was sealed without us
        self.writer = self._new_writer()
        place, folder = self.writer.place, self.writer.folder
        self._claims = Claims(place, folder=folder, lease=lease)
        self._there = PartsRows(place, store_id=self.writer.store_id, rows=rows)
        try:
            with self._sharing():
                self._claims.beat(self.writer.writer)  # before the others see a claim of ours
                self._free = self._look()
        except BaseException:
            self.writer.close()
            raise

    def __enter__(self) -> SharedWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.writer.close()

    @property
    def rows_begun(self) -> int:
        """How many rows are captured or being captured, by anyone, as far as we know."""
        return min(self._rows, len(self._claims.attempts) * self._span_rows)

    def spans(self) -> Iterator[npt.NDArray[np.int64]]:
        """The rows that are still missing of one span after the other; ends when the store is sealed."""
        finished = False
        while True:
            with self._sharing():
                span = self._next()
                if span is not None and finished:
                    try:
                        self.writer, finished = self._new_writer(), False
                    except StoreComplete:
                        continue
                    self._claims.beat(self.writer.writer)
                    self._claims.take(span, writer=self.writer.writer)
                if span is None:
                    if not finished:
                        self.writer.finish()
                        finished = True
                    if self._sealed():
                        return
            if span is None:
                time.sleep(POLL_SECONDS if isinstance(self.writer.place, LocalPlace) else URL_POLL_SECONDS)
            else:
                yield self._missing(span)

    def append(self, data: bytes) -> None:
        """A packed record of the span in hand, and a sign of life."""
        if self._over:
            return
        with self._sharing():
            try:
                self.writer.append(data)
            except StoreComplete:
                self._over = True
                return
            self.writer.beat()
            self._claims.beat(self.writer.writer)

    # ---- whose is what

    def _new_writer(self) -> StoreWriter:
        return StoreWriter(self._where, writer=None, **self._settings)

    def _missing(self, span: int) -> npt.NDArray[np.int64]:
        rows = np.arange(span * self._span_rows, min(self._rows, (span + 1) * self._span_rows))
        return rows[~self._done()[rows]]

    def _done(self) -> npt.NDArray[np.bool_]:
        done = self._there.rows.copy()
        done[self.writer.done_rows] = True
        return done

    def _next(self) -> int | None:
        """A span that is ours now."""
        if layout.is_complete(self.writer.place):  # we were stopped for long
            return None
        for again in (False, True):
            if again:
                self._free = self._look()
            while self._free:
                span = self._free.pop()
                mine = self._claims.owner(span) == self.writer.writer
                if mine or self._claims.take(span, writer=self.writer.writer):
                    return span
        return None

    def _look(self) -> list[int]:
        """The spans that are free for us, the first last: unfinished, and claimed by nobody, by us before we were
        killed, or by a writer that is gone."""
        if layout.is_complete(self.writer.place):
            return []
        self._claims.refresh()
        # Who is alive first, what is there second: a writer that finishes in between has its rows there.
        owners = {span: self._claims.owner(span) for span in self._unfinished_spans()}
        alive = {owner for owner in set(owners.values()) - {-1, self.writer.writer} if self._claims.alive(owner)}
        alive |= self._take_over_parts()
        return [span for span in self._unfinished_spans()[::-1] if owners[span] not in alive]

    def _unfinished_spans(self) -> list[int]:
        starts = np.arange(0, self._rows, self._span_rows)
        return np.flatnonzero(~np.logical_and.reduceat(self._done(), starts)).tolist() if self._rows else []

    def _take_over_parts(self) -> set[int]:
        """Close the parts of writers that are gone: their whole rows count, and nobody has to clean up. Those that are
        not gone, or are being closed by another survivor."""
        self._there.refresh()
        alive = set()
        for number in self._there.unfinished:
            if number == self.writer.writer:
                continue
            try:
                if not self._claims.alive(number):
                    with StoreWriter(self._where, writer=number, **self._settings) as part:
                        part.finish()
                    continue
            except StoreError:  # another survivor was faster, or it is stopped and still holds its lock
                if not self._claims.alive(number):
                    continue
            alive.add(number)
        self._there.refresh()
        return alive

    def _sealed(self) -> bool:
        """Seal the store if every row is there and nobody is still writing; whether it is sealed."""
        place, folder = self.writer.place, self.writer.folder
        if layout.is_complete(place):
            self._tidy()
            return True
        self._there.refresh()
        if not self._there.rows.all() or any(self._claims.alive(number) for number in self._there.unfinished):
            return False
        # A file that is there anyway: a kill leaves nothing behind.
        if (lock := Lock.take(folder / layout.PERMUTATION)) is None:  # another writer of this machine is at it
            return False
        try:
            if not layout.is_complete(place):
                self._forget()
                seal_store(place, self_test=self._self_test, rows_expected=self._rows)
            self._tidy()
        finally:
            lock.release(remove=not isinstance(place, LocalPlace))
        return True

    def _forget(self) -> None:
        """Remove what only a store in the making needs."""
        self._claims.clear()
        self.writer.place.remove(CALIBRATION)

    def _tidy(self) -> None:
        """Remove what writers that were killed, or came late, left in a sealed store."""
        place, folder = self.writer.place, self.writer.folder
        manifest = layout.read_json(place, layout.MANIFEST)
        listed = {f"shards/{entry['name']}" for entry in manifest["shards"]}
        listed |= {layout.part_name(writer) for writer in manifest["writers"]}
        there = [*(f"shards/{name}" for name in place.names("shards")), *layout.part_names(place)]
        place.remove(*(name for name in there if name not in listed))
        for path in (folder / "parts").glob("part-*.lock"):
            if (lock := Lock.take(path)) is not None:
                lock.release(remove=True)
        if not isinstance(place, LocalPlace):
            shutil.rmtree(folder / "shards", ignore_errors=True)
        self._forget()

    @contextmanager
    def _sharing(self) -> Iterator[None]:
        with explained(f"{self._where}: the work of its writers could not be shared"):
            yield
