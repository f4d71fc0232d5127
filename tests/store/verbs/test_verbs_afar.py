"""The verbs on stores behind a URL: what they do to a directory, they do to an object store."""

from __future__ import annotations

import secrets
from pathlib import Path

import pytest

from predistill.store import Store, StoreWriter
from predistill.store.place import Place, open_place
from predistill.store.verbs.begun import seal
from predistill.store.verbs.contents import contents
from predistill.store.verbs.merge import merge
from predistill.store.verbs.repair import repair
from tests.store.made import PERMUTATION, TRUNCATED, token_hash, truncated_row

ROWS = 6


@pytest.fixture(params=["memory", "s3"])
def url(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "s3":
        request.getfixturevalue("s3")
    monkeypatch.setenv("PREDISTILL_CACHE", str(tmp_path / "cache"))
    return f"{request.param}://bucket/{secrets.token_hex(4)}"


def written(where: str, rows: range, *, rows_expected: int = ROWS) -> str:
    with StoreWriter(where, manifest=TRUNCATED, permutation=PERMUTATION, shard_bytes=11_000) as writer:
        for row in rows:
            writer.write(row, token_hash(row), truncated_row(row))
        writer.seal({"teacher_ce": 1.0}, rows_expected=rows_expected, partial=True)
    return where


def flip(place: Place, name: str, at: int) -> None:
    data = bytearray(place.read(name))
    data[at] ^= 1
    place.put(name, bytes(data))


def test_repair_sets_aside_and_the_lost_row_is_written_again(url: str) -> None:
    whole = Store(written(url, range(ROWS)))
    records = whole.records(range(ROWS))
    place = open_place(url)
    before = place.read("shards/00000-000000.pds")
    flip(place, "shards/00000-000000.pds", 2)
    assert repair(url)["complete"]
    assert place.read("shards/00000-000000.pds") == before
    flip(place, "shards/00000-000000.pds", 500)
    report = repair(url)
    assert (report["rows_missing"], report["complete"]) == ([0], False)
    assert place.names("damaged") == ["00000-000000.pds", "00000-000000.pds.2", "manifest.json", "manifest.json.2"]
    with StoreWriter(url, manifest=TRUNCATED, permutation=PERMUTATION, writer=1) as writer:
        writer.write(0, token_hash(0), truncated_row(0))
        writer.seal({"teacher_ce": 1.0}, rows_expected=ROWS)
    assert Store(url).records(range(ROWS)) == records
    Store(url).verify()


def test_seal_inspect_and_merge(url: str) -> None:
    with StoreWriter(f"{url}/a", manifest=TRUNCATED, permutation=PERMUTATION) as writer:
        writer.write(3, token_hash(3), truncated_row(3))
    assert [line["state"] for line in contents(f"{url}/a")["writers"]] == ["stopped"]
    assert contents(f"{url}/a")["rows_there"] == 1  # of the shard that grows on this machine
    assert seal(f"{url}/a", rows_expected=ROWS, partial=True).present().tolist() == [3]
    merged = merge([f"{url}/a", written(f"{url}/b", range(2))], out=f"{url}/m")
    merged.verify()
    assert merged.present().tolist() == [0, 1, 3]
    assert contents(merged.path)["rows_there"] == 3
