"""A bit flipped anywhere, a file cut anywhere, files that are swapped, doubled, lost or somebody else's: an error that
names the place, from `verify` and from the first read that needs the bytes; never another row's or other numbers."""

from __future__ import annotations

import random
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predistill.errors import StoreError
from predistill.store import Store, StoreWriter
from predistill.store.place import LocalPlace
from predistill.store.record import parse_head
from predistill.store.seal import seal_store
from predistill.store.shard import FOOTER
from tests.store.made import PERMUTATION, TRUNCATED, all_bytes, token_hash, truncated_row, write_store
from tests.torture.records import SEED, record

ROWS = 12
FIELDS = ("row_ids", "length_N", "ids_E", "logprob_E", "log_rest_N", "label_logprob_N", "entropy_N", "logit_std_N")
FLIPS = 10_000


@dataclass(frozen=True)
class Made:
    """A store of two writers, who both captured row 5, and what it gives."""

    path: Path
    expected: Any
    records: dict[str, list[tuple[int, int, int, bool]]]  # of each shard: from, to, row, whether that one is read

    def row_at(self, name: str, byte: int) -> tuple[int, bool] | None:
        for start, end, row, read in self.records.get(name, []):
            if start <= byte < end:
                return row, read
        return None


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    path = tmp_path_factory.mktemp("made") / "store"
    for number, rows in enumerate((range(7), range(5, ROWS))):
        with StoreWriter(path, manifest=TRUNCATED, permutation=PERMUTATION, writer=number, shard_bytes=9_000) as writer:
            for row in rows:
                writer.write(row, token_hash(row), truncated_row(row))
            writer.add_cost("predistill capture", {"seconds": 1.5, "tokens": 32.0})
            writer.finish()
    seal_store(LocalPlace(path), self_test={"teacher_ce": 1.25, "kl": 5e-06}, rows_expected=ROWS)
    store = Store(path)
    store.verify()
    records: dict[str, list[tuple[int, int, int, bool]]] = {}
    for number, entry in enumerate(store._at.shards):
        for line in store._at.shard(number).footer():
            start, row = int(line["offset"]), int(line["row"])
            read = store._at.line(row)[:2] == (number, start)
            records.setdefault(f"shards/{entry.name}", []).append((start, start + int(line["bytes"]), row, read))
    assert sum(not read for lines in records.values() for *_, read in lines) == 2
    return Made(path, store.rows(np.arange(ROWS)), records)


def outcome_of_reading(path: Path, expected: Any) -> str:
    """The error's words, or nothing when the arrays are right to the bit; other arrays fail."""
    try:
        found = Store(path).rows(np.arange(ROWS), np.array([token_hash(row) for row in range(ROWS)], np.uint64))
    except StoreError as error:
        return str(error)
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))
    return ""


def outcome_of_verifying(path: Path) -> str:
    with pytest.raises(StoreError) as caught:
        Store(path).verify()
    return str(caught.value)


def judged(made: Made, path: Path, name: str, byte: int) -> str:
    """What came of damage at a byte of a file; fails where it was silent, or named another place."""
    verified, read = outcome_of_verifying(path), outcome_of_reading(path, made.expected)
    inside = made.row_at(name, byte)
    for said in filter(None, (verified, read)):
        assert said.startswith(str(path))
        assert "\n" not in said
        assert name.removeprefix("shards/") in said, (name, said)
        if inside is not None:
            assert re.search(rf"\brow {inside[0]}\b", said), (name, byte, inside, said)
    if read:
        return "error in both"
    # What these rows do not need: writers' parts and costs, a shard's index, a record that another writer had first.
    unread = inside is not None and not inside[1]
    in_index = inside is None and name.startswith("shards/") and 64 <= byte < len((path / name).read_bytes()) - 48
    assert unread or in_index or name.startswith(("parts/", "costs/")), (name, byte)
    return "error in verify, not needed by the read"


