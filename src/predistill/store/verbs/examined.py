"""A store's shards as a repair finds them: whole, or with what is wrong, which rows are left, and which are lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from predistill.store.growing import count_record
from predistill.store.layout import ShardStats
from predistill.store.place import File, LocalFile, Place
from predistill.store.record import Record
from predistill.store.shard import HEADER_BYTES, Shard, parse_shard_name, store_of
from predistill.store.verbs.known import Known
from predistill.store.verbs.salvage import belongs, footer_of, whole_records

__all__ = ["ExaminedShard", "Examiner"]


@dataclass
class ExaminedShard:
    """A shard as it was found. `stats`: its line in the part; None where it is to be written again, or is growing."""

    name: str  # final, also of one that is growing
    file: File | None
    growing: Path | None = None
    wrong: str | None = None
    stats: ShardStats | None = None
    other: bool = False  # whole, and not what its writer listed
    rows: list[int] = field(default_factory=list)  # that are whole
    lost: npt.NDArray[np.int64] | None = None  # rows that it had; None: nobody knows which
    lost_more: int = 0  # how many, where nobody knows which

    @property
    def writer(self) -> int:
        """Whose it is."""
        return parse_shard_name(self.name)[0]

    @property
    def found_as(self) -> str:
        """What it was called."""
        return f"shards/{self.name}{'' if self.growing is None else '.tmp'}"


class Examiner:
    """Looks through the shards of a store of which so much is known. `folder`: where they grow on this machine."""

    def __init__(self, place: Place, known: Known, *, folder: Path, rows_expected: int | None) -> None:
        self._place, self._known, self._folder, self._rows_expected = place, known, folder, rows_expected

    def names(self) -> list[str]:
        """All shards that there are or should be; those that are growing end in .tmp."""
        found = [name for name in self._place.names("shards") if re.fullmatch(r"[0-9]{5}-[0-9]{6}\.pds", name)]
        growing = [path.name for path in (self._folder / "shards").glob("*.pds.tmp")]
        return sorted({*self._known.listed, *found, *growing})

    def look(self, name: str) -> ExaminedShard:
        """Read a shard whole, every checksum."""
        return self._growing(name) if name.endswith(".tmp") else self._sealed(name)

    def records(self, file: File) -> Iterator[tuple[Record, bytes]]:
        """The whole records of a shard that can be this store's, a row once."""
        seen: set[int] = set()
        for _, record, data in whole_records(file):
            try:
                self._known.check(record)
            except ValueError:
                continue
            if record.row_id not in seen and (self._rows_expected is None or record.row_id < self._rows_expected):
                seen.add(record.row_id)
                yield record, data

    def _sealed(self, name: str) -> ExaminedShard:
        listed, (writer, seq) = self._known.listed.get(name), parse_shard_name(name)
        try:
            file = self._place.file(f"shards/{name}")
        except FileNotFoundError:
            assert listed is not None
            return ExaminedShard(name, None, wrong="it is missing", lost_more=listed["rows"])
        if listed is None and self._known.manifest is not None and self._known.sealed:
            return ExaminedShard(name, file, wrong="it is not in the manifest")
        stats, rows = ShardStats(name), []
        try:
            whole = Shard(file, store_id=self._known.store_id, writer=writer, seq=seq)
            for record, _ in whole.records():
                self._known.check(record)
                count_record(stats, record)
                rows.append(record.row_id)
        except ValueError as error:
            shard = ExaminedShard(name, file, wrong=str(error))
        else:
            stats.bytes, stats.crc32c = whole.tail.file_bytes, f"{whole.tail.records_crc:08x}"
            other = listed is not None and (listed["bytes"], listed["crc32c"]) != (stats.bytes, stats.crc32c)
            return ExaminedShard(name, file, stats=stats, other=other, rows=rows)
        if belongs(file, store_id=self._known.store_id, listed=listed):
            shard.rows = [record.row_id for record, _ in self.records(file)]
        if (footer := footer_of(file)) is not None:
            shard.lost = np.setdiff1d(footer["row"].astype(np.int64), shard.rows)
        elif listed is not None:
            shard.lost_more = max(0, listed["rows"] - len(shard.rows))
        return shard

    def _growing(self, name: str) -> ExaminedShard:
        """What its writer would not find again is damage: records behind some that are not whole, or behind a header
        that is not its own."""
        path = self._folder / "shards" / name
        shard = ExaminedShard(name.removesuffix(".tmp"), file := LocalFile(path), growing=path)
        if self._known.sealed and self._known.manifest is not None:
            shard.wrong = "it was left behind, and is not in the manifest"
            return shard
        end, (found, whole) = HEADER_BYTES, store_of(file.read(0, HEADER_BYTES))
        if found == self._known.store_id:
            for offset, record, data in whole_records(file):
                if offset != end and shard.wrong is None:
                    shard.wrong = f"there is damage at byte {end:,}"
                end = offset + len(data)
                shard.rows.append(record.row_id)
        if file.size >= HEADER_BYTES and not (whole and found == self._known.store_id):
            shard.wrong = "its header is damaged"
        return shard
