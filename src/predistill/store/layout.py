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
import re
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError
from predistill.files import parse_sealed_json, sealed_json
from predistill.store.content import check_content
from predistill.store.grids import grids_from_manifest, grids_to_manifest
from predistill.store.place import Place, open_place

__all__ = [
    "ALIGNMENT",
    "FORMAT",
    "INDEX",
    "MANIFEST",
    "PERMUTATION",
    "VERSION",
    "ShardStats",
    "facts_of",
    "is_complete",
    "normalised_facts",
    "pack_part",
    "pack_permutation",
    "part_name",
    "part_names",
    "read_json",
    "read_parts",
    "read_permutation",
    "store_id_of",
    "unpack_permutation",
    "writer_of_part",
]

FORMAT = "predistill-store"
VERSION = [2, 0]
ALIGNMENT = "entry t predicts token t+1"
RESERVED = {
    "format",
    "version",
    "store_id",
    "alignment",
    "kind",
    "streams",
    "row_len",
    "rows",
    "permutation",
    "index",
} | {
    "writers",
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


MANIFEST, PERMUTATION, INDEX = "manifest.json", "id_permutation.npy", "index.bin"


def part_name(writer: int) -> str:
    """Of one writer's part."""
    return f"parts/part-{writer:05d}.json"


def writer_of_part(name: str) -> int:
    """The writer whose part is called so (without its folder)."""
    return int(name.removeprefix("part-").removesuffix(".json"))


def part_names(place: Place) -> list[str]:
    """Of all writers' parts."""
    return [f"parts/{name}" for name in place.names("parts") if re.fullmatch(r"part-[0-9]{5}\.json", name)]


def read_parts(place: Place) -> list[dict[str, Any]]:
    """All writers' parts; without that of one that came late and took it back just now."""
    found = []
    for name in part_names(place):
        with suppress(FileNotFoundError):
            found.append(read_json(place, name))
    return found


def is_complete(where: str | Path | Place) -> bool:
    """Whether a sealed store is there. Of a place, `OSError` where it cannot be asked; else `StoreError`."""
    if isinstance(where, Place):
        return where.exists(MANIFEST)
    try:
        return open_place(where).exists(MANIFEST)
    except OSError as error:
        raise StoreError(f"{where}: {error}. Check the name, the address and the credentials.") from None


def normalised_facts(manifest: dict[str, Any]) -> dict[str, Any]:
    """The static facts as JSON gives them back, with every grid written out."""
    assert not RESERVED & manifest.keys(), f"{RESERVED & manifest.keys()} are the store's own"
    assert ("truncation" in manifest) != ("sampling" in manifest), "a store is truncated or sampled"
    facts: dict[str, Any] = json.loads(json.dumps(manifest))
    facts["grids"] = grids_to_manifest(grids_from_manifest(facts.get("grids") or {}))
    return facts


def facts_of(manifest: dict[str, Any]) -> dict[str, Any]:
    """The static facts in a manifest: what its writers were given."""
    return {key: value for key, value in manifest.items() if key not in RESERVED}


def pack_part(
    *,
    store_id: bytes,
    writer: int,
    finished: bool,
    row_len: int | None,
    permutation: dict[str, Any],
    facts: dict[str, Any],
    shards: list[ShardStats],
) -> bytes:
    """The bytes of a writer's part."""
    content = {
        "format": FORMAT,
        "version": VERSION,
        "store_id": store_id.hex(),
        "writer": writer,
        "finished": finished,
        "row_len": row_len,
        "permutation": permutation,
        "facts": facts,
        "shards": [stats.as_json() for stats in shards],
    }
    return sealed_json(content)


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


def read_permutation(where: str | Path) -> npt.NDArray[np.int32] | None:
    """The frequency rank -> token id array of a store, whole or half made; None when there is none yet."""
    try:
        return unpack_permutation(open_place(where).read(PERMUTATION))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise StoreError(f"{where}/{PERMUTATION}: {error}. It is damaged; capture the store again.") from None


def unpack_permutation(data: bytes) -> npt.NDArray[np.int32]:
    """The array in id_permutation.npy's bytes; `ValueError` when it is none."""
    file = io.BytesIO(data)
    try:
        np.lib.format.read_magic(file)
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)  # np.load would allocate whatever it says
    except Exception as error:  # its little parser has a dozen ways to fail
        raise ValueError(f"it is not a NumPy vector ({error})") from None
    body = data[file.tell() :]
    if dtype != np.dtype("<i4") or shape != (len(body) // 4,) or len(body) % 4:
        raise ValueError("it is not an int32 vector")
    permutation = np.frombuffer(body, "<i4")
    if not np.array_equal(np.sort(permutation), np.arange(len(permutation))):
        raise ValueError("it does not hold every token id once")
    return permutation


def read_json(place: Place, name: str) -> dict[str, Any]:
    """A sealed JSON file of a store; `StoreError` when it is damaged or of another format."""
    try:
        content = parse_sealed_json(place.read(name))
    except ValueError as error:
        raise StoreError(
            f"{place}/{name}: {error}. It is damaged; capture the store again or restore a copy."
        ) from None
    version = content.get("version")
    if content.get("format") != FORMAT or not isinstance(version, list) or not version:
        raise StoreError(f"{place}/{name}: it is not of a predistill store. Name the directory that capture wrote.")
    if version[0] != VERSION[0]:
        raise StoreError(
            f"{place}/{name}: format version {version[0]}, this predistill reads {VERSION[0]}. "
            "Use the one that wrote it."
        )
    try:
        if name == MANIFEST or name.startswith("parts/"):
            check_content(content, manifest=name == MANIFEST)
    except ValueError as error:
        raise StoreError(f"{place}/{name}: {error}. It is not what predistill writes; restore a copy.") from None
    return content
