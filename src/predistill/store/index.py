"""index.bin: where each row of the store lies, in row order.

    header  64 bytes: magic "PDINDEX1", store id, rows u64, rows a page u32, zeros, CRC32C
    page    4,096 rows of 16 bytes (shard u32, offset u64, bytes u32; the last page is shorter), CRC32C of the page

`shard` counts the manifest's list. A row that is not in the store has 0 bytes. A page's checksum is verified
whenever it is read.
"""

from __future__ import annotations

import struct
import threading
from collections import OrderedDict
from collections.abc import Iterator

import google_crc32c
import numpy as np
import numpy.typing as npt

from predistill.store.place import File

__all__ = ["ENTRY", "Index", "index_bytes", "pack_index"]

ENTRY = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("bytes", "<u4")])
PAGE_ROWS = 4096
_MAGIC = b"PDINDEX1"
_HEADER = struct.Struct("<8s16sQI24x")
_CRC = struct.Struct("<I")
_HEADER_BYTES = _HEADER.size + _CRC.size  # 64
_PAGE_BYTES = PAGE_ROWS * ENTRY.itemsize + _CRC.size
_KEPT_PAGES = 64  # 4 MiB


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
    """An open index.bin, for reads from any thread. Pages come when they are needed, and only so many are kept: memory
    does not grow with the store. Raises `ValueError` (one clause) for damage."""

    def __init__(self, file: File, *, store_id: bytes, rows: int) -> None:
        if file.size != index_bytes(rows):
            raise ValueError(f"it is {file.size:,} bytes long, expected {index_bytes(rows):,}")
        header = file.read(0, _HEADER_BYTES)
        if google_crc32c.value(header[: _HEADER.size]) != _CRC.unpack_from(header, _HEADER.size)[0]:
            raise ValueError("its header's checksum does not match")
        if _HEADER.unpack_from(header) != (_MAGIC, store_id, rows, PAGE_ROWS):
            raise ValueError("it belongs to another store")
        self._file, self._rows = file, rows
        self._pages: OrderedDict[int, bytes] = OrderedDict()
        self._lock = threading.Lock()

    def __getitem__(self, row: int) -> tuple[int, int, int]:
        """(shard, offset, bytes) of a row; bytes 0: it is not in this store."""
        number, line = divmod(row, PAGE_ROWS)
        shard, offset, size = _ENTRY.unpack_from(self._page(number), line * ENTRY.itemsize)
        return shard, offset, size

    def present(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.bool_]:
        """Which of the rows are in this store."""
        return np.array([self[int(row)][2] > 0 for row in rows], bool)

    def pages(self) -> Iterator[npt.NDArray[np.void]]:
        """All lines in row order, a page at a time."""
        for number in range(-(-self._rows // PAGE_ROWS)):
            yield np.frombuffer(self._page(number)[: -_CRC.size], ENTRY)

    def _page(self, number: int) -> bytes:
        with self._lock:
            if (page := self._pages.get(number)) is not None:
                self._pages.move_to_end(number)
                return page
        start = _HEADER_BYTES + number * _PAGE_BYTES
        size = min(PAGE_ROWS, self._rows - number * PAGE_ROWS) * ENTRY.itemsize
        data = self._file.read(start, size + _CRC.size)
        if len(data) < size + _CRC.size or google_crc32c.value(data[:size]) != _CRC.unpack_from(data, size)[0]:
            raise ValueError(f"the checksum of page {number:,} does not match")
        with self._lock:
            self._pages[number] = data
            while len(self._pages) > _KEPT_PAGES:
                self._pages.popitem(last=False)
        return data


_ENTRY = struct.Struct("<IQI")
