"""A shuffle on disk in flat memory: payloads spill into buckets by the top bits of their key, each sorted alone.

A bucket that outgrows memory is spilled again by the next bits of the key.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

__all__ = ["DiskShuffle"]

HEADER = struct.Struct("<QQ")  # key, payload bytes
KEY_BITS = 64
SPLIT_BITS = 6
BUCKET_BYTES = 1 << 22
SPILL_BYTES = 1 << 15


class DiskShuffle:
    """Payloads in, payloads out in ascending order of their 64-bit key; equal keys keep the order they came in.

    Takes as much disk below `folder` as the payloads (and a bucket more), and gives it back while iterating, which is
    done once, after the last `add`. No file stays open between calls.
    """

    def __init__(self, folder: Path, *, bucket_bytes: int = BUCKET_BYTES, used_bits: int = 0) -> None:
        folder.mkdir()
        self._folder = folder
        self._bucket_bytes = bucket_bytes
        self._shift = KEY_BITS - SPLIT_BITS - used_bits
        self._spills = [bytearray() for _ in range(1 << SPLIT_BITS)]
        self._counts = [0] * (1 << SPLIT_BITS)

    def add(self, key: int, payload: bytes) -> None:
        bucket = key >> self._shift & ((1 << SPLIT_BITS) - 1)
        spill = self._spills[bucket]
        spill += HEADER.pack(key, len(payload))
        spill += payload
        self._counts[bucket] += 1
        if len(spill) >= SPILL_BYTES:
            self._flush(bucket)

    def __iter__(self) -> Iterator[bytes]:
        for bucket, count in enumerate(self._counts):
            if not count:
                continue
            self._flush(bucket)
            path = self._path(bucket)
            fits = path.stat().st_size <= self._bucket_bytes
            if fits or count == 1 or self._shift < SPLIT_BITS:
                entries = sorted(_entries(path), key=lambda entry: entry[0])
                path.unlink()
                yield from (payload for _, payload in entries)
            else:
                yield from self._finer(path)
        self._folder.rmdir()

    def _finer(self, path: Path) -> DiskShuffle:
        finer = DiskShuffle(
            path.with_suffix(".finer"), bucket_bytes=self._bucket_bytes, used_bits=KEY_BITS - self._shift
        )
        for key, payload in _entries(path):
            finer.add(key, payload)
        path.unlink()
        return finer

    def _flush(self, bucket: int) -> None:
        with self._path(bucket).open("ab") as file:
            file.write(self._spills[bucket])
        self._spills[bucket].clear()

    def _path(self, bucket: int) -> Path:
        return self._folder / f"{bucket:02d}"


def _entries(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        while header := file.read(HEADER.size):
            key, payload_bytes = HEADER.unpack(header)
            yield key, file.read(payload_bytes)
