"""One contract for a directory, for memory and for an object store: what a store needs of where it lies."""

from __future__ import annotations

import multiprocessing
import secrets
import threading
from pathlib import Path
from typing import Any

import pytest

from predistill.errors import StoreError
from predistill.store import Store, StoreWriter, is_complete
from predistill.store.place import LocalPlace, Place, UrlPlace, open_place
from tests.store.made import PERMUTATION, TRUNCATED


@pytest.fixture(params=["local", "memory", "s3"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    if request.param == "s3":
        request.getfixturevalue("s3")
    return f"{request.param}://bucket/{secrets.token_hex(4)}"


@pytest.fixture
def place(where: str) -> Place:
    return open_place(where)


def test_a_file_is_put_read_replaced_and_removed(place: Place) -> None:
    place.put("a/b", b"one")
    assert (place.read("a/b"), place.exists("a/b"), place.exists("a/c")) == (b"one", True, False)
    place.put("a/b", b"another")
    assert place.read("a/b") == b"another"
    place.remove("a/b")
    place.remove("a/b")
    assert not place.exists("a/b")
    with pytest.raises(FileNotFoundError):
        place.file("a/b")


def test_ranges_are_those_of_the_file_and_shorter_only_at_its_end(place: Place) -> None:
    data = bytes(range(256)) * 40
    place.put("x", data)
    file = place.file("x")
    assert file.size == len(data)
    for start, size in ((0, 1), (5, 300), (len(data) - 3, 3), (len(data) - 3, 50), (len(data), 9), (7, 0)):
        assert file.read(start, size) == data[start : start + size], (start, size)
    wanted = [(file, 3, 9), (file, 0, 1), (file, 9000, 1240), (file, 3, 9)]
    assert place.ranges(wanted) == [data[start : start + size] for _, start, size in wanted]


def test_an_empty_file_is_a_file(place: Place) -> None:
    place.put("nothing", b"")
    assert place.read("nothing") == b""


def test_names_are_the_sorted_files_of_one_folder(place: Place) -> None:
    for name in ("a/c", "a/b", "a/deep/d", "e"):
        place.put(name, b"1")
    assert place.names("a") == ["b", "c"]
    assert place.names("nowhere") == []
    place.remove("a/b", "a/never", "a/c")
    assert place.names("a") == []
    place.remove()
    assert place.read("e") == b"1"


def test_what_others_put_is_seen_at_once(where: str, place: Place) -> None:
    other = open_place(where)
    assert other.names("a") == []
    place.put("a/b", b"1")
    assert (other.names("a"), other.exists("a/b")) == (["b"], True)
    place.put("a/c", b"2")
    assert other.names("a") == ["b", "c"]
    place.remove("a/b")
    assert (other.names("a"), other.exists("a/b")) == (["c"], False)


def test_a_finished_file_is_taken_in_and_gone_from_where_it_was(place: Place, tmp_path: Path) -> None:
    place.put("shards/before", b"")
    path = tmp_path / "growing"
    path.write_bytes(b"whole")
    place.take_in(path, "shards/whole")
    assert place.read("shards/whole") == b"whole"
    assert not path.exists()


def test_of_many_threads_one_creates_and_its_bytes_are_the_file(place: Place) -> None:
    for round_ in range(5):
        won: list[int] = []
        begin = threading.Barrier(6)

        def create(number: int, name: str, begin: threading.Barrier = begin, won: list[int] = won) -> None:
            begin.wait()
            if place.create(name, b"%d" % number * 1000):
                won.append(number)

        name = f"claims/{round_}"
        threads = [threading.Thread(target=create, args=(number, name)) for number in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if not isinstance(place, UrlPlace) or place.url.startswith("s3"):  # memory is for tests only
            assert len(won) == 1
        assert place.read(name) == b"%d" % won[-1] * 1000


def _race(where: str, number: int, names: int, begin: Any, answers: Any) -> None:
    place = open_place(where)
    begin.wait()
    answers.put((number, [name for name in range(names) if place.create(f"claims/{name}", b"%d" % number)]))


def test_of_many_processes_one_creates(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    begin, answers = context.Barrier(4), context.SimpleQueue()
    racers = [context.Process(target=_race, args=(str(tmp_path), i, 300, begin, answers)) for i in range(4)]
    for racer in racers:
        racer.start()
    won = dict(answers.get() for _ in racers)
    for racer in racers:
        racer.join()
    assert sorted(name for names in won.values() for name in names) == list(range(300))
    place = open_place(tmp_path)
    assert all(place.read(f"claims/{name}") == b"%d" % number for number in won for name in won[number])
    assert len(place.names("claims")) == 300


def test_a_put_is_never_seen_half_and_threads_do_not_spoil_it(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    whole = [bytes([number]) * 50_000 for number in range(4)]
    place.put("x", whole[0])
    seen: set[bytes] = set()
    ended = threading.Event()

    def read() -> None:
        while not ended.is_set():
            seen.add(place.read("x"))

    reader = threading.Thread(target=read)
    reader.start()
    threads = [threading.Thread(target=lambda data=data: [place.put("x", data) for _ in range(15)]) for data in whole]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ended.set()
    reader.join()
    assert seen <= set(whole)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


def test_what_a_kill_left_half_written_is_no_file_and_is_swept_away(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    place.put("parts/a.json", b"1")
    (tmp_path / "parts" / ".b.json.0123abcd").write_bytes(b"hal")
    (tmp_path / "parts" / ".DS_Store").write_bytes(b"somebody else's")
    assert place.names("parts") == [".DS_Store", "a.json"]
    place.sweep()
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == [".DS_Store", "a.json"]


def test_a_sweep_beside_it_spoils_no_put(tmp_path: Path) -> None:
    place = LocalPlace(tmp_path)
    ended = threading.Event()

    def sweep() -> None:
        while not ended.is_set():
            place.sweep()
            if (tmp_path / "claims").is_dir() and not place.names("claims"):
                try:
                    (tmp_path / "claims").rmdir()
                except OSError:
                    continue

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(150):
            assert place.create(f"claims/{number}", b"1", durable=False)
            place.remove(f"claims/{number}")
    finally:
        ended.set()
        sweeper.join()


@pytest.mark.parametrize(
    "where", ["nope://bucket/store", "http://127.0.0.1:9/store", "s3://no-such-bucket-here/store", "/dev/null/store"]
)
@pytest.mark.usefixtures("s3")
def test_a_place_that_cannot_be_reached_is_an_error_of_one_line(where: str) -> None:
    for act in (
        lambda: Store(where),
        lambda: StoreWriter(where, manifest=TRUNCATED, permutation=PERMUTATION),
    ):
        with pytest.raises(StoreError) as caught:
            act()
        assert str(caught.value).startswith(where)
        assert "\n" not in str(caught.value)
    if where.startswith("nope"):
        with pytest.raises(StoreError, match=r"nope.*Check the name"):
            is_complete(where)


@pytest.mark.usefixtures("s3")
def test_a_range_that_cannot_be_had_is_an_error_of_one_line() -> None:
    place = open_place(f"s3://bucket/{secrets.token_hex(4)}")
    place.put("a", b"123")
    place.put("b", b"123")
    files = [place.file("a"), place.file("b")]
    place.remove("b")
    with pytest.raises(OSError) as caught:
        place.ranges([(file, 0, 2) for file in files])
    assert "\n" not in str(caught.value)


def test_a_file_url_is_a_directory(tmp_path: Path) -> None:
    place = open_place(f"file://{tmp_path}/store")
    assert isinstance(place, LocalPlace)
    assert str(place) == str(tmp_path / "store")
