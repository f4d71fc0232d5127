"""Reading a store: any rows in any order, every byte checked, from any number of threads, from disk or from a URL."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError
from predistill.files import parse_sealed_json
from predistill.store import layout
from predistill.store import record as frame
from predistill.store.cache import DiskCache, default_cache
from predistill.store.decode import decode_rows, values
from predistill.store.grids import Grid, grids_from_manifest
from predistill.store.place import LocalPlace, open_place
from predistill.store.raw import Form, Found, RawRows, read_raw, read_stream
from predistill.store.record import KIND_SAMPLED, KIND_TRUNCATED, Record
from predistill.store.records import Line, Listed, Records
from predistill.store.rows import RowTargets
from predistill.store.streams import PER_POSITION, STREAM_NAMES

__all__ = ["Store"]


class Store:
    """A sealed teacher store. `len(store)` is the rows of its corpus split; `manifest` is what sealing wrote, without
    its list of shards.

    `where` is a directory or any URL that fsspec reads; a row is then one range request, and what was read stays in a
    bounded folder of this machine (`cache`; see `default_cache`). Raises `StoreError`, naming row and shard where there
    is one, for anything that is not as it was written.
    """

    def __init__(self, where: str | Path, *, cache: DiskCache | None = None) -> None:
        try:
            self.place = open_place(where)
        except OSError as error:
            raise StoreError(f"{where}: {error}. Check the name, the address and the credentials.") from None
        self.path = str(self.place)
        self.manifest: dict[str, Any] = self._read_manifest()
        self._store_id = bytes.fromhex(self.manifest["store_id"])
        self._kind = KIND_SAMPLED if self.manifest["kind"] == "sampled" else KIND_TRUNCATED
        self._grids = grids_from_manifest(self.manifest["grids"])
        self._rows = int(self.manifest["rows"])
        shards = [Listed(*(entry[name] for name in Listed._fields)) for entry in self.manifest.pop("shards")]
        self._id_of_rank_V = self._read_permutation()
        self._form = Form(
            sampled=self._kind == KIND_SAMPLED,
            positions=self.manifest["row_len"],
            streams=frozenset(number for number, name in STREAM_NAMES.items() if name in self.manifest["streams"]),
            vocab_size=len(self._id_of_rank_V),
        )
        cut = self.manifest.get("truncation") or self.manifest["sampling"]
        self._most = min(int(cut.get("k") or cut.get("draws") or self._form.vocab_size), self._form.vocab_size)
        kept = None if isinstance(self.place, LocalPlace) else (cache or default_cache())
        self._at = Records(self.place, self.manifest, shards=shards, cache=kept, damaged=self._damaged)

    def __len__(self) -> int:
        return self._rows

    def __reduce__(self) -> tuple[Any, ...]:
        return Store, (self.path,)  # another process opens it again

    @property
    def totals(self) -> dict[str, int]:
        """{"rows", "positions", "entries", "bytes"} of what is in the store: of a partial one not all rows."""
        return {name: self.manifest["totals"][name] for name in ("rows", "positions", "entries", "bytes")}

    @property
    def permutation(self) -> npt.NDArray[np.int32]:
        """Frequency rank -> token id."""
        return self._id_of_rank_V

    def bytes_by_stream(self) -> dict[str, int]:
        """Bytes of each stream, and of all the rest as "overhead"; they add up to the totals' bytes."""
        return dict(self.manifest["totals"]["bytes_by_stream"])

    def has(self, rows: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Which of the rows are in the store: all, unless it is partial."""
        asked = np.asarray(rows, np.int64).reshape(-1)
        if self.totals["rows"] == self._rows:
            return np.ones(len(asked), bool)
        return np.array([self._at.line(int(row)).size > 0 for row in asked], bool)

    def present(self) -> npt.NDArray[np.int64]:
        """The rows that are in the store, ascending."""
        try:
            return np.flatnonzero(np.concatenate([page["bytes"] > 0 for page in self._at.index.pages()]))
        except (OSError, ValueError) as error:
            raise self._damaged(layout.INDEX, error) from None

    @property
    def grids(self) -> dict[str, Grid]:
        """What the integers of `raw_rows` stand for."""
        return dict(self._grids)

    def rows(
        self,
        indices: npt.ArrayLike,
        token_hashes: npt.ArrayLike | None = None,
        *,
        fields: Collection[str] | None = None,
        absent_ok: bool = False,
        scaled: bool = True,
    ) -> RowTargets:
        """The targets of the rows asked for, in the asked order; a row may be asked for more than once.

        `token_hashes`: `fingerprint.row_hash` of each asked row of the corpus, uint64; a row made from other tokens
        is an error. `fields`: which of `OPTIONAL_FIELDS` to decode; None: all that are stored. `absent_ok`: a row that
        is not in the store has no entries, instead of being an error. `scaled` False: log-probabilities are those of
        the grid, not shifted to the kept mass, so that they can be written again as they are.
        """
        rows, found = self._records(indices, token_hashes, absent_ok=absent_ok)
        try:
            return decode_rows(
                found,
                row_ids=rows,
                form=self._form,
                id_of_rank_V=self._id_of_rank_V,
                grids=self._grids,
                fields=fields,
                scaled=scaled,
                where=lambda i: self._where(rows[i]) + ": ",
            )
        except ValueError as error:
            raise self._damaged(str(error)) from None

    def raw_rows(
        self,
        indices: npt.ArrayLike,
        token_hashes: npt.ArrayLike | None = None,
        *,
        fields: Collection[str] | None = None,
        absent_ok: bool = False,
    ) -> RawRows:
        """As `rows`, but the stored integers themselves; `finish` makes the targets of them, here or elsewhere."""
        rows, found = self._records(indices, token_hashes, absent_ok=absent_ok)
        try:
            return read_raw(
                found, row_ids=rows, form=self._form, fields=fields, where=lambda i: self._where(rows[i]) + ": "
            )
        except ValueError as error:
            raise self._damaged(str(error)) from None

    def records(self, indices: npt.ArrayLike) -> list[bytes]:
        """The records of the rows asked for, whole and checked, as they lie in their shards."""
        return [found[1] for found in self._records(indices, None)[1] if found is not None]

    def column(self, indices: npt.ArrayLike, field: str) -> npt.NDArray[np.float32]:
        """One array per position of many rows, such as label_logprob_N, float32 [n * T]; nothing else is decoded."""
        stream, grid = PER_POSITION[field]
        if stream not in self._form.streams:
            raise StoreError(
                f"{self.path}: it holds no {field}; its streams are {', '.join(self.manifest['streams'])}."
            )
        rows, found = self._records(indices, None)
        try:
            q_N = read_stream(
                found, stream, "<u2", positions=self._form.positions, where=lambda i: self._where(rows[i]) + ": "
            )
        except ValueError as error:
            raise self._damaged(str(error)) from None
        return np.take(values(self._grids[grid]), q_N)

    def verify(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Check every checksum of every file, and that index and shards agree; `StoreError` at the first that fails.

        `on_progress(shards done, shards)` is called after each shard.
        """
        try:
            self._verify_parts()
            index, there = self.place.read(layout.INDEX), self.place.names("shards")
        except OSError as error:
            raise self._damaged(error) from None
        if f"{google_crc32c.value(index):08x}" != self.manifest["index"]["crc32c"]:
            raise self._damaged(layout.INDEX, "its checksum does not match the manifest's")
        listed = {entry.name for entry in self._at.shards}
        for name in there:
            if name not in listed:
                raise StoreError(
                    f"{self.path}: shards/{name} is not in the manifest: it was left behind or put there by mistake. "
                    "Delete it."
                )
        rows = twice = 0
        for number, entry in enumerate(self._at.shards):
            shard = self._at.shard(number)
            try:
                for record, line in zip(shard.records(), shard.footer(), strict=True):
                    self._check(record[0])
                    here = Line(number, int(line["offset"]), int(line["bytes"]))
                    if self._at.line(record[0].row_id) == here:
                        rows += 1
                    elif self._at.line(record[0].row_id).shard < number:  # two writers captured it: the first is kept
                        twice += 1
                    else:
                        raise ValueError(f"row {record[0].row_id:,}: index.bin says it lies elsewhere")
            except (OSError, ValueError) as error:
                raise self._damaged(f"shard {entry.name}", error) from None
            if on_progress is not None:
                on_progress(number + 1, len(self._at.shards))
        for what, found, named in (
            ("rows", rows, self.manifest["totals"]["rows"]),
            ("rows that are there twice", twice, self.manifest["totals"]["rows_twice"]),
        ):
            if found != named:
                raise self._damaged(layout.MANIFEST, f"{found:,} {what} found, {named:,} named")

    def close(self) -> None:
        """Let go of the open shards; the store may still be read, which opens them again."""
        self._at.close()

    # ---- records

    def _records(
        self, indices: npt.ArrayLike, token_hashes: npt.ArrayLike | None, *, absent_ok: bool = False
    ) -> tuple[list[int], list[Found]]:
        """(row numbers, their records): fetched side by side, checked one by one."""
        rows = [int(row) for row in np.asarray(indices).reshape(-1)]
        assert rows, "no row was asked for"
        hashes: list[int | None] = [None] * len(rows)
        if token_hashes is not None:
            hashes = [int(value) for value in np.asarray(token_hashes, np.uint64).reshape(-1)]
        assert len(hashes) == len(rows)
        lines = [self._at.line(row) for row in rows]
        for row, line in zip(rows, lines, strict=True):
            if not line.size and not absent_ok:
                raise StoreError(
                    f"{self.path}: row {row:,} is not in this store, which holds {self.totals['rows']:,} of "
                    f"{self._rows:,} rows. Capture it, or train without targets for it."
                )
        fetched = iter(self._at.fetch([line for line in lines if line.size]))
        return rows, [
            (self._parsed(row, data := next(fetched), token_hash), data) if line.size else None
            for row, line, token_hash in zip(rows, lines, hashes, strict=True)
        ]

    def _parsed(self, row: int, data: bytes, token_hash: int | None) -> Record:
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
        return record

    def _check(self, record: Record) -> None:
        if record.kind != self._kind or record.positions != self.manifest["row_len"]:
            raise ValueError("its kind or its length is not the manifest's")
        if record.entries > record.positions * self._most:  # before anything is allocated for them
            raise ValueError(f"it has {record.entries:,} entries, and {self._most:,} a position are the most")

    # ---- files

    def _where(self, row: int) -> str:
        return f"row {row:,} (shard {self._at.shards[self._at.line(row).shard].name})"

    def _read_manifest(self) -> dict[str, Any]:
        try:
            if self.place.exists(layout.MANIFEST):
                return layout.read_json(self.place, layout.MANIFEST)
            begun = bool(layout.part_names(self.place))
        except OSError as error:
            raise StoreError(f"{self.path}: {error}. Check the name, the address and the credentials.") from None
        found = "no teacher store is here; name the directory that `predistill capture` wrote"
        if begun:
            found = "it is not complete; run its capture again to finish it"
        raise StoreError(f"{self.path}: {found}.")

    def _read_permutation(self) -> npt.NDArray[np.int32]:
        try:
            data = self.place.read(layout.PERMUTATION)
            if hashlib.sha256(data).hexdigest() != self.manifest["permutation"]["sha256"]:
                raise ValueError("its SHA-256 is not the manifest's")
            return layout.unpack_permutation(data)
        except (OSError, ValueError) as error:
            raise self._damaged(layout.PERMUTATION, error) from None

    def _verify_parts(self) -> None:
        """Every writer's part and cost."""
        for writer in self.manifest["writers"]:
            name = layout.part_name(writer)
            try:
                if layout.read_json(self.place, name)["store_id"] != self.manifest["store_id"]:
                    raise self._damaged(name, "it belongs to another store")
            except OSError as error:
                raise self._damaged(name, error) from None
        for name in self.place.names("costs"):
            try:
                parse_sealed_json(self.place.read(f"costs/{name}"))
            except ValueError as error:
                raise self._damaged(f"costs/{name}", error) from None

    def _damaged(self, *what: object) -> StoreError:
        found = ": ".join(str(part) for part in what)
        if isinstance(what[-1], OSError) and not isinstance(what[-1], FileNotFoundError):
            return StoreError(f"{self.path}: {found}. Run the same command again, if that passes.")
        return StoreError(
            f"{self.path}: {found}. It is damaged: `predistill store repair` keeps its whole rows; or restore a copy."
        )
