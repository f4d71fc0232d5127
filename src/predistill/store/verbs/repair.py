"""`predistill store repair`: keeps every whole record of damaged shards, and says which rows to capture again.

Nothing is thrown away: a file that is replaced lies in damaged/ afterwards. Where rows are missing the store is in the
making again, and its capture does just those; where none is, it is sealed as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError
from predistill.files import parse_sealed_json, sealed_json
from predistill.lock import Lock
from predistill.store import layout
from predistill.store.calibration import CALIBRATION
from predistill.store.growing import GrowingShard
from predistill.store.index import Index
from predistill.store.layout import ShardStats
from predistill.store.place import Place
from predistill.store.shard import parse_shard_name
from predistill.store.verbs.begun import finish_store, reached
from predistill.store.verbs.examined import ExaminedShard, Examiner
from predistill.store.verbs.known import Known, known_of, mended_permutation
from predistill.store.working import lock_path, working_folder

__all__ = ["in_words", "repair"]

DAMAGED = "damaged"
SHOWN_ROWS = 20
Rows = npt.NDArray[np.int64]
Progress = Callable[[int, int], None]


def repair(where: str | Path, *, on_progress: Progress | None = None) -> dict[str, Any]:
    """Replace the damaged shards of a store, sealed or in the making, by shards of their whole records.

    Returns {"store", "shards", "wrong": [{"file", "what"}], "set_aside", "records_kept", "missing", "rows_missing": the
    first of them that are known by number, "complete": whether the store is sealed}. Where nothing is wrong nothing is
    touched. Records are kept only where they are proven to be this store's. `on_progress(shards, all)` is called while
    they are read. Raises `StoreError` for what cannot be repaired, and while a writer is at work.
    """
    place = reached(where)
    try:
        kept = [f"{DAMAGED}/{name}" for name in place.names(DAMAGED) if name.startswith(layout.MANIFEST)]
        known = known_of(place, kept_manifests=kept[::-1])
        folder = working_folder(place, known.store_id)
        with ExitStack() as locks:
            for writer in known.parts:
                locks.enter_context(_Held(place, lock_path(folder, writer), writer))
            return _Repair(place, known, folder).done(on_progress)
    except OSError as error:
        raise StoreError(f"{place}: {error.strerror or error}. Nothing is lost; run the same command again.") from None


def in_words(facts: dict[str, Any]) -> str:
    """What a repair found and did, and what is left to do, for people."""
    lines = [f"{entry['file']}: {entry['what']}" for entry in facts["wrong"]]
    kept = f"{facts['store']}: {facts['records_kept']:,} rows are whole"
    if not lines:
        lines.append(f"{kept}, nothing is wrong with them.")
        if not facts["complete"] and not facts["missing"]:
            lines.append("It is not sealed: `predistill capture` goes on with it, `predistill store seal` ends it.")
    elif facts["complete"]:
        lines.append(f"{kept}: none was lost, and the store is sealed again.")
    else:
        lines.append(f"{kept}, {facts['missing']:,} were lost.")
    if facts["missing"]:
        shown = ", ".join(f"{row:,}" for row in facts["rows_missing"])
        more = ", ..." if facts["missing"] > len(facts["rows_missing"]) else ""
        lines.append(f"Rows to capture again: {shown}{more}" if shown else "Nobody knows which rows they were.")
    if facts["missing"] or (lines and facts["wrong"] and not facts["complete"]):
        lines.append("Run its `predistill capture` again, which does just those; `predistill store seal` does without.")
    if facts["set_aside"]:
        lines.append(f"What was replaced lies in {facts['store']}/{DAMAGED}; delete that when you need it no more.")
    return "\n".join(lines)


class _Held:
    """A writer's lock, so that nobody goes on with its part meanwhile."""

    def __init__(self, place: Place, path: Path, writer: int) -> None:
        self._was_there = path.exists()
        if (lock := Lock.take(path)) is None:
            raise StoreError(f"{place}: writer {writer} is at work on it. Stop its capture, then repair the store.")
        self._lock = lock

    def __enter__(self) -> None:
        return

    def __exit__(self, *failure: object) -> None:
        self._lock.release(remove=not self._was_there)


