"""Where a writer works: the folder in which its shards grow, its lock there, and what it says when a place refuses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import xxhash

from predistill.errors import StoreError
from predistill.store.cache import cache_folder
from predistill.store.place import LocalPlace, Place

__all__ = ["explained", "lock_path", "working_folder"]


@contextmanager
def explained(what: str) -> Iterator[None]:
    """What a place refuses, as a `StoreError` that begins with `what`."""
    try:
        yield
    except OSError as error:
        name = f" ({error.filename})" if error.filename else ""
        raise StoreError(
            f"{what}: {error.strerror or error}{name}. What was written before is whole: mend that, and run the same "
            "command again to go on."
        ) from None


def lock_path(folder: Path, writer: int) -> Path:
    """The lock that a living writer of this machine holds."""
    return folder / "parts" / f"part-{writer:05d}.lock"


def working_folder(place: Place, store_id: bytes) -> Path:
    """Where shards grow and locks lie: in the store itself, or, of a store behind a URL, on this machine."""
    if isinstance(place, LocalPlace):
        return place.path
    # The same capture to two places must not meet in one folder.
    return cache_folder() / "writing" / f"{store_id.hex()}-{xxhash.xxh64_hexdigest(str(place).encode())}"
