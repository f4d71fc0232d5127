"""What a damaged store's intact files still say of it: its facts, its parts, its permutation.

Each fact lies in several places (the manifest, every writer's part), so that one damaged file loses none.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from predistill.errors import StoreError
from predistill.files import parse_sealed_json
from predistill.store import layout
from predistill.store.place import Place
from predistill.store.record import KIND_SAMPLED, KIND_TRUNCATED, Record
from predistill.store.streams import STREAM_NAMES

__all__ = ["Known", "known_of", "mended_permutation"]


@dataclass(frozen=True)
class Known:
    """A store as its intact JSON files describe it."""

    store_id: bytes
    facts: dict[str, Any]
    permutation: dict[str, Any]  # sha256, size
    row_len: int | None
    manifest: dict[str, Any] | None  # None: damaged, or not sealed
    sealed: bool  # whether there is a manifest, whole or not
    parts: dict[int, dict[str, Any] | None]  # writer -> its part; None: damaged or missing
    listed: dict[str, dict[str, Any]]  # shard -> the line about it of part or manifest

    def check(self, record: Record) -> None:
        """`ValueError` for a record that cannot be one of this store's."""
        if record.kind != (KIND_SAMPLED if "sampling" in self.facts else KIND_TRUNCATED):
            raise ValueError("its kind is not the store's")
        if self.row_len is not None and record.positions != self.row_len:
            raise ValueError("its length is not that of the store's rows")
        names = {STREAM_NAMES[stream.id] for stream in record.streams if stream.id in STREAM_NAMES}
        streams = next((line["streams"] for line in self.listed.values() if line.get("streams")), None)
        if streams is None and self.manifest is not None:
            streams = self.manifest["streams"]
        if streams is not None and names != {name for name in streams if name in STREAM_NAMES.values()}:
            raise ValueError("its streams are not those of the store's rows")


def known_of(place: Place, *, kept_manifests: list[str]) -> Known:
    """What is known of the store at `place`. `kept_manifests`: manifests that an earlier repair set aside, newest
    first. Raises `StoreError` where there is no store, or nothing intact to go by."""
    sealed = place.exists(layout.MANIFEST)
    manifest = _intact_json(place, layout.MANIFEST) if sealed else None
    names = layout.part_names(place)
    if not sealed and not names:
        raise StoreError(f"{place}: no teacher store is here; name the directory that `predistill capture` wrote.")
    parts = {layout.writer_of_part(name.removeprefix("parts/")): _intact_json(place, name) for name in names}
    sources = [source for source in (manifest, *parts.values()) if source is not None]
    if not sources:
        raise StoreError(
            f"{place}: neither {layout.MANIFEST} nor a part of it is readable, so that nobody knows what its rows are. "
            "Restore one of these files from a copy, or capture the store again."
        )
    first = sources[0]
    if other := [source for source in sources if source["store_id"] != first["store_id"]]:
        raise StoreError(
            f"{place}: it holds files of two stores ({first['store_id']} and {other[0]['store_id']}). Move one away."
        )
    if manifest is None:
        manifest = _kept_manifest(place, kept_manifests, store_id=first["store_id"])
    for writer in manifest["writers"] if manifest is not None else ():
        parts.setdefault(writer, None)
    lines = [*(manifest["shards"] if manifest is not None and sealed else ())]
    lines += [line for part in parts.values() if part is not None for line in part["shards"]]
    return Known(
        store_id=bytes.fromhex(first["store_id"]),
        facts=first["facts"] if "facts" in first else layout.facts_of(first),
        permutation=first["permutation"],
        row_len=next((source["row_len"] for source in sources if source["row_len"] is not None), None),
        manifest=manifest,
        sealed=sealed,
        parts=dict(sorted(parts.items())),
        listed={line["name"]: line for line in lines},
    )


def _intact_json(place: Place, name: str) -> dict[str, Any] | None:
    """A sealed JSON file of a store, or None where it is missing or damaged; another format version is an error."""
    try:
        parse_sealed_json(place.read(name))
    except (FileNotFoundError, ValueError):
        return None
    return layout.read_json(place, name)


def _kept_manifest(place: Place, names: list[str], *, store_id: str) -> dict[str, Any] | None:
    for name in names:
        try:
            manifest = parse_sealed_json(place.read(name))
        except ValueError:  # it was set aside because it was damaged
            continue
        if manifest.get("store_id") == store_id:
            return manifest
    return None


def mended_permutation(data: bytes, *, sha256: str, size: int) -> bytes | None:
    """The bytes of an id_permutation.npy with one wrong entry or a wrong header; None where more is wrong.

    All ids are in it once: one wrong entry is an id twice, or none, and the id that is nowhere belongs there.
    """
    if len(data) < 4 * size:
        return None
    found = np.frombuffer(data[len(data) - 4 * size :], "<i4")
    counts = np.bincount(found[(found >= 0) & (found < size)], minlength=size)
    missing = np.flatnonzero(counts == 0)
    if len(missing) > 1:
        return None
    wrong = np.flatnonzero((found < 0) | (found >= size) | (counts[np.clip(found, 0, size - 1)] > 1))
    for place in wrong if len(missing) else [None]:
        tried = found.copy()
        if place is not None:
            tried[place] = missing[0]
        packed = layout.pack_permutation(tried)
        if hashlib.sha256(packed).hexdigest() == sha256:
            return packed
    return None
