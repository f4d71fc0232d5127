"""A bounded folder of byte ranges read from afar, the least recently used removed first; shared by processes."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path

from predistill.errors import StoreError

__all__ = ["DiskCache", "cache_folder", "default_cache"]

DEFAULT_BYTES = 8 << 30


class DiskCache:
    """A file a range. It may lose anything at any time, and what it gives is checked by whoever asked."""

    def __init__(self, folder: Path, *, max_bytes: int) -> None:
        self._folder, self._max_bytes = folder, max_bytes
        self._unseen = max_bytes  # bytes put since the folder was last looked through: look at once

    def get(self, name: str) -> bytes | None:
        """A range, and note that it was used."""
        path = self._path(name)
        try:
            data = path.read_bytes()
            os.utime(path)
        except OSError:
            return None
        return data

    def put(self, name: str, data: bytes) -> None:
        """Keep a range. A full disk is no error: the range is not kept."""
        path = self._path(name)
        temporary = path.with_name(f".{path.name}.{threading.get_native_id()}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()
        self._unseen += len(data)
        if self._unseen > self._max_bytes // 16:
            self._trim()

    def drop(self, name: str) -> None:
        """Forget a range."""
        with suppress(OSError):
            self._path(name).unlink()

    def _path(self, name: str) -> Path:
        return self._folder / name

    def _trim(self) -> None:
        found = []
        for folder, _, names in os.walk(self._folder):
            for name in names:
                try:
                    status = os.stat(os.path.join(folder, name))  # noqa: PTH118, PTH116  # os.walk's own strings
                except OSError:
                    continue
                found.append((status.st_mtime, status.st_size, os.path.join(folder, name)))  # noqa: PTH118
        total, self._unseen = sum(size for _, size, _ in found), 0
        for _, size, path in sorted(found):
            if total <= self._max_bytes * 15 // 16:
                return
            with suppress(OSError):
                Path(path).unlink()
            total -= size


def cache_folder() -> Path:
    """$PREDISTILL_CACHE, by default predistill in the user's cache folder."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("PREDISTILL_CACHE") or home / "predistill")


def default_cache() -> DiskCache:
    """The ranges in `cache_folder`, at most $PREDISTILL_CACHE_BYTES of them (by default 8 GiB)."""
    size = os.environ.get("PREDISTILL_CACHE_BYTES") or str(DEFAULT_BYTES)
    if not size.isdecimal():
        raise StoreError(f'PREDISTILL_CACHE_BYTES is "{size}"; give it a number of bytes, such as {DEFAULT_BYTES}.')
    return DiskCache(cache_folder() / "ranges", max_bytes=int(size))
