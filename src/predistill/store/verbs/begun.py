"""A store in the making: who writes it, how far it is, and how it is sealed by hand."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError
from predistill.files import parse_sealed_json
from predistill.lock import is_held
from predistill.store import layout
from predistill.store.calibration import CALIBRATION, measured
from predistill.store.claims import Claims
from predistill.store.place import LocalPlace, Place, open_place
from predistill.store.reader import Store
from predistill.store.record import parse_head
from predistill.store.seal import PartsRows, seal_store
from predistill.store.shard import HEADER_BYTES
from predistill.store.shared import LEASE_SECONDS
from predistill.store.working import lock_path, working_folder
from predistill.store.writer import StoreWriter

__all__ = [
    "BegunWriter",
    "begun_parts",
    "begun_writers",
    "check_going_on",
    "finish_store",
    "reached",
    "sample_of",
    "seal",
]

SAMPLE_ROWS = 64  # evenly spaced, for means over a store's rows


@dataclass(frozen=True)
class BegunWriter:
    """One writer of a store in the making. `heard`: seconds since its last sign of life; None: nobody can tell."""

    number: int
    state: str  # finished; at work; stopped; elsewhere: on another machine
    rows: int  # whole on disk
    bytes: int
    heard: float | None = None


def reached(where: str | Path) -> Place:
    """The place of a store; `StoreError` where it does not answer."""
    try:
        place = open_place(where)
        place.exists(layout.MANIFEST)
        place.names("parts")
    except OSError as error:
        raise StoreError(f"{where}: {error}. Check the name, the address and the credentials.") from None
    return place


def begun_parts(place: Place) -> list[dict[str, Any]]:
    """The parts of a store in the making; `StoreError` where there is none, or the store is sealed."""
    if layout.is_complete(place):
        raise StoreError(f"{place}: this store is sealed already. Nothing is left to do.")
    parts = [layout.read_json(place, name) for name in layout.part_names(place)]
    if not parts:
        raise StoreError(f"{place}: no teacher store is here; name the directory that `predistill capture` wrote.")
    return parts


def begun_writers(place: Place, parts: list[dict[str, Any]]) -> list[BegunWriter]:
    """Who writes, in the order of their numbers. Rows of a shard that is growing on another machine are not seen."""
    folder = working_folder(place, bytes.fromhex(parts[0]["store_id"]))
    found = []
    for part in parts:
        number = part["writer"]
        rows, size = (sum(shard[name] for shard in part["shards"]) for name in ("rows", "bytes"))
        for path in sorted((folder / "shards").glob(f"{number:05d}-*.pds.tmp")):
            growing_rows, growing_bytes = _growing(path)
            rows, size = rows + growing_rows, size + growing_bytes
        state, heard = _state(place, part, lock_path(folder, number))
        found.append(BegunWriter(number, state, rows, size, heard))
    return found


def seal(where: str | Path, *, rows_expected: int, partial: bool = False) -> Store:
    """Seal a store in the making of a corpus split of so many rows, for those who do not go on with its capture.

    `partial`: rows may be missing. Writers that are gone are closed; one that is at work is an error. What the capture
    measured of itself is taken from it, or measured over the stored rows. Raises `StoreError`.
    """
    place = reached(where)
    parts = begun_parts(place)
    if at_work := [writer.number for writer in begun_writers(place, parts) if writer.state == "at work"]:
        raise StoreError(f"{place}: writer {at_work[0]} is at work on it. Stop its capture first, or let it seal.")
    permutation = layout.read_permutation(where)
    if permutation is None:
        raise StoreError(f"{place}: {layout.PERMUTATION} is missing. Restore a copy, or capture the store again.")
    local = isinstance(place, LocalPlace)
    for part in parts:
        number = part["writer"]
        ours = local or lock_path(working_folder(place, bytes.fromhex(part["store_id"])), number).exists()
        if not part["finished"] and ours:
            with StoreWriter(where, manifest=part["facts"], permutation=permutation, writer=number) as writer:
                writer.finish()
    there = PartsRows(place, store_id=bytes.fromhex(parts[0]["store_id"]), rows=rows_expected)
    there.refresh()
    missing = np.flatnonzero(~there.rows)
    if len(missing) == rows_expected:
        raise StoreError(f"{place}: it holds no whole row of {rows_expected:,}. Capture some first.")
    if len(missing) and not partial:
        raise StoreError(
            f"{place}: {len(missing):,} of {rows_expected:,} rows are missing, the first is row {missing[0]:,}. Run "
            "the capture again to add them, or seal what is there with --partial."
        )
    try:
        self_test = parse_sealed_json(place.read(CALIBRATION))
    except (FileNotFoundError, ValueError):
        self_test = None
    return finish_store(place, rows_expected=rows_expected, partial=partial, self_test=self_test)


def check_going_on(writer: StoreWriter, rows: npt.NDArray[np.int64]) -> None:
    """`StoreError` where a store that is made of others holds rows that are not asked for: it was begun otherwise."""
    if len(other := np.setdiff1d(writer.done_rows, rows)):
        raise StoreError(
            f"{writer.path}: it was begun with other rows (row {other[0]:,} is not among those asked for). Give the "
            "same settings to go on, or another place."
        )


def finish_store(
    place: Place, *, rows_expected: int, partial: bool, self_test: dict[str, Any] | None, lease: float = LEASE_SECONDS
) -> Store:
    """Write the manifest over the parts that are there, and clear away what a capture needs. Without a `self_test` it
    is measured over the stored rows."""
    seal_store(place, self_test=self_test or {}, rows_expected=rows_expected, partial=partial)
    if self_test is None:
        store = Store(str(place))
        self_test = measured([store.rows(sample_of(store.present()))])
        seal_store(place, self_test=self_test, rows_expected=rows_expected, partial=partial)
    Claims(place, folder=Path(), lease=lease).clear()
    place.remove(CALIBRATION)
    return Store(str(place))


def sample_of(rows: npt.NDArray[np.int64], count: int = SAMPLE_ROWS) -> npt.NDArray[np.int64]:
    """Some of the rows, evenly spaced; at most `count`."""
    chosen: npt.NDArray[np.int64] = rows[np.unique(np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int))]
    return chosen


def _growing(path: Path) -> tuple[int, int]:
    """(records, bytes) of a shard that may be growing: their heads are looked at, no more."""
    size, rows, offset = path.stat().st_size, 0, HEADER_BYTES
    with path.open("rb") as file:
        while offset < size:
            file.seek(offset)
            try:
                record = parse_head(file.read(4096))
            except ValueError:
                break
            if offset + record.bytes > size:
                break
            rows, offset = rows + 1, offset + record.bytes
    return rows, min(offset, size)


def _state(place: Place, part: dict[str, Any], lock: Path) -> tuple[str, float | None]:
    if part["finished"]:
        return "finished", None
    if isinstance(place, LocalPlace) or lock.exists():
        if is_held(lock):
            return "at work", max(0.0, time.time() - lock.stat().st_mtime)
        return "stopped", None
    try:  # its clock and ours may differ: a minute or two are nothing
        heard = time.time() - int(place.read(f"beats/{part['writer']:05d}")) / 1e9
    except (FileNotFoundError, ValueError):
        return "elsewhere", None
    return ("at work" if heard < LEASE_SECONDS else "stopped"), max(0.0, heard)
