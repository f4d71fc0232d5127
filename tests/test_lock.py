from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

from predistill.lock import Lock, is_held
from tests.store.crowd import wait_for

FORK = multiprocessing.get_context("fork")


def _hold(path: Path) -> None:
    assert Lock.take(path) is not None
    (path.parent / "held").touch()
    time.sleep(100)


def test_one_holds_it_until_it_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "lock"
    assert not is_held(path)
    lock = Lock.take(path)
    assert lock is not None
    assert is_held(path)
    assert Lock.take(path) is None
    lock.release()
    lock.release()
    assert path.exists()
    assert not is_held(path)
    again = Lock.take(path)
    assert again is not None
    again.release(remove=True)
    assert not path.exists()


def test_its_holders_death_releases_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    holder = FORK.Process(target=_hold, args=(path,))
    holder.start()
    wait_for((tmp_path / "held").exists)
    assert is_held(path)
    assert Lock.take(path) is None
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGSTOP)
    assert is_held(path)  # it is not dead
    holder.kill()
    holder.join()
    assert not is_held(path)
    lock = Lock.take(path)
    assert lock is not None
    lock.release()


def test_a_beat_changes_its_time(tmp_path: Path) -> None:
    lock = Lock.take(tmp_path / "lock")
    assert lock is not None
    os.utime(lock.path, (1, 1))
    lock.beat()
    assert time.time() - lock.path.stat().st_mtime < 60
    lock.release()


def _scramble(path: Path, held: Path, rounds: int, answers: Any) -> None:
    """Take and remove, over and over; whoever holds it is alone."""
    clashes = wins = 0
    while wins < rounds:
        if (lock := Lock.take(path)) is None:
            continue
        wins += 1
        try:
            os.close(os.open(held, os.O_CREAT | os.O_EXCL))
            held.unlink()
        except FileExistsError:
            clashes += 1
        lock.release(remove=True)
    answers.put(clashes)


def test_a_file_that_is_removed_while_others_open_it_is_never_held_twice(tmp_path: Path) -> None:
    answers = FORK.SimpleQueue()
    racers = [
        FORK.Process(target=_scramble, args=(tmp_path / "lock", tmp_path / "held", 150, answers)) for _ in range(3)
    ]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join(60)
    assert [answers.get() for _ in racers] == [0, 0, 0]
    assert list(tmp_path.iterdir()) == []


def test_two_threads_of_one_process_do_not_both_hold_it(tmp_path: Path) -> None:
    taken: list[Lock] = []

    def take() -> None:
        if (lock := Lock.take(tmp_path / "lock")) is not None:
            taken.append(lock)

    threads = [threading.Thread(target=take) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 1
    taken[0].release()
