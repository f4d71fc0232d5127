"""index.bin: where each row of the store lies, in row order.

    header  64 bytes: magic "PDINDEX1", store id, rows u64, rows a page u32, zeros, CRC32C
    page    4,096 rows of 16 bytes (shard u32, offset u64, bytes u32; the last page is shorter), CRC32C of the page

`shard` counts the manifest's list. It is mapped, and a page's checksum is verified when the page is first used.
"""

from __future__ import annotations

import mmap
import struct
from pathlib import Path

import google_crc32c
import numpy as np
import numpy.typing as npt

__all__ = ["ENTRY", "Index", "index_bytes", "pack_index"]

ENTRY = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("bytes", "<u4")])
PAGE_ROWS = 4096
_MAGIC = b"PDINDEX1"
_HEADER = struct.Struct("<8s16sQI24x")
_CRC = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _CRC.size  # 64
_PAGE_BYTES = PAGE_ROWS * ENTRY.itemsize + _CRC.size


def index_bytes(rows: int) -> int:
    """The length of the index of so many rows."""
    return _HEADER_BYTES + rows * ENTRY.itemsize + -(-rows // PAGE_ROWS) * _CRC.size


def pack_index(entries: npt.NDArray[np.void], *, store_id: bytes) -> bytes:
    """The file's bytes; `entries` (dtype ENTRY) are in row order."""
    parts = [_HEADER.pack(_MAGIC, store_id, len(entries), PAGE_ROWS)]
    parts.append(_CRC.pack(google_crc32c.value(parts[0])))
    for start in range(0, len(entries), PAGE_ROWS):
        page = entries[start : start + PAGE_ROWS].tobytes()
        parts += [page, _CRC.pack(google_crc32c.value(page))]
    return b"".join(parts)


class Index:
    """A mapped index.bin, for reads from any thread. Raises `ValueError` (one clause) for damage."""

    def __init__(self, path: Path, *, store_id: bytes, rows: int) -> None:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            if size != index_bytes(rows):
                raise ValueError(f"it is {size:,} bytes long, expected {index_bytes(rows):,}")
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header = self._map[:_HEADER_BYTES]
        if google_crc32c.value(header[: _HEADER.size]) != _CRC.unpack_from(header, _HEADER.size)[0]:
            raise ValueError("its header's checksum does not match")
        if _HEADER.unpack_from(header) != (_MAGIC, store_id, rows, PAGE_ROWS):
            raise ValueError("it belongs to another store")
        self._rows = rows
        self._checked = np.zeros(-(-rows // PAGE_ROWS), bool)

    def __getitem__(self, row: int) -> tuple[int, int, int]:
        """(shard, offset, bytes) of a row."""
        page, line = divmod(row, PAGE_ROWS)
        if not self._checked[page]:
            self.check_page(page)
        shard, offset, size = _ENTRY.unpack_from(self._map, _HEADER_BYTES + page * _PAGE_BYTES + line * ENTRY.itemsize)
        return shard, offset, size

    def check_page(self, page: int) -> None:
        """Verify one page's checksum."""
        start = _HEADER_BYTES + page * _PAGE_BYTES
        rows = min(PAGE_ROWS, self._rows - page * PAGE_ROWS)
        data = self._map[start : start + rows * ENTRY.itemsize]
        if google_crc32c.value(data) != _CRC.unpack_from(self._map, start + len(data))[0]:
            raise ValueError(f"the checksum of page {page:,} does not match")
        self._checked[page] = True

    def check(self) -> None:
        """Verify every page's checksum."""
        for page in range(len(self._checked)):
            self.check_page(page)


_ENTRY = struct.Struct("<IQI")
