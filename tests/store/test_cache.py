"""Rows from an object store: one request a row, none the second time; and the bounded folder that sees to it."""

from __future__ import annotations

import multiprocessing
import os
import secrets
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predistill.errors import StoreError
from predistill.store import Store
from predistill.store.cache import DiskCache, default_cache
from predistill.store.place import open_place
from tests.s3 import S3
from tests.store.made import all_bytes, write_store

ROWS = 24


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("local") / "store", rows=ROWS)


@pytest.fixture
def remote(local: Path, s3: S3) -> str:  # noqa: ARG001
    """The store behind an S3 URL."""
    url = f"s3://bucket/{secrets.token_hex(4)}"
    place = open_place(url)
    for name, data in all_bytes(local).items():
        place.put(name, data)
    return url


@pytest.fixture
def cache(tmp_path: Path) -> DiskCache:
    return DiskCache(tmp_path / "cache", max_bytes=1 << 20)


def kept_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def assert_same(found: Any, expected: Any) -> None:
    for field in ("row_ids", "length_N", "ids_E", "logprob_E", "log_rest_N", "entropy_N"):
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field))


# ---- the folder


def test_what_was_put_comes_back_and_what_was_dropped_does_not(cache: DiskCache) -> None:
    assert cache.get("store/a") is None
    cache.put("store/a", b"one")
    cache.put("store/b", b"two")
    assert (cache.get("store/a"), cache.get("store/b")) == (b"one", b"two")
    cache.drop("store/a")
    cache.drop("store/a")
    assert (cache.get("store/a"), cache.get("store/b")) == (None, b"two")


def test_it_stays_below_its_bound_and_the_least_recently_used_go_first(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=32_000)
    for number in range(100):
        cache.put(f"s/{number}", b"x" * 1000)
        os.utime(tmp_path / "s" / str(number), (number, number))
        if number >= 20:
            assert cache.get("s/20") is not None  # used all the time: it stays
        assert kept_bytes(tmp_path) <= 32_000 + 2_000
    left = sorted(int(path.name) for path in (tmp_path / "s").iterdir())
    assert 20 in left
    assert len(left) >= 28
    assert left[1:] == list(range(left[1], 100))


def test_what_is_larger_than_all_of_it_is_not_kept(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path, max_bytes=1000)
    cache.put("s/large", b"x" * 5000)
    assert cache.get("s/large") is None
    assert kept_bytes(tmp_path) == 0


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = DiskCache(tmp_path / "file" / "cache", max_bytes=1000)
    cache.put("s/a", b"1")
    assert cache.get("s/a") is None
    cache.drop("s/a")


def _use(folder: Path, number: int, answers: Any) -> None:
    cache = DiskCache(folder, max_bytes=40_000)
    wrong = 0
    for i in range(300):
        name = f"s/{(i * 7 + number) % 60}"
        data = cache.get(name)
        wrong += data is not None and data != name.encode() * 300
        if data is None:
            cache.put(name, name.encode() * 300)
    answers.put(wrong)


