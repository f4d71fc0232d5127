"""Writing a store: rows go to a `.tmp` shard at once, so a kill loses no row whose `write` had returned.

Opening a half-made store verifies what is there, cuts a torn last record off and goes on behind it: the finished
store has the bytes of one that was never interrupted.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError
from predistill.files import write_atomic, write_sealed_json
from predistill.store import layout
from predistill.store import shard as shards
from predistill.store.grids import grids_from_manifest
from predistill.store.growing import GrowingShard, count_record
from predistill.store.layout import ShardStats
from predistill.store.record import MAX_HEAD_BYTES, Record, parse_head
from predistill.store.rows import RowTargets
from predistill.store.seal import seal_store
from predistill.store.streams import STREAM_NAMES, encode_row

__all__ = ["StoreWriter"]


class StoreWriter:
    """Write one store, row by row; the same call on a half-made store goes on with it.

    `manifest` holds the static facts (teacher, tokenizer, corpus, capture, and truncation or sampling; grids if other
    than the defaults); `permutation` is the frequency rank -> token id array. Both must equal those of a half-made
    store. `row in writer` tells whether a row is already there. Raises `StoreError`.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        manifest: dict[str, Any],
        permutation: npt.ArrayLike,
        writer: int = 0,
        shard_bytes: int = 256 << 20,
    ) -> None:
        self.path = Path(path)
        self.writer = writer
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
        self._lock_fd: int | None = None
        self._check_incomplete()
        for folder in ("parts", "shards"):
            (self.path / folder).mkdir(parents=True, exist_ok=True)
        self._lock()
        try:
            self._check_incomplete()  # another process may have sealed it just now
            self._check_facts()
            permutation_path = layout.permutation_path(self.path)
            if not permutation_path.exists() or permutation_path.read_bytes() != data:
                write_atomic(permutation_path, data)
            self._resume()
            self._write_part(finished=False)
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
    def done_rows(self) -> npt.NDArray[np.int64]:
        """The rows that are whole on disk, ascending."""
        return np.flatnonzero(self._done)

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
        try:
            growing = self._growing or self._new_shard()
            growing.append(record, data)
            self._mark(np.array([record.row_id]))
            if growing.stats.bytes >= self._shard_bytes:
                self._seal_shard(growing)
        except OSError as error:
            raise StoreError(f"{self.path}: row {record.row_id:,} could not be written: {error.strerror}.") from None

    def seal(self, self_test: dict[str, Any], *, rows_expected: int) -> None:
        """Finish the store of rows 0 .. rows_expected - 1: last shard, index, manifest. Raises `StoreError`.

        `self_test`: what the capture measured of itself (teacher cross-entropy, mean kept mass, ...).
        """
        missing = np.flatnonzero(~self._done[:rows_expected])
        first = int(missing[0]) if len(missing) else len(self._done)
        count = len(missing) + max(0, rows_expected - len(self._done))
        if count:
            raise StoreError(
                f"{self.path}: {count:,} of {rows_expected:,} rows are missing, the first is row {first:,}. "
                "Run the capture again; it goes on where it was."
            )
        if self._growing is not None:
            self._seal_shard(self._growing)
        self._write_part(finished=True)
        seal_store(self.path, self_test=self_test, rows_expected=rows_expected)
        self._lock_path.unlink(missing_ok=True)
        self.close()

    def close(self) -> None:
        """Let go of the store; a shard in the making stays as it is, to be gone on with."""
        if self._growing is not None:
            self._growing.close()
            self._growing = None
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def _new_shard(self) -> GrowingShard:
        folder = self.path / "shards"
        self._growing = GrowingShard(folder, store_id=self._store_id, writer=self.writer, seq=len(self._sealed))
        return self._growing

    def _seal_shard(self, growing: GrowingShard) -> None:
        self._sealed.append(growing.seal())
        self._growing = None
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

    # ---- going on with what is there

    @property
    def _lock_path(self) -> Path:
        return layout.part_path(self.path, self.writer).with_suffix(".lock")

    def _lock(self) -> None:
        self._lock_fd = os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise StoreError(f"{self.path}: another process is writing this store. Wait for it, or stop it.") from None

    def _check_incomplete(self) -> None:
        if layout.is_complete(self.path):
            raise StoreError(f"{self.path}: this store is complete. Write to another directory, or overwrite it.")

    def _check_facts(self) -> None:
        for path in sorted((self.path / "parts").glob("part-*.json")):
            part = layout.read_json(path)
            if part["store_id"] != self._store_id.hex():
                theirs = {**part["facts"], "permutation": part["permutation"]}
                difference = _difference(theirs, {**self._facts, "permutation": self._permutation})
                raise StoreError(
                    f"{self.path}: it was begun with {difference}. "
                    "Give the same settings to go on, or another directory."
                )

    def _resume(self) -> None:
        path = layout.part_path(self.path, self.writer)
        known = {entry["name"]: entry for entry in layout.read_json(path)["shards"]} if path.exists() else {}
        while (path := layout.shard_path(self.path, shards.shard_name(self.writer, len(self._sealed)))).exists():
            try:
                shard = shards.Shard(path, store_id=self._store_id, writer=self.writer, seq=len(self._sealed))
                stats = ShardStats(path.name, bytes=shards.HEADER_BYTES)
                if entry := known.get(path.name):
                    stats = ShardStats(**entry)
                else:
                    for record, _ in shard.records():
                        count_record(stats, record)
                    stats.bytes, stats.crc32c = shard.tail.file_bytes, f"{shard.tail.records_crc:08x}"
                if (stats.bytes, stats.crc32c) != (shard.tail.file_bytes, f"{shard.tail.records_crc:08x}"):
                    raise ValueError("it is not the shard that its writer sealed")
                self._mark(shard.footer()["row"].astype(np.int64))
                self._check_alike(parse_head(shard.read(shards.HEADER_BYTES, MAX_HEAD_BYTES)))
            except ValueError as error:
                raise StoreError(f"{path}: {error}. Delete it to capture its rows again.") from None
            self._sealed.append(stats)
        if path.with_name(path.name + ".tmp").exists():
            growing = self._new_shard()
            for record in growing.recover():
                self._check_alike(record)
                self._mark(np.array([record.row_id]))
            if growing.stats.bytes >= self._shard_bytes:  # the kill came before its rename
                self._seal_shard(growing)

    def _write_part(self, *, finished: bool) -> None:
        content = {
            "format": layout.FORMAT,
            "version": layout.VERSION,
            "store_id": self._store_id.hex(),
            "writer": self.writer,
            "finished": finished,
            "row_len": self._row_len,
            "permutation": self._permutation,
            "facts": self._facts,
            "shards": [stats.as_json() for stats in self._sealed],
        }
        write_sealed_json(layout.part_path(self.path, self.writer), content)


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The first setting that differs, as `truncation.p = 0.95, now 0.9`."""
    for key in sorted(theirs.keys() | ours.keys()):
        was, now = theirs.get(key), ours.get(key)
        if isinstance(was, dict) and isinstance(now, dict) and was != now:
            return f"{key}.{_difference(was, now)}"
        if was != now:
            return f"{key} = {json.dumps(was)}, now {json.dumps(now)}"
    return "another format version"
