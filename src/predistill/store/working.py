"""Where a writer works: the folder in which its shards grow, its part and the lock on it, and what is said when a place
refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import xxhash

from predistill.errors import StoreError
from predistill.lock import Lock
from predistill.store import layout
from predistill.store.cache import cache_folder
from predistill.store.place import LocalPlace, Place

__all__ = ["check_facts", "explained", "lock_path", "take_part", "working_folder"]


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


def take_part(place: Place, folder: Path, writer: int | None, *, blank: Callable[[int], bytes]) -> tuple[int, Lock]:
    """The number of a writer's part, and its lock, held. `writer`: that one; None: the first that no living process
    writes. `blank`: the bytes of a new part. Raises `StoreError`."""
    if writer is not None:
        if (lock := Lock.take(lock_path(folder, writer))) is None:
            raise StoreError(f"{place}: another process is writing this store. Wait for it, or stop it.")
        return writer, lock
    for number in count():
        path = lock_path(folder, number)
        ours = path.exists()  # behind a URL, where the locks of other machines are not seen
        if (lock := Lock.take(path)) is None:
            continue
        try:
            if _is_free(place, number, seen_here=ours, blank=blank):
                return number, lock
        except BaseException:
            lock.release()
            raise
        lock.release(remove=True)
    raise AssertionError("count() does not end")


def check_facts(place: Place, store_id: bytes, facts: dict[str, Any]) -> None:
    """`StoreError` when the parts that are there were begun with other facts, and which."""
    for part in layout.read_parts(place):
        if part["store_id"] != store_id.hex():
            difference = _difference({**part["facts"], "permutation": part["permutation"]}, facts)
            raise StoreError(
                f"{place}: it was begun with {difference}. Give the same settings to go on, or another directory."
            )


def _is_free(place: Place, number: int, *, seen_here: bool, blank: Callable[[int], bytes]) -> bool:
    """Whether a part is nobody's yet, or one to go on with."""
    name = layout.part_name(number)
    if not place.exists(name):
        return place.create(name, blank(number))
    here = seen_here or isinstance(place, LocalPlace)
    return here and not layout.read_json(place, name)["finished"]


def _difference(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    """The first setting that differs, as `truncation.p = 0.95, now 0.9`."""
    for key in sorted(theirs.keys() | ours.keys()):
        was, now = theirs.get(key), ours.get(key)
        if isinstance(was, dict) and isinstance(now, dict) and was != now:
            return f"{key}.{_difference(was, now)}"
        if was != now:
            return f"{key} = {json.dumps(was)}, now {json.dumps(now)}"
    return "another format version"
