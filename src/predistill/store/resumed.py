"""What an earlier process of a writer closed: its shards, each checked before anything is written behind it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import count
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError
from predistill.store.growing import count_record
from predistill.store.layout import ShardStats
from predistill.store.place import Place
from predistill.store.record import MAX_HEAD_BYTES, Record, parse_head
from predistill.store.shard import HEADER_BYTES, Shard, shard_name

__all__ = ["ClosedShard", "closed_shards"]


class ClosedShard(NamedTuple):
    """A shard's line of the part, the rows that it holds, and the header of its first record."""

    stats: ShardStats
    rows: npt.NDArray[np.int64]
    first: Record


def closed_shards(
    place: Place, known: Mapping[str, ShardStats], *, store_id: bytes, writer: int
) -> Iterator[ClosedShard]:
    """The writer's shards 0, 1, 2, ... as far as they are there. `known`: what its part says of them.

    Raises `StoreError` for one that is damaged or is not the one that its part names.
    """
    for seq in count():
        name = shard_name(writer, seq)
        if not place.exists(f"shards/{name}"):
            return
        try:
            shard = Shard(place.file(f"shards/{name}"), store_id=store_id, writer=writer, seq=seq)
            stats = known.get(name) or _counted(name, shard)
            if (stats.bytes, stats.crc32c) != (shard.tail.file_bytes, f"{shard.tail.records_crc:08x}"):
                raise ValueError("it is not the shard that its writer sealed")
            rows = shard.footer()["row"].astype(np.int64)
            first = parse_head(shard.read(HEADER_BYTES, MAX_HEAD_BYTES))
        except ValueError as error:
            raise StoreError(
                f"{place}/shards/{name}: {error}. `predistill store repair` keeps its whole rows; delete it to capture "
                "them all again."
            ) from None
        yield ClosedShard(stats, rows, first)


def _counted(name: str, shard: Shard) -> ShardStats:
    """The stats of a shard that its part never learnt of."""
    stats = ShardStats(name, bytes=HEADER_BYTES)
    for record, _ in shard.records():
        count_record(stats, record)
    stats.bytes, stats.crc32c = shard.tail.file_bytes, f"{shard.tail.records_crc:08x}"
    return stats
