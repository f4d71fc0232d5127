"""A store's directory: what each file is called, and the sealed JSON of a writer's part and of the manifest.

manifest.json              written last: it means complete
id_permutation.npy         frequency rank -> token id
index.bin                  row -> shard, offset, bytes
parts/part-00000.json      one a writer: the facts it started from, its shards
shards/00000-000000.pds    writer, number; `.tmp` while it is being written
"""

from __future__ import annotations

import hashlib
import io
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError
from predistill.files import read_sealed_json
from predistill.store.grids import grids_from_manifest, grids_to_manifest

__all__ = [
    "ALIGNMENT",
    "FORMAT",
    "VERSION",
    "ShardStats",
    "index_path",
    "is_complete",
    "manifest_path",
    "normalised_facts",
    "pack_permutation",
    "part_path",
    "permutation_path",
    "read_json",
    "read_permutation",
    "shard_path",
    "store_id_of",
]

FORMAT = "predistill-store"
VERSION = [1, 0]
ALIGNMENT = "entry t predicts token t+1"
RESERVED = {"format", "version", "store_id", "alignment", "kind", "streams", "row_len", "permutation", "index"} | {
    "shards",
    "totals",
    "self_test",
    "crc32c",
}


@dataclass(slots=True)
class ShardStats:
    """One line of the manifest's list of shards; `crc32c` is that of the records, as in the shard's tail."""

    name: str
    rows: int = 0
    bytes: int = 0
    positions: int = 0
    entries: int = 0
    crc32c: str = "00000000"
    streams: dict[str, int] = field(default_factory=dict)  # bytes of each stream

    def as_json(self) -> dict[str, Any]:
        """A plain dict."""
        return asdict(self)


def manifest_path(store: Path) -> Path:
    """Of a whole store."""
    return store / "manifest.json"


def permutation_path(store: Path) -> Path:
    """Of the frequency rank -> token id array."""
    return store / "id_permutation.npy"


def index_path(store: Path) -> Path:
    """Of the row index."""
    return store / "index.bin"


def part_path(store: Path, writer: int) -> Path:
    """Of one writer's part."""
    return store / "parts" / f"part-{writer:05d}.json"


def shard_path(store: Path, name: str) -> Path:
    """Of a sealed shard."""
    return store / "shards" / name


def is_complete(path: str | Path) -> bool:
    """Whether the directory holds a sealed store."""
    return manifest_path(Path(path)).exists()


def normalised_facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """The static facts as JSON gives them back, with every grid written out."""
    assert not RESERVED & manifest.keys(), f"{RESERVED & manifest.keys()} are the store's own"
    assert ("truncation" in manifest) != ("sampling" in manifest), "a store is truncated or sampled"
    facts: dict[str, Any] = json.loads(json.dumps(manifest))
    facts["grids"] = grids_to_manifest(grids_from_manifest(facts.get("grids") or {}))
    return facts


def store_id_of(facts: dict[str, Any], permutation_sha256: str) -> bytes:
    """16 bytes that name a store by its facts: the same capture makes the same bytes, another one other bytes."""
    canonical = json.dumps([VERSION, facts, permutation_sha256], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).digest()[:16]


def pack_permutation(id_of_rank_V: npt.ArrayLike) -> bytes:
    """The bytes of id_permutation.npy: an int32 vector that holds every token id once."""
    permutation = np.ascontiguousarray(id_of_rank_V, "<i4")
    assert permutation.ndim == 1
    assert np.array_equal(np.sort(permutation), np.arange(len(permutation))), "not a permutation of the vocabulary"
    file = io.BytesIO()
    np.save(file, permutation, allow_pickle=False)
    return file.getvalue()


def read_permutation(path: str | Path) -> npt.NDArray[np.int32] | None:
    """The frequency rank -> token id array of a store, whole or half made; None when there is none yet."""
    try:
        return unpack_permutation(permutation_path(Path(path)).read_bytes())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(f"{permutation_path(Path(path))}: {error}. It is damaged; capture the store again.") from None


def unpack_permutation(data: bytes) -> npt.NDArray[np.int32]:
    """The array in id_permutation.npy's bytes; `ValueError` when it is none."""
    try:
        permutation: npt.NDArray[np.int32] = np.load(io.BytesIO(data), allow_pickle=False)
    except EOFError:
        raise ValueError("it is empty") from None
    if permutation.dtype != np.dtype("<i4") or permutation.ndim != 1:
        raise ValueError("it is not an int32 vector")
    return permutation


def read_json(path: Path) -> dict[str, Any]:
    """A sealed JSON file of a store; `StoreError` when it is damaged or of another format."""
    try:
        content = read_sealed_json(path)
    except ValueError as error:
        raise StoreError(f"{path}: {error}. It is damaged; capture the store again or restore a copy.") from None
    version = content.get("version")
    if content.get("format") != FORMAT or not isinstance(version, list):
        raise StoreError(f"{path}: it is not of a predistill store. Name the directory that capture wrote.")
    if version[0] != VERSION[0]:
        raise StoreError(
            f"{path}: format version {version[0]}, this predistill reads {VERSION[0]}. Use the one that wrote it."
        )
    return content
