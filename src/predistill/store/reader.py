"""Reading a store: any rows in any order, every byte checked, from any number of threads."""

from __future__ import annotations

import hashlib
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError
from predistill.store import layout
from predistill.store import record as frame
from predistill.store.grids import grids_from_manifest
from predistill.store.index import Index
from predistill.store.record import KIND_SAMPLED, KIND_TRUNCATED, Record
from predistill.store.rows import RowTargets
from predistill.store.shard import Shard, parse_shard_name
from predistill.store.streams import decode_rows

__all__ = ["Store"]

_OPEN_SHARDS = 256


class Store:
    """A sealed teacher store. `len(store)` is its rows; `manifest` is what sealing wrote.

    Raises `StoreError`, naming row and shard where there is one, for anything that is not as it was written.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if not layout.is_complete(self.path):
            found = (
                "it is not complete; run its capture again to finish it"
                if (self.path / "parts").exists()
                else ("no teacher store is here; name the directory that `predistill capture` wrote")
            )
            raise StoreError(f"{self.path}: {found}.")
        self.manifest: dict[str, Any] = layout.read_json(layout.manifest_path(self.path))
        self._store_id = bytes.fromhex(self.manifest["store_id"])
        self._kind = KIND_SAMPLED if self.manifest["kind"] == "sampled" else KIND_TRUNCATED
        self._grids = grids_from_manifest(self.manifest["grids"])
        self._rows = int(self.manifest["totals"]["rows"])
        self._shards = self.manifest["shards"]
        self._id_of_rank_V = self._read_permutation()
        try:
            self._index = Index(layout.index_path(self.path), store_id=self._store_id, rows=self._rows)
        except (OSError, ValueError) as error:
            raise self._damaged("index.bin", error) from None
        self._open: OrderedDict[int, Shard] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return self._rows

    @property
    def totals(self) -> dict[str, int]:
        """{"rows", "positions", "entries", "bytes"} of the whole store."""
        return {name: self.manifest["totals"][name] for name in ("rows", "positions", "entries", "bytes")}

    @property
    def permutation(self) -> npt.NDArray[np.int32]:
        """Frequency rank -> token id."""
        return self._id_of_rank_V

    def bytes_by_stream(self) -> dict[str, int]:
        """Bytes of each stream, and of all the rest as "overhead"; they add up to the totals' bytes."""
        return dict(self.manifest["totals"]["bytes_by_stream"])

    def rows(
        self,
        indices: npt.ArrayLike,
        token_hashes: npt.ArrayLike | None = None,
        *,
        fields: Collection[str] | None = None,
    ) -> RowTargets:
        """The targets of the rows asked for, in the asked order; a row may be asked for more than once.

        `token_hashes`: `fingerprint.row_hash` of each asked row of the corpus, uint64; a row made from other tokens
        is an error. `fields`: which of `OPTIONAL_FIELDS` to decode; None: all that are stored.
        """
        rows = [int(row) for row in np.asarray(indices).reshape(-1)]
        hashes = (
            None if token_hashes is None else [int(value) for value in np.asarray(token_hashes, np.uint64).reshape(-1)]
        )
        assert rows, "no row was asked for"
        assert hashes is None or len(hashes) == len(rows)
        found = [self._record(row, None if hashes is None else hashes[i]) for i, row in enumerate(rows)]

        def where(i: int) -> str:
            return self._where(rows[i]) + ": "

        try:
            return decode_rows(found, id_of_rank_V=self._id_of_rank_V, grids=self._grids, fields=fields, where=where)
        except ValueError as error:
            raise self._damaged(str(error)) from None

    def verify(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Check every checksum of every file, and that index and shards agree; `StoreError` at the first that fails.

        `on_progress(shards done, shards)` is called after each shard.
        """
        for part in sorted((self.path / "parts").glob("part-*.json")):
            if layout.read_json(part)["store_id"] != self.manifest["store_id"]:
                raise self._damaged(f"parts/{part.name}", "it belongs to another store")
        index = layout.index_path(self.path).read_bytes()
        if f"{google_crc32c.value(index):08x}" != self.manifest["index"]["crc32c"]:
            raise self._damaged("index.bin", "its checksum does not match the manifest's")
        rows = 0
        for number, entry in enumerate(self._shards):
            shard = self._shard(number)
            try:
                for line in shard.footer():
                    if self._index[int(line["row"])] != (number, int(line["offset"]), int(line["bytes"])):
                        raise ValueError(f"row {int(line['row']):,}: index.bin says it lies elsewhere")
                for record, _ in shard.records():
                    self._check(record)
                    rows += 1
            except ValueError as error:
                raise self._damaged(f"shard {entry['name']}", error) from None
            if on_progress is not None:
                on_progress(number + 1, len(self._shards))
        if rows != self._rows:
            raise self._damaged("manifest.json", f"{rows:,} rows found, {self._rows:,} named")

    def close(self) -> None:
        """Let go of the open shards; the store may still be read, which opens them again."""
        with self._lock:
            self._open.clear()

    def _record(self, row: int, token_hash: int | None) -> tuple[Record, bytes]:
        if not 0 <= row < self._rows:
            raise StoreError(f"{self.path}: row {row:,} was asked for; it holds rows 0 to {self._rows - 1:,}.")
        try:
            number, offset, size = self._index[row]
        except ValueError as error:
            raise self._damaged("index.bin", error) from None
        data = self._shard(number).read(offset, size)
        try:
            record = frame.parse(data)
            self._check(record)
            if record.row_id != row:
                raise ValueError(f"row {record.row_id:,} lies there")
        except ValueError as error:
            raise self._damaged(self._where(row), error) from None
        if token_hash is not None and token_hash != record.token_hash:
            raise StoreError(
                f"{self.path}: {self._where(row)} was made from other tokens than this corpus holds (hash "
                f"{record.token_hash:016x} against {token_hash:016x}). Capture it again with `predistill capture`, or "
                "train on the corpus named in its manifest."
            )
        return record, data

    def _check(self, record: Record) -> None:
        if record.kind != self._kind or record.positions != self.manifest["row_len"]:
            raise ValueError("its kind or its length is not the manifest's")

    def _shard(self, number: int) -> Shard:
        with self._lock:
            if (shard := self._open.get(number)) is not None:
                self._open.move_to_end(number)
                return shard
        entry = self._shards[number]
        writer, seq = parse_shard_name(entry["name"])
        try:
            path = layout.shard_path(self.path, entry["name"])
            shard = Shard(path, store_id=self._store_id, writer=writer, seq=seq)
            found = (shard.tail.file_bytes, shard.tail.rows, f"{shard.tail.records_crc:08x}")
            if found != (entry["bytes"], entry["rows"], entry["crc32c"]):
                raise ValueError("it is not the shard that was sealed into this store")
        except (OSError, ValueError) as error:
            raise self._damaged(f"shard {entry['name']}", error) from None
        with self._lock:
            self._open[number] = shard
            while len(self._open) > _OPEN_SHARDS:
                self._open.popitem(last=False)
        return shard

    def _where(self, row: int) -> str:
        return f"row {row:,} (shard {self._shards[self._index[row][0]]['name']})"

    def _read_permutation(self) -> npt.NDArray[np.int32]:
        name = layout.permutation_path(self.path).name
        try:
            data = layout.permutation_path(self.path).read_bytes()
            if hashlib.sha256(data).hexdigest() != self.manifest["permutation"]["sha256"]:
                raise ValueError("its SHA-256 is not the manifest's")
            return layout.unpack_permutation(data)
        except (OSError, ValueError) as error:
            raise self._damaged(name, error) from None

    def _damaged(self, *what: object) -> StoreError:
        return StoreError(
            f"{self.path}: {': '.join(str(part) for part in what)}. It is damaged; restore a copy or capture it again."
        )