def flip(path: Path, bit: int) -> None:
    data = bytearray(path.read_bytes())
    data[bit // 8] ^= 1 << bit % 8
    path.write_bytes(data)


def flips(made: Made, path: Path, *, seed: int, count: int) -> dict[str, Counter[str]]:
    """So many random bits, half of them shared out by file, half by size."""
    rng = random.Random(seed)
    sizes = {name: len(data) for name, data in all_bytes(made.path).items()}
    ends = list(accumulate(sizes.values()))
    outcomes: dict[str, Counter[str]] = {}
    for number in range(count):
        name = list(sizes)[number % len(sizes)] if number % 2 else rng.choices(list(sizes), cum_weights=ends)[0]
        bit = rng.randrange(8 * sizes[name])
        flip(path / name, bit)
        kind = name.split("/")[0]
        outcomes.setdefault(kind, Counter())[judged(made, path, name, bit // 8)] += 1
        flip(path / name, bit)
    assert outcome_of_reading(path, made.expected) == ""
    Store(path).verify()
    return outcomes


def boundaries(made: Made, name: str, data: bytes) -> list[int]:
    """Every offset at which one thing ends and the next begins."""
    if name.startswith("shards/"):
        found = [0, 64, len(data) - 48, len(data) - 4]
        lines = made.records[name]
        for start, end, _, _ in lines:
            head = parse_head(data[start:])
            table = start + 32
            found += [start, table, head.streams[0].start + start - 4, end - 4, end]
            found += [table + 16 * number for number in range(len(head.streams))]
            found += [start + stream.start for stream in head.streams]
        footer = lines[-1][1]
        return sorted({*found, *range(footer, footer + FOOTER.itemsize * (len(lines) + 1), FOOTER.itemsize)})
    if name == "index.bin":
        return [0, 60, 64, 64 + 16, len(data) - 4]
    if name == "id_permutation.npy":
        return [0, 6, 8, 10, 128, 132, len(data) - 4]
    return [0, 1, data.index(b","), data.rindex(b","), len(data) - 3, len(data) - 2, len(data) - 1]


def cuts(made: Made, path: Path, names: list[str]) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for name in names:
        data = (path / name).read_bytes()
        for end in boundaries(made, name, data):
            for size in {max(0, end - 1), end, end + 1} - {len(data)}:
                (path / name).write_bytes((data + b"\x00")[:size] if size < len(data) else data + b"\x00")
                verified, read = outcome_of_verifying(path), outcome_of_reading(path, made.expected)
                assert name.removeprefix("shards/") in verified
                if read:
                    assert name.removeprefix("shards/") in read
                else:
                    assert name.startswith(("parts/", "costs/")), (name, size)
                outcomes["error in both" if read else "error in verify, not needed by the read"] += 1
        (path / name).write_bytes(data)
    Store(path).verify()
    return outcomes


def changes(path: Path, other: Path) -> Iterator[tuple[str, str]]:
    """(what was done, words that both errors hold); the store is as it was before each."""
    shards = sorted((path / "shards").iterdir())
    first, second = shards[0], shards[1]

    def put(to: Path, data: bytes) -> None:
        to.write_bytes(data)

    a, b = first.read_bytes(), second.read_bytes()
    put(first, b), put(second, a)
    yield "two shards swapped", first.name
    put(first, a), put(second, b)
    put(second, a)
    yield "a shard doubled under another's name", f"{second.name}.*under another name"
    put(second, b)
    for shard in shards:
        data = shard.read_bytes()
        shard.unlink()
        yield "a shard missing", f"{shard.name}.*No such file"
        put(shard, data)
    for name in ("index.bin", "id_permutation.npy", "parts/part-00001.json"):
        data = (path / name).read_bytes()
        (path / name).unlink()
        yield "a file missing", name
        put(path / name, data)
    data = (path / "manifest.json").read_bytes()
    (path / "manifest.json").unlink()
    yield "a file missing", "not complete"
    put(path / "manifest.json", data)
    for name in ("index.bin", "parts/part-00000.json", "shards/00000-000000.pds"):
        data = (path / name).read_bytes()
        put(path / name, (other / name).read_bytes())
        yield "a file of another store", name.removeprefix("shards/")
        put(path / name, data)
    permutation = (path / "id_permutation.npy").read_bytes()
    values = np.frombuffer(permutation[128:], "<i4").copy()
    values[[10, 700]] = values[[700, 10]]
    put(path / "id_permutation.npy", permutation[:128] + values.tobytes())
    yield "two ids of the permutation swapped", "id_permutation.npy"
    put(path / "id_permutation.npy", permutation[:128] + np.roll(values, 1).tobytes())
    yield "another permutation", "id_permutation.npy"
    put(path / "id_permutation.npy", permutation)


def changed(made: Made, path: Path, other: Path) -> Counter[str]:
    outcomes: Counter[str] = Counter()
    for what, words in changes(path, other):
        verified, read = outcome_of_verifying(path), outcome_of_reading(path, made.expected)
        assert re.search(words, verified), (what, verified)
        assert re.search(words, read) or "parts/" in words, (what, read)
        outcomes[what] += 1
    for name in ("shards/00000-000099.pds", "shards/notes.txt"):  # no read can see it
        shutil.copy(path / "shards" / "00000-000000.pds", path / name)
        assert name in outcome_of_verifying(path)
        assert outcome_of_reading(path, made.expected) == ""
        (path / name).unlink()
        outcomes["a file too many"] += 1
    Store(path).verify()
    return outcomes


@pytest.fixture
def copy(made: Made, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made.path, tmp_path / "store"))


@pytest.fixture
def other(tmp_path: Path) -> Path:
    return write_store(tmp_path / "other", rows=ROWS, facts=TRUNCATED | {"teacher": {"name": "another"}})


def test_random_bits_are_errors_that_name_the_place(made: Made, copy: Path) -> None:
    outcomes = flips(made, copy, seed=random.randrange(1 << 32), count=100)
    assert len(outcomes) == 6


def test_cut_at_the_boundaries_of_each_kind_of_file_it_is_an_error(made: Made, copy: Path) -> None:
    names = {name.split("/")[0]: name for name in all_bytes(copy) if not name.startswith("shards/")}
    assert sum(cuts(made, copy, list(names.values())).values()) > 60


def test_files_swapped_doubled_lost_or_of_another_store_are_errors(made: Made, copy: Path, other: Path) -> None:
    assert len(changed(made, copy, other)) == 8


@pytest.mark.slow
def test_ten_thousand_random_bits_and_every_boundary_none_silent(made: Made, copy: Path, other: Path) -> None:
    outcomes = flips(made, copy, seed=SEED, count=FLIPS)
    cut = cuts(made, copy, list(all_bytes(copy)))
    entry = {
        "flips": {name: dict(found) for name, found in outcomes.items()},
        "cuts": dict(cut),
        "files": dict(changed(made, copy, other)),
        "silent": 0,
    }
    assert sum(found.total() for found in outcomes.values()) == FLIPS
    record("damage", entry)
