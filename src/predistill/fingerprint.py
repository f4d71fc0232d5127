"""Names made from content: of a row, of a file, of a set of settings."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xxhash

__all__ = ["file_sha256", "row_hash", "settings_fingerprint"]


def row_hash(ids: npt.ArrayLike) -> int:
    """xxh64 of one row's T + 1 token ids as little-endian int32: what a store's record must match."""
    return xxhash.xxh64_intdigest(np.ascontiguousarray(ids, dtype="<i4").tobytes())


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes, read in pieces."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def settings_fingerprint(settings: Any) -> str:
    """16 hexadecimal digits over the canonical JSON of `settings`; the order of keys does not matter."""
    canonical = json.dumps(settings, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]
