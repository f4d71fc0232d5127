"""What a store's reader costs and what it notices: random rows, memory, flipped bits. Not a benchmark itself.

T positions of a row
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import statistics
import struct
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError
from predistill.files import write_sealed_json
from predistill.store import Store
from predistill.store.index import ENTRY

Arrays = list[npt.NDArray[Any]]


def random_row(store: Store, *, times: int = 300) -> dict[str, Any]:
    """Medians, page cache warm: a record fetched and its checksums verified; the row decoded too."""
    rows = np.random.default_rng(0).integers(len(store), size=times)
    for row in range(len(store)):
        store.rows([row], fields=())

    def median_ms(read: Callable[[int], object]) -> dict[str, float]:
        took = []
        for row in rows:
            began, cpu_began = time.perf_counter(), time.process_time()
            read(int(row))
            took.append((time.perf_counter() - began, time.process_time() - cpu_began))
        ms, cpu_ms = (round(statistics.median(column) * 1e3, 3) for column in zip(*took, strict=True))
        return {"ms": ms, "cpu_ms": cpu_ms}

    return {
        "record_bytes": round(store.totals["bytes"] / len(store)),
        "fetched_and_checked": median_ms(lambda row: store._records([row], None)),
        "decoded": median_ms(lambda row: store.rows([row], fields=())),
    }


def stored_arrays(store: Store) -> Arrays:
    """All that a reader gives of all rows."""
    targets = store.rows(np.arange(len(store)))
    arrays = (getattr(targets, name) for name in targets.__slots__)
    return [array for array in arrays if isinstance(array, np.ndarray)]


def flips(files: Sequence[Path], read: Callable[[], Arrays], *, times: int, refusal: type[Exception]) -> dict[str, int]:
    """One flipped bit at a time, anywhere in the files: what a reader of everything then does.

    refused       it raises `refusal`                crashed   it raises something else
    no_effect     every array is what it was         silent    some array is not
    """
    rng, whole = np.random.default_rng(0), read()
    ends = np.cumsum([file.stat().st_size for file in files])
    found = dict.fromkeys(("refused", "crashed", "no_effect", "silent"), 0)
    for place in rng.integers(ends[-1] * 8, size=times):
        number = int(np.searchsorted(ends, place // 8, side="right"))
        offset = int(place // 8 - (ends[number - 1] if number else 0))
        with files[number].open("r+b") as file:
            file.seek(offset)
            byte = file.read(1)[0]
            _put(file, offset, byte ^ 1 << int(place % 8))
            try:
                now = read()
                same = len(now) == len(whole) and all(map(np.array_equal, now, whole))
                found["no_effect" if same else "silent"] += 1
            except refusal:
                found["refused"] += 1
            except Exception:  # of a peer: whatever a damaged file does to it
                found["crashed"] += 1
            _put(file, offset, byte)
    return {"flips": times, **found}


def _put(file: Any, offset: int, byte: int) -> None:
    file.seek(offset)
    file.write(bytes([byte]))
    file.flush()


def flips_of(folder: Path, *, times: int) -> dict[str, int]:
    """Of a store: a new reader each time, so that what it keeps in memory hides nothing."""
    files = [folder / name for name in ("manifest.json", "id_permutation.npy", "index.bin")]
    files += sorted((folder / "shards").iterdir())
    return flips(files, lambda: stored_arrays(Store(folder)), times=times, refusal=StoreError)


# Memory: a store that is made up but for its records: 204.8 kB a row, 10,000 shards, read by a fresh process.

PAGE_ROWS = 4096
SHARDS = 10_000
SIZES = {"10 TB": 49 << 20, "0.1 TB": 49 << 13}  # rows


def reader_memory(like: Path, scratch: Path) -> dict[str, Any]:
    """MiB that a fresh process grows by on opening a store, and with so many random rows looked up in its index."""
    found = {}
    for name, rows in SIZES.items():
        folder = scratch / "made-up-store"
        try:
            _make_up(folder, like, rows)
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                index_mib = (folder / "index.bin").stat().st_size >> 20
                found[name] = {"rows": rows, "index_mib": index_mib, **pool.apply(_memory_of, (folder, rows))}
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return found


def _make_up(folder: Path, like: Path, rows: int) -> None:
    """The manifest of a real store with another index and more shards. Every page of the index is the same."""
    assert rows % PAGE_ROWS == 0
    folder.mkdir()
    shutil.copy(like / "id_permutation.npy", folder)
    manifest = json.loads((like / "manifest.json").read_text())
    shards = SHARDS * rows // SIZES["10 TB"]
    manifest["shards"] = [{**manifest["shards"][0], "name": f"00000-{number:06d}.pds"} for number in range(shards)]
    manifest["totals"]["rows"] = rows
    if "rows" in manifest:
        manifest["rows"] = rows
    write_sealed_json(folder / "manifest.json", {key: value for key, value in manifest.items() if key != "crc32c"})
    page = np.zeros(PAGE_ROWS, ENTRY)
    page["shard"] = np.random.default_rng(0).integers(shards, size=PAGE_ROWS)
    page["offset"], page["bytes"] = 64 + 204_800 * np.arange(PAGE_ROWS), 204_800
    with (folder / "index.bin").open("wb") as file:
        file.write(
            _with_crc(struct.pack("<8s16sQI24x", b"PDINDEX1", bytes.fromhex(manifest["store_id"]), rows, PAGE_ROWS))
        )
        for _ in range(rows // PAGE_ROWS):
            file.write(_with_crc(page.tobytes()))


def _with_crc(data: bytes) -> bytes:
    return data + struct.pack("<I", google_crc32c.value(data))


def _memory_of(folder: Path, rows: int) -> dict[str, Any]:
    before, rng = _resident_kib(), np.random.default_rng(0)
    store = Store(folder)
    found = {"opened": _growth(before)}
    done = 0
    for count in (1_000, 10_000):
        for row in rng.integers(rows, size=count - done):
            store._at.index[int(row)]
        done = count
        found[f"{count:,} rows"] = _growth(before)
    return found


def _growth(before: dict[str, int]) -> dict[str, float]:
    now = _resident_kib()
    names = {"RssAnon": "own_mib", "RssFile": "mapped_mib"}
    return {said: round((now[name] - before[name]) / 1024, 1) for name, said in names.items()}


def _resident_kib() -> dict[str, int]:
    lines = Path(f"/proc/{os.getpid()}/status").read_text().splitlines()
    return {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith(("RssAnon", "RssFile"))}
