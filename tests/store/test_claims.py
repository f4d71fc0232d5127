from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from predistill.lock import Lock
from predistill.store import rows_begun
from predistill.store.claims import Claims
from predistill.store.place import LocalPlace, open_place
from predistill.store.working import lock_path
from tests.store.crowd import wait_for


def claims_on(path: Path, *, lease: float = 300.0) -> Claims:
    return Claims(LocalPlace(path), folder=path, lease=lease)


def test_one_writer_has_a_span_and_the_others_see_whose_it_is(tmp_path: Path) -> None:
    first, second = claims_on(tmp_path), claims_on(tmp_path)
    assert first.take(3, writer=0)
    assert not second.take(3, writer=1)
    second.refresh()
    assert (first.owner(3), second.owner(3), second.owner(4)) == (0, 0, -1)
    assert second.take(4, writer=1)
    first.refresh()
    assert first.owner(4) == 1


def test_taking_over_is_the_next_attempt_and_one_of_many_makes_it(tmp_path: Path) -> None:
    first, second, third = (claims_on(tmp_path) for _ in range(3))
    assert first.take(0, writer=0)
    second.refresh()
    third.refresh()
    assert second.take(0, writer=1)
    assert not third.take(0, writer=2)
    third.refresh()
    first.refresh()
    assert first.owner(0) == third.owner(0) == 1
    for attempt in range(1100):  # more than three digits hold
        assert first.take(0, writer=attempt)
    second.refresh()
    assert second.owner(0) == 1099


def test_a_claim_cut_off_by_a_power_cut_is_nobodys(tmp_path: Path) -> None:
    claims = claims_on(tmp_path)
    assert claims.take(0, writer=5)
    (tmp_path / "claims" / "00000000-000").write_bytes(b"")
    other = claims_on(tmp_path)
    other.refresh()
    assert other.owner(0) == -1
    assert other.take(0, writer=1)


def _live(path: Path) -> None:
    lock = Lock.take(lock_path(path, 0))
    assert lock is not None
    (path / "begun").touch()
    while True:
        lock.beat()
        time.sleep(0.02)


def test_a_writer_is_alive_until_it_dies_or_is_silent_for_the_lease(tmp_path: Path) -> None:
    patient, hasty = claims_on(tmp_path), claims_on(tmp_path, lease=0.6)
    assert not patient.alive(0)
    process = multiprocessing.get_context("fork").Process(target=_live, args=(tmp_path,))
    process.start()
    assert process.pid is not None
    wait_for((tmp_path / "begun").exists)
    until = time.monotonic() + 1.0
    while time.monotonic() < until:
        assert patient.alive(0)
        assert hasty.alive(0)
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGSTOP)
    wait_for(lambda: not hasty.alive(0))
    assert patient.alive(0)
    os.kill(process.pid, signal.SIGCONT)
    wait_for(lambda: hasty.alive(0))
    process.kill()
    process.join()
    assert not patient.alive(0)


def test_behind_a_url_a_writer_of_another_machine_has_the_lease_to_beat_first(tmp_path: Path) -> None:
    """Its claim may be seen before its first beat: it is not dead then."""
    place = open_place("memory://bucket/claims-lease")
    ours = Claims(place, folder=tmp_path / "ours", lease=0.4)
    theirs = Claims(place, folder=tmp_path / "theirs", lease=0.4)
    assert theirs.take(0, writer=7)
    assert ours.alive(7)
    wait_for(lambda: not ours.alive(7))
    theirs.beat(7)
    assert ours.alive(7)
    wait_for(lambda: not ours.alive(7))
    assert ours.take(0, writer=8) is False  # it has not looked since
    ours.refresh()
    assert ours.take(0, writer=8)
    ours.clear()
    assert place.names("claims") == place.names("beats") == []


def test_clearing_removes_every_trace_while_others_look_on(tmp_path: Path) -> None:
    claims, other = claims_on(tmp_path), claims_on(tmp_path)
    for span in range(20):
        assert claims.take(span, writer=0)
    other.refresh()
    claims.clear()
    claims.clear()
    assert list(tmp_path.iterdir()) == []
    assert other.owner(3) == -1
    other.refresh()


@pytest.mark.parametrize(("spans", "rows"), [(0, 0), (2, 8), (3, 10)])
def test_rows_begun_are_those_of_the_claimed_spans(tmp_path: Path, spans: int, rows: int) -> None:
    claims = claims_on(tmp_path)
    for span in range(spans):
        claims.take(span, writer=0)
        claims.take(span, writer=1)
    assert rows_begun(tmp_path, rows=10, span_rows=4) == rows
    assert rows_begun("http://127.0.0.1:9/store", rows=10, span_rows=4) == 0
