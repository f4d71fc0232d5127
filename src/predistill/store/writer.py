"""One writer's part of a store: rows go to a `.tmp` shard at once, so a kill loses no row whose `write` had returned.

Opening a half-made part verifies what is there, cuts a torn last record off and goes on behind it: the finished part
has the bytes of one that was never interrupted. How several writers share the rows: `shared.py`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError
from predistill.files import parse_sealed_json, sealed_json
from predistill.store import layout
from predistill.store.grids import grids_from_manifest
from predistill.store.growing import GrowingShard
from predistill.store.layout import ShardStats
from predistill.store.place import open_place
from predistill.store.record import Record, parse_head
from predistill.store.resumed import closed_shards
from predistill.store.rows import RowTargets
from predistill.store.seal import PartsRows, seal_store
from predistill.store.shard import shard_name
from predistill.store.streams import STREAM_NAMES, encode_row
from predistill.store.working import check_facts, explained, take_part, working_folder

__all__ = ["StoreComplete", "StoreWriter"]


class StoreComplete(StoreError):
    """The store is sealed: there is nothing left to write."""


class StoreWriter:
    """Write one part of a store, row by row; the same call on a half-made one goes on with it.

    `where` is a directory or a URL (a shard then grows in a local folder until it is whole). `manifest` holds the
    static facts (teacher, tokenizer, corpus, capture, and truncation or sampling; grids if other than the defaults);
    `permutation` is the frequency rank -> token id array. Both must equal those of a half-made store. `writer` numbers
    the part; None takes the first that no living process writes. `keep_shards` drops what this writer wrote after its
    first so many shards. `row in writer` tells whether this writer has a row. Raises `StoreError`.
    """

    def __init__(
        self,
        where: str | Path,
        *,
        manifest: dict[str, Any],
        permutation: npt.ArrayLike,
        writer: int | None = 0,
        shard_bytes: int = 256 << 20,
        keep_shards: int | None = None,
    ) -> None:
        self.path = str(where)
        with self._writing("the store"):
            self.place = open_place(where)
        self._shard_bytes = shard_bytes
        self._facts = layout.normalised_facts(manifest)
        self._grids = grids_from_manifest(self._facts["grids"])
        rank_to_id = np.asarray(permutation)
        data = layout.pack_permutation(rank_to_id)
        sha256 = hashlib.sha256(data).hexdigest()
        self._permutation = {"sha256": sha256, "size": len(rank_to_id)}
        self._store_id = layout.store_id_of(self._facts, sha256)
        self._rank_of_V = np.empty(len(rank_to_id), np.uint32)
        self._rank_of_V[rank_to_id] = np.arange(len(rank_to_id), dtype=np.uint32)
        self._done = np.zeros(0, bool)
        self._sealed: list[ShardStats] = []
        self._growing: GrowingShard | None = None
        self._streams: set[str] | None = None
        self._row_len: int | None = None
        self.folder = working_folder(self.place, self._store_id)
        with self._writing("the store"):
            self._check_incomplete()
            check_facts(self.place, self._store_id, {**self._facts, "permutation": self._permutation})
            blank = partial(self._part, finished=False)
            self.writer, self._lock = take_part(self.place, self.folder, writer, blank=blank)
        try:
            with self._writing("the store"):
                self._check_incomplete()  # another process may have sealed it just now
                if not (self.place.exists(layout.PERMUTATION) and self.place.read(layout.PERMUTATION) == data):
                    self.place.put(layout.PERMUTATION, data)
                if keep_shards is not None:
                    self._drop_shards(keep_shards)
                self._resume()
                self._write_part(finished=False)
        except StoreComplete:
            self._take_back()
            raise
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> StoreWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __contains__(self, row_id: int) -> bool:
        return row_id < len(self._done) and bool(self._done[row_id])

    @property
    def store_id(self) -> bytes:
        """16 bytes: which store this is a part of."""
        return self._store_id

    @property
    def done_rows(self) -> npt.NDArray[np.int64]:
        """The rows of this part that are whole on disk, ascending."""
        return np.flatnonzero(self._done)

    @property
    def shards(self) -> int:
        """How many shards of this part are closed."""
        return len(self._sealed)

    def write(self, row_id: int, token_hash: int, targets: RowTargets) -> None:
        """Append one row's record; `token_hash` is `fingerprint.row_hash` of its T + 1 token ids.

        When it returns, the record survives a kill of the process (not a power cut before the shard is sealed).
        Raises `StoreError` for a row that is already there and for targets the format cannot hold.
        """
        self.append(self.packed(row_id, token_hash, targets))

    def packed(self, row_id: int, token_hash: int, targets: RowTargets) -> bytes:
        """The record that `append` takes. Changes nothing: several threads may pack at once."""
        assert row_id >= 0
        assert targets.row_ids.tolist() == [row_id]
        assert targets.sampled == ("sampling" in self._facts), "truncated or sampled: the facts say otherwise"
        try:
            return encode_row(targets, token_hash=token_hash, rank_of_V=self._rank_of_V, grids=self._grids)
        except ValueError as error:
            raise StoreError(f"{self.path}: row {row_id:,} cannot be stored: {error}.") from None

    def append(self, data: bytes) -> None:
        """Append a packed record; one thread at a time."""
        record = parse_head(data)
        if record.row_id in self:
            raise StoreError(f"{self.path}: row {record.row_id:,} is already there. A row is captured once.")
        self._check_alike(record)
        with self._writing(f"row {record.row_id:,}"):
            growing = self._growing or self._new_shard()
            growing.append(record, data)
            self._mark(np.array([record.row_id]))
            if growing.stats.bytes >= self._shard_bytes:
                self._seal_shard(growing)

    def flush(self) -> None:
        """Close the shard in the making: its rows are durable, and listed in the part."""
        if self._growing is not None:
            with self._writing("the last shard"):
                if self._growing.stats.rows:
                    self._seal_shard(self._growing)
                else:  # a kill came before its first row was whole
                    self._discard()

    def beat(self) -> None:
        """A sign of life, for those who share the store."""
        self._lock.beat()

    def finish(self) -> None:
        """Close the part: whoever seals the store takes it as it is. Nothing can be written after it."""
        try:
            self.flush()
            with self._writing("the part"):
                if not layout.is_complete(self.place):
                    self._write_part(finished=True)
        except StoreComplete:
            self._discard()
        self._lock.release(remove=True)

    def seal(self, self_test: dict[str, Any], *, rows_expected: int, partial: bool = False) -> None:
        """Finish the store of rows 0 .. rows_expected - 1: last shard, index, manifest. Raises `StoreError`.

        `self_test`: what the capture measured of itself (teacher cross-entropy, mean kept mass, ...). `partial`: rows
        may be missing.
        """
        there = PartsRows(self.place, store_id=self._store_id, rows=rows_expected, writer=self.writer)
        there.refresh()
        there.rows[self.done_rows[self.done_rows < rows_expected]] = True
        missing = np.flatnonzero(~there.rows)
        if len(missing) and not partial:
            raise StoreError(
                f"{self.path}: {len(missing):,} of {rows_expected:,} rows are missing, the first is row "
                f"{missing[0]:,}. Run the capture again; it goes on where it was."
            )
        self.finish()
        with self._writing("the manifest"):
            seal_store(self.place, self_test=self_test, rows_expected=rows_expected, partial=partial)

    def add_cost(self, command: str, spent: dict[str, float]) -> None:
        """Note what capturing rows of this part took, beside what it took before: costs/{writer}.json."""
        name = f"costs/{self.writer:05d}.json"
        try:
            before = parse_sealed_json(self.place.read(name))
        except (FileNotFoundError, ValueError):
            before = {}
        cost = {"command": command} | {key: before.get(key, 0) + value for key, value in spent.items()}
        with self._writing("its cost"):
            self.place.put(name, sealed_json(cost))

    def close(self) -> None:
        """Let go of the part; a shard in the making stays as it is, to be gone on with."""
        if self._growing is not None:
            self._growing.close()
            self._growing = None
        self._lock.release()

    def _take_back(self) -> None:
        """Leave no trace in a store that was sealed while we came."""
        name = layout.part_name(self.writer)
        if self.writer not in layout.read_json(self.place, layout.MANIFEST)["writers"]:
            self.place.remove(name)
        self._lock.release(remove=True)

    def _discard(self) -> None:
        if self._growing is not None:
            self._growing.discard()
            self._growing = None

    # ---- shards and the part

    def _new_shard(self) -> GrowingShard:
        self._growing = GrowingShard(
            self.folder / "shards", store_id=self._store_id, writer=self.writer, seq=len(self._sealed)
        )
        return self._growing

    def _seal_shard(self, growing: GrowingShard) -> None:
        self._check_incomplete()  # sealed without us: what we have, somebody else had first
        stats = growing.seal(self.place)
        self._growing = None
        if layout.is_complete(self.place):  # at this very moment, and without this shard
            self.place.remove(f"shards/{stats.name}")
            self._check_incomplete()
        self._sealed.append(stats)
        self._write_part(finished=False)

    def _mark(self, rows: npt.NDArray[np.int64]) -> None:
        if (largest := int(rows.max(initial=-1))) >= len(self._done):
            self._done = np.concatenate((self._done, np.zeros(largest + 1, bool)))
        self._done[rows] = True

    def _check_alike(self, record: Record) -> None:
        """All rows of a store have the same length and the same streams."""
        names = {STREAM_NAMES[stream.id] for stream in record.streams if stream.id in STREAM_NAMES}
        self._streams = self._streams or names
        self._row_len = self._row_len or record.positions
        if record.positions != self._row_len or names != self._streams:
            raise StoreError(
                f"{self.path}: row {record.row_id:,} has {record.positions:,} positions and streams {sorted(names)}; "
                f"the rows before it have {self._row_len:,} and {sorted(self._streams)}."
            )

    def _part(self, writer: int, *, finished: bool) -> bytes:
        return layout.pack_part(
            store_id=self._store_id,
            writer=writer,
            finished=finished,
            row_len=self._row_len,
            permutation=self._permutation,
            facts=self._facts,
            shards=self._sealed,
        )

    def _write_part(self, *, finished: bool) -> None:
        self.place.put(layout.part_name(self.writer), self._part(self.writer, finished=finished))

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        with explained(f"{self.path}: {what} could not be written"):
            yield

    # ---- going on with what is there

    def _check_incomplete(self) -> None:
        if layout.is_complete(self.place):
            raise StoreComplete(f"{self.path}: this store is complete. Write to another directory, or overwrite it.")

    def _resume(self) -> None:
        part = layout.part_name(self.writer)
        listed = layout.read_json(self.place, part)["shards"] if self.place.exists(part) else []
        known = {entry["name"]: ShardStats(**entry) for entry in listed}
        for closed in closed_shards(self.place, known, store_id=self._store_id, writer=self.writer):
            self._mark(closed.rows)
            self._check_alike(closed.first)
            self._sealed.append(closed.stats)
            # A kill came after it was put to a URL.
            (self.folder / "shards" / f"{closed.stats.name}.tmp").unlink(missing_ok=True)
        unread = known.keys() - {stats.name for stats in self._sealed}
        if behind := [name for name in sorted(unread) if self.place.exists(f"shards/{name}")]:
            raise StoreError(
                f"{self.path}: shards/{behind[0]} of writer {self.writer} is named and cannot be gone on behind. Run "
                "`predistill store repair`, and write as another writer."
            )
        name = shard_name(self.writer, len(self._sealed))
        if (self.folder / "shards" / f"{name}.tmp").exists():
            growing = self._new_shard()
            for record in growing.recover():
                self._check_alike(record)
                self._mark(np.array([record.row_id]))
            if growing.stats.bytes >= self._shard_bytes:  # the kill came before its rename
                self._seal_shard(growing)

    def _drop_shards(self, keep: int) -> None:
        for seq in count(keep):
            name = shard_name(self.writer, seq)
            (self.folder / "shards" / f"{name}.tmp").unlink(missing_ok=True)
            if not self.place.exists(f"shards/{name}"):
                return
            self.place.remove(f"shards/{name}")