class _Repair:
    def __init__(self, place: Place, known: Known, folder: Path) -> None:
        self._place, self._known, self._folder = place, known, folder
        self._wrong: list[dict[str, str]] = []
        self._set_aside: list[str] = []
        self._rows_expected: int | None = known.manifest["rows"] if known.manifest is not None else None
        if known.sealed and known.manifest is None:
            self._note(layout.MANIFEST, "its checksum does not match")
        self._present = self._read_index()
        self._examiner = Examiner(place, known, folder=folder, rows_expected=self._rows_expected)

    def done(self, on_progress: Progress | None) -> dict[str, Any]:
        """Look at everything, then mend."""
        known, permutation, small = self._known, self._permutation(), self._small_files()
        names, shards = self._examiner.names(), []
        for number, name in enumerate(names):
            shards.append(self._examiner.look(name))
            if on_progress is not None:
                on_progress(number + 1, len(names))
        for shard in shards:
            if shard.wrong is not None or shard.other:
                self._note(shard.found_as, shard.wrong or "it is whole, and not the one that its writer listed")
        parts: dict[int, list[ExaminedShard]] = {writer: [] for writer in known.parts}
        for shard in shards:
            parts.setdefault(shard.writer, []).append(shard)
        for writer, its in parts.items():
            if known.parts.get(writer) is None and (writer in known.parts or any(shard.rows for shard in its)):
                self._note(layout.part_name(writer), "it is missing or its checksum does not match")
        found = np.unique(np.array([row for shard in shards for row in shard.rows], np.int64))
        missing, more = self._missing(shards, found)
        if self._wrong:
            self._mend(permutation, parts, small)
        complete = self._place.exists(layout.MANIFEST)
        if not complete and self._rows_expected is not None and not len(missing) and not more:
            complete = self._sealed_again(found)
        return {
            "store": str(self._place),
            "shards": len(shards),
            "wrong": self._wrong,
            "set_aside": self._set_aside,
            "records_kept": len(found),
            "missing": len(missing) + more,
            "rows_missing": missing[:SHOWN_ROWS].tolist(),
            "complete": complete,
        }

    # ---- what is there

    def _read_index(self) -> Rows | None:
        """The rows that index.bin lists; None where it is damaged or there is none."""
        manifest = self._known.manifest if self._known.sealed else None
        try:
            file = self._place.file(layout.INDEX)
            rows = int.from_bytes(file.read(24, 8), "little") if manifest is None else manifest["rows"]
            pages = list(Index(file, store_id=self._known.store_id, rows=rows).pages())
            if manifest is not None:
                crc32c = f"{google_crc32c.value(file.read(0, file.size)):08x}"
                if crc32c != manifest["index"]["crc32c"]:
                    raise ValueError("its checksum is not the manifest's")
        except FileNotFoundError:
            if manifest is not None:
                self._note(layout.INDEX, "it is missing")
            return None
        except ValueError as error:
            self._note(layout.INDEX, str(error))
            return None
        self._rows_expected = rows
        return np.flatnonzero(np.concatenate([np.zeros(0, bool), *(page["bytes"] > 0 for page in pages)]))

    def _permutation(self) -> bytes | None:
        """The mended permutation; None where it is whole."""
        sha256, size = self._known.permutation["sha256"], self._known.permutation["size"]
        there = self._place.exists(layout.PERMUTATION)
        data = self._place.read(layout.PERMUTATION) if there else b""
        if hashlib.sha256(data).hexdigest() == sha256:
            return None
        if (mended := mended_permutation(data, sha256=sha256, size=size)) is None:
            raise StoreError(
                f"{self._place}/{layout.PERMUTATION}: it is {'damaged' if there else 'missing'}, and no other file "
                f"says which token an id stands for. Restore a copy (its SHA-256 is {sha256}), or capture again."
            )
        self._note(layout.PERMUTATION, "its SHA-256 does not match; it could be mended")
        return mended

    def _missing(self, shards: list[ExaminedShard], found: Rows) -> tuple[Rows, int]:
        """(rows that were there and are lost, how many more whose numbers nobody knows)."""
        manifest, had, more = self._known.manifest, [np.zeros(0, np.int64)], 0
        if self._present is not None:
            had.append(self._present)
        elif manifest is not None and manifest["totals"]["rows"] == manifest["rows"]:
            had.append(np.arange(manifest["rows"]))
        else:
            had += [shard.lost for shard in shards if shard.lost is not None]
            more = sum(shard.lost_more for shard in shards)
        return np.setdiff1d(np.concatenate(had), found), more

    def _small_files(self) -> list[str]:
        """Damaged files that no row depends on: costs, and what a capture measured before it began."""
        damaged = []
        for name in [f"costs/{name}" for name in self._place.names("costs")] + [CALIBRATION]:
            try:
                parse_sealed_json(self._place.read(name))
            except FileNotFoundError:
                continue
            except ValueError as error:
                self._note(name, str(error))
                damaged.append(name)
        return damaged

    # ---- mending

    def _mend(self, permutation: bytes | None, parts: dict[int, list[ExaminedShard]], small: list[str]) -> None:
        place, known = self._place, self._known
        for name in small:
            self._aside(name)
            place.remove(name)
        if permutation is not None:
            self._aside(layout.PERMUTATION)
            place.put(layout.PERMUTATION, permutation)
        if known.sealed:
            if known.manifest is not None:  # what goes on with the store measures nothing again
                place.put(CALIBRATION, sealed_json(known.manifest["self_test"]))
            self._aside(layout.MANIFEST)
            place.remove(layout.MANIFEST)
        for writer, shards in parts.items():
            self._mend_part(writer, shards)
        place.remove(layout.INDEX)

    def _mend_part(self, writer: int, shards: list[ExaminedShard]) -> None:
        """Write what is damaged of a part again, and close it: whoever goes on is another writer."""
        part, name = self._known.parts.get(writer), layout.part_name(writer)
        harmed = part is None or any(shard.wrong is not None or shard.other for shard in shards)
        if not harmed:
            return
        for shard in shards:
            if shard.stats is None:
                shard.stats = self._written(shard)
        sealed = [shard.stats for shard in shards if shard.stats is not None]
        if part is None and not sealed and writer not in self._known.parts:
            return  # shards of another store under a number that none of this one's writers has
        if part is None and self._place.exists(name):
            self._aside(name)
        data = layout.pack_part(
            store_id=self._known.store_id,
            writer=writer,
            finished=True,
            row_len=self._known.row_len,
            permutation=self._known.permutation,
            facts=self._known.facts,
            shards=sealed,
        )
        self._place.put(name, data)

    def _written(self, shard: ExaminedShard) -> ShardStats | None:
        """The shard of the whole records alone; None where there is none."""
        if shard.wrong is not None and shard.file is not None:
            self._aside(shard.found_as, shard.growing)
        stats = None
        if shard.rows and shard.file is not None:
            scratch, (writer, seq) = self._folder / "repair", parse_shard_name(shard.name)
            (scratch / f"{shard.name}.tmp").unlink(missing_ok=True)  # of a repair that was killed
            growing = GrowingShard(scratch, store_id=self._known.store_id, writer=writer, seq=seq)
            for record, data in self._examiner.records(shard.file):
                growing.append(record, data)
            stats = growing.seal(self._place)
            scratch.rmdir()
        elif shard.growing is None:
            self._place.remove(f"shards/{shard.name}")
        if shard.growing is not None:
            shard.growing.unlink()
        return stats

    def _sealed_again(self, found: Rows) -> bool:
        """Seal the store, if it was sealed before; whether it is."""
        known, rows = self._known, self._rows_expected
        growing = any((self._folder / "shards").glob("*.pds.tmp"))
        if rows is None or growing or not (known.sealed or known.manifest is not None):
            return False
        self_test = None if known.manifest is None else known.manifest["self_test"]
        finish_store(self._place, rows_expected=rows, partial=len(found) < rows, self_test=self_test)
        return True

    def _aside(self, name: str, path: Path | None = None) -> None:
        """Keep a file's bytes in damaged/, under a name that is free."""
        base = f"{DAMAGED}/{name.rsplit('/', 1)[-1]}"
        to, number = base, 1
        while self._place.exists(to):
            number += 1
            to = f"{base}.{number}"
        if path is None:
            self._place.copy(name, to)
        else:  # of a store behind a URL it grew on this machine
            self._place.put(to, path.read_bytes())
        self._set_aside.append(to)

    def _note(self, file: str, what: str) -> None:
        self._wrong.append({"file": file, "what": what})
