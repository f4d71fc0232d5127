"""Which writer is on which span of rows. Joining, leaving and dying need no word to anyone.

A claim is a file that exactly one writer creates: claims/{span}-{attempt}, which holds its writer's number. The claim
of a writer that died, or gave no sign of life for a while, is taken over by creating the next attempt. Nothing is lost
when two writers are on one span all the same: sealing keeps one of the two records of a row.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path

from predistill.lock import is_held
from predistill.store import layout
from predistill.store.place import LocalPlace, Place, open_place
from predistill.store.working import lock_path

__all__ = ["Claims", "rows_begun"]


class Claims:
    """The claims on one store, as this process sees them. `lease`: seconds of silence after which a writer counts as
    gone; on one machine a dead process is known at once."""

    def __init__(self, place: Place, *, folder: Path, lease: float) -> None:
        """`folder`: where the locks of this machine's writers lie."""
        self._place, self._folder, self._lease = place, folder, lease
        self._heard: dict[int, tuple[object, float]] = {}
        self._beaten: dict[int, float] = {}
        self.attempts: dict[int, int] = {}  # span -> its latest attempt that we know of
        self._owners: dict[tuple[int, int], int] = {}

    def take(self, span: int, *, writer: int) -> bool:
        """Claim a span, or take it over from whoever had it; False when another writer was faster."""
        attempt = self.attempts.get(span, -1) + 1
        self.attempts[span] = attempt
        if not self._place.create(_name(span, attempt), b"%d" % writer, durable=False):
            return False
        self._owners[span, attempt] = writer
        return True

    def refresh(self) -> None:
        """Look for the claims of others."""
        for name in self._place.names("claims"):
            if name[:8].isdigit() and name[9:].isdigit():
                span, attempt = int(name[:8]), int(name[9:])
                self.attempts[span] = max(attempt, self.attempts.get(span, -1))

    def owner(self, span: int) -> int:
        """The writer that claimed a span last; -1: nobody."""
        key = (span, self.attempts.get(span, -1))
        if key[1] >= 0 and key not in self._owners:
            try:
                self._owners[key] = int(self._place.read(_name(*key)))
            except (FileNotFoundError, ValueError):  # taken away by a seal, or cut off by a power cut: nobody's
                self._owners[key] = -1
        return self._owners.get(key, -1)

    def beat(self, writer: int) -> None:
        """Tell the others of a store behind a URL that a writer lives; its lock tells those of this machine."""
        due = time.monotonic() - self._beaten.get(writer, 0.0) > self._lease / 8
        if due and not isinstance(self._place, LocalPlace):
            self._beaten[writer] = time.monotonic()
            self._place.put(f"beats/{writer:05d}", b"%d" % time.time_ns())

    def alive(self, writer: int) -> bool:
        """Whether a writer is at work, as far as one can tell."""
        lock = lock_path(self._folder, writer)
        sign: object = None  # of another machine's writer that has not beaten yet, but is given the time to
        try:
            if isinstance(self._place, LocalPlace) or lock.exists():
                if not is_held(lock):
                    return False
                sign = lock.stat().st_mtime_ns
            else:
                with suppress(FileNotFoundError):
                    sign = self._place.read(f"beats/{writer:05d}")
        except FileNotFoundError:
            return False
        if writer not in self._heard or self._heard[writer][0] != sign:
            self._heard[writer] = sign, time.monotonic()
        return time.monotonic() - self._heard[writer][1] < self._lease

    def clear(self) -> None:
        """Remove every trace: the store is sealed."""
        for folder in ("claims", "beats"):
            self._place.remove(*(f"{folder}/{name}" for name in self._place.names(folder)))
        if isinstance(self._place, LocalPlace):
            for folder in ("claims", "beats"):
                with suppress(OSError):  # it is not there, or another writer made a claim just now
                    (self._place.path / folder).rmdir()


def rows_begun(where: str | Path, *, rows: int, span_rows: int) -> int:
    """How many rows of a store in the making are captured or being captured, by anyone; 0 while that cannot be seen."""
    try:
        place = open_place(where)
        if layout.is_complete(place):
            return rows
        return min(rows, span_rows * len({name[:8] for name in place.names("claims")}))
    except OSError:
        return 0


def _name(span: int, attempt: int) -> str:
    return f"claims/{span:08d}-{attempt:03d}"