def test_processes_share_it(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    users = [context.Process(target=_use, args=(tmp_path, number, answers)) for number in range(4)]
    for user in users:
        user.start()
    assert [answers.get() for _ in users] == [0] * 4
    for user in users:
        user.join()
    assert kept_bytes(tmp_path) <= 40_000 * (1 + 4 / 16)
    assert not [path for path in tmp_path.rglob(".*") if path.is_file()]


def test_its_size_is_the_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREDISTILL_CACHE", str(tmp_path))
    monkeypatch.setenv("PREDISTILL_CACHE_BYTES", "100")
    default_cache().put("s/a", b"x" * 200)
    assert kept_bytes(tmp_path) == 0
    monkeypatch.setenv("PREDISTILL_CACHE_BYTES", "8G")
    with pytest.raises(StoreError, match=r'PREDISTILL_CACHE_BYTES is "8G"; give it a number of bytes'):
        default_cache()


# ---- a store behind a URL


def test_a_store_behind_a_url_gives_what_the_local_one_gives(local: Path, remote: str, cache: DiskCache) -> None:
    store, here = Store(remote, cache=cache), Store(local)
    assert_same(store.rows(np.arange(ROWS)), here.rows(np.arange(ROWS)))
    assert_same(store.rows([5, 3, 5]), here.rows([5, 3, 5]))
    np.testing.assert_array_equal(store.column([4, 2], "entropy_N"), here.column([4, 2], "entropy_N"))
    assert store.manifest == here.manifest
    store.verify()


def test_a_row_is_one_range_request_and_none_the_second_time(s3: S3, remote: str, cache: DiskCache) -> None:
    below = remote.removeprefix("s3://bucket/")
    store = Store(remote, cache=cache)
    shards = {store._at.line(row).shard for row in range(ROWS)}
    for shard in shards:  # open: its header and its tail
        store._at.shard(shard)
    before = len(s3.requests(below))
    asked = [7, 3, 20, 7, 11]
    for row in asked:
        store.rows([row])
    now = s3.requests(below)[before:]
    assert len(now) == len(set(asked))
    assert {(request.method, request.status) for request in now} == {("GET", 206)}
    assert all(request.path.startswith(f"/bucket/{below}/shards/") for request in now)
    before += len(now)
    store.rows(asked)
    store.rows(asked[::-1])
    assert len(s3.requests(below)) == before
    another = Store(remote, cache=cache)  # as another process, or tomorrow
    opening = len(s3.requests(below))
    another.rows(asked)
    assert [request.path for request in s3.requests(below)[opening:]] == [f"/bucket/{below}/index.bin"]
    another.rows([8])
    assert len(s3.requests(below)) <= opening + 1 + 4  # a shard is opened: its size, header, tail; the row


def test_rows_are_asked_for_side_by_side(s3: S3, remote: str, cache: DiskCache) -> None:
    below = remote.removeprefix("s3://bucket/")
    store = Store(remote, cache=cache)
    store.rows(np.arange(ROWS))
    ranges = [request for request in s3.requests(f"{below}/shards/") if request.status == 206]
    assert len(ranges) == ROWS + 2 * len(store._at.shards)


def test_a_damaged_copy_is_dropped_and_fetched_again(
    s3: S3, local: Path, remote: str, cache: DiskCache, tmp_path: Path
) -> None:
    below = remote.removeprefix("s3://bucket/")
    store, here = Store(remote, cache=cache), Store(local)
    store.rows(np.arange(ROWS))
    copies = sorted(path for path in (tmp_path / "cache").rglob("*") if path.is_file())
    assert len(copies) == ROWS
    for number, path in enumerate(copies):
        data = bytearray(path.read_bytes())
        data[number * len(data) // ROWS] ^= 16
        path.write_bytes([bytes(data), data[:-1], b"", copies[number - 1].read_bytes()][number % 4])
    before = len(s3.requests(below))
    assert_same(store.rows(np.arange(ROWS)), here.rows(np.arange(ROWS)))
    assert len(s3.requests(below)) - before == ROWS
    assert_same(store.rows(np.arange(ROWS)), here.rows(np.arange(ROWS)))
    assert len(s3.requests(below)) - before == ROWS


def test_the_cache_stays_below_its_bound_while_a_store_is_read(remote: str, local: Path, tmp_path: Path) -> None:
    store, here = Store(remote, cache=DiskCache(tmp_path / "c", max_bytes=20_000)), Store(local)
    for _ in range(3):
        for row in range(ROWS):
            assert_same(store.rows([row]), here.rows([row]))
            assert kept_bytes(tmp_path / "c") <= 20_000 * 17 / 16 + 4_000


def test_a_store_captured_again_at_the_same_url_is_not_read_from_the_old_ones_copies(
    remote: str, local: Path, cache: DiskCache, tmp_path: Path
) -> None:
    """It has the same id, and its rows lie elsewhere."""
    Store(remote, cache=cache).rows(np.arange(ROWS))
    again = write_store(tmp_path / "again", rows=ROWS, order=np.arange(ROWS)[::-1])
    place = open_place(remote)
    for name, data in all_bytes(again).items():
        place.put(name, data)
    store = Store(remote, cache=cache)
    assert_same(store.rows(np.arange(ROWS)), Store(local).rows(np.arange(ROWS)))


def test_over_http_a_store_is_read(s3: S3, remote: str, local: Path, cache: DiskCache) -> None:
    """Any web server that gives ranges."""
    import s3fs

    name = remote.removeprefix("s3://bucket/")
    for path in s3fs.S3FileSystem(use_listings_cache=False).find(remote):
        s3fs.S3FileSystem().chmod(path, "public-read")
    url = f"{s3.http}/bucket/{name}"
    store = Store(url, cache=cache)
    assert_same(store.rows(np.arange(ROWS)), Store(local).rows(np.arange(ROWS)))
    before = len(s3.requests(name))
    store.rows([1, 2, 3])
    assert len(s3.requests(name)) == before
    with pytest.raises(StoreError, match="no teacher store is here"):
        Store(f"{s3.http}/bucket/nothing-here")


def test_damage_behind_a_url_is_an_error_as_it_is_locally(remote: str, local: Path, cache: DiskCache) -> None:
    place = open_place(remote)
    for name, data in all_bytes(local).items():
        for changed in (data[: len(data) // 2], data[:40] + bytes([data[40] ^ 1]) + data[41:]):
            place.put(name, changed)
            with pytest.raises(StoreError):
                Store(remote, cache=cache).verify()
        place.remove(name)
        with pytest.raises(StoreError):
            Store(remote, cache=cache).verify()
        place.put(name, data)
    Store(remote, cache=cache).verify()


def test_a_shard_that_goes_away_while_it_is_read_is_an_error(remote: str, cache: DiskCache) -> None:
    store = Store(remote, cache=cache)
    store.rows([0])
    open_place(remote).remove("shards/00000-000000.pds")
    with pytest.raises(StoreError) as caught:
        store.rows([0, 1, 2])
    assert "\n" not in str(caught.value)


def test_it_may_be_sent_to_another_process(local: Path, tmp_path: Path) -> None:
    import pickle

    shutil.copytree(local, tmp_path / "store")
    assert_same(pickle.loads(pickle.dumps(Store(tmp_path / "store"))).rows([3]), Store(local).rows([3]))
