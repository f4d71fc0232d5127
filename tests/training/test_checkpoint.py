"""Checkpoints are whole or passed over; what is saved behind the training is what was there; so many are kept as were
asked for."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from predistill.errors import RunError
from predistill.files import read_sealed_json
from predistill.students.build import build_student, student_config
from predistill.training import checkpoint as room
from predistill.training.checkpoint import Checkpoints
from predistill.training.optim import adamw, set_lr
from predistill.training.student import Student
from tests.made import ALONE, in_training


class Trained:
    """A student and its optimizer, and steps that depend on all of their state."""

    def __init__(self, seed: int = 0) -> None:
        config = student_config("nano-xs", vocab_size=64, row_len=16, end_id=0)
        self.student: Student = in_training(build_student(config, seed=seed, device=torch.device("cpu")))
        self.optimizer = adamw(self.student.model, betas=(0.9, 0.95), weight_decay=0.1)
        set_lr(self.optimizer, 1e-2)

    def steps(self, count: int) -> Trained:
        for _ in range(count):
            for parameter in self.student.parameters():
                parameter.grad = parameter.detach().sin()
            self.optimizer.step()
        return self

    def bits(self) -> bytes:
        held = [self.optimizer.state[parameter] for parameter in self.student.parameters()]
        state = [each[key] for each in held for key in sorted(each)]
        return b"".join(t.detach().numpy().tobytes() for t in [*self.student.parameters(), *state])


@pytest.fixture
def trained() -> Trained:
    return Trained().steps(3)


def checkpoints(folder: Path, *, keep: int = 9, keep_steps: int | None = None) -> Checkpoints:
    return Checkpoints(folder, ALONE, keep=keep, keep_steps=keep_steps)


def saved(folder: Path, trained: Trained, *steps: int, keep: int = 9, keep_steps: int | None = None) -> None:
    with checkpoints(folder, keep=keep, keep_steps=keep_steps) as writer:
        for step in steps:
            writer.save(trained.student, trained.optimizer, {"clock": {"step": step, "seconds": 0.1 + step}}, step=step)


def newest(folder: Path) -> tuple[Path | None, list[str]]:
    return checkpoints(folder).newest()


def test_what_is_saved_is_loaded_to_the_bit_and_goes_on_to_the_bit(tmp_path: Path, trained: Trained) -> None:
    saved(tmp_path, trained, 7)
    path, damaged = newest(tmp_path)
    assert path is not None
    assert damaged == []
    other = Trained(seed=1)
    facts = checkpoints(tmp_path).load(path, other.student, other.optimizer)
    assert facts == {"clock": {"step": 7, "seconds": 7.1}}
    assert other.bits() == trained.bits()
    assert other.steps(2).bits() == trained.steps(2).bits()


def test_training_goes_on_while_a_checkpoint_is_written_and_does_not_change_it(
    tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on, fsync = threading.Event(), os.fsync

    def slow(fd: int) -> None:
        assert threading.current_thread() is threading.main_thread() or go_on.wait(60)
        fsync(fd)

    monkeypatch.setattr(os, "fsync", slow)
    before = trained.bits()
    with checkpoints(tmp_path) as writer:
        writer.save(trained.student, trained.optimizer, {}, step=3)
        assert newest(tmp_path) == (None, [])
        trained.steps(2)
        go_on.set()
    assert trained.bits() != before
    other = Trained(seed=1)
    checkpoints(tmp_path).load(tmp_path / "step-00000003", other.student, other.optimizer)
    assert other.bits() == before


def test_nothing_saved_is_no_checkpoint(tmp_path: Path) -> None:
    assert newest(tmp_path / "checkpoints") == (None, [])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_keep_are_kept(tmp_path: Path, trained: Trained, keep: int) -> None:
    saved(tmp_path, trained, 1, 5, 10, 100, keep=keep)
    names = ["step-00000001", "step-00000005", "step-00000010", "step-00000100"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names[-keep:]


def test_beside_the_newest_those_of_every_so_many_steps_are_kept(tmp_path: Path, trained: Trained) -> None:
    saved(tmp_path, trained, 4, 5, 8, 10, 12, 15, 16, keep=1, keep_steps=5)
    assert sorted(int(path.name[5:]) for path in tmp_path.iterdir()) == [5, 10, 15, 16]


def test_the_newest_is_the_one_of_the_most_steps_not_the_last_written(tmp_path: Path, trained: Trained) -> None:
    saved(tmp_path, trained, 100, 20)
    assert newest(tmp_path)[0] == tmp_path / "step-00000100"


def test_forgotten_ones_are_gone_and_those_before_stay(tmp_path: Path, trained: Trained) -> None:
    with checkpoints(tmp_path) as writer:
        for step in (5, 10, 15):
            writer.save(trained.student, trained.optimizer, {}, step=step)
        writer.forget(10)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]


def test_where_none_is_before_none_is_forgotten(tmp_path: Path, trained: Trained) -> None:
    saved(tmp_path, trained, 10, 15)
    with pytest.raises(RunError, match=r"no checkpoint is from before step 10, .*keep_every.*watch.policy"):
        checkpoints(tmp_path).forget(10)
    assert len(list(tmp_path.iterdir())) == 2
    checkpoints(tmp_path / "none").forget(10)


def test_a_part_that_lies_elsewhere_makes_no_checkpoint(
    tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, trained, 1)
    seal = Checkpoints._seal

    def on_another_machine(self: Checkpoints, written: Any, temporary: Path, *rest: Any) -> None:
        written.result()
        (temporary / "__0_0.distcp").unlink()
        seal(self, written, temporary, *rest)

    monkeypatch.setattr(Checkpoints, "_seal", on_another_machine)
    writer = checkpoints(tmp_path)
    writer.save(trained.student, trained.optimizer, {}, step=2)
    with pytest.raises(RunError, match=r"__0_0.distcp is not here.* all machines share"):
        writer.wait()
    assert newest(tmp_path) == (tmp_path / "step-00000001", [])


def test_a_flipped_bit_anywhere_in_the_newest_passes_it_over_and_says_so(tmp_path: Path, trained: Trained) -> None:
    saved(tmp_path, trained, 1, 2)
    files = sorted((tmp_path / "step-00000002").iterdir())
    assert [file.name for file in files] == [".metadata", "__0_0.distcp", "files.json", "state.json"]
    for file in files:
        data = file.read_bytes()
        for place in range(0, len(data), max(1, len(data) // 40)):
            flipped = bytearray(data)
            flipped[place] ^= 1 << place % 8
            file.write_bytes(flipped)
            path, damaged = newest(tmp_path)
            assert path == tmp_path / "step-00000001", (file.name, place)
            assert len(damaged) == 1
            assert damaged[0].startswith(f"{tmp_path / 'step-00000002'}: passed over")
        file.write_bytes(data)
    assert newest(tmp_path) == (tmp_path / "step-00000002", [])


@pytest.mark.parametrize("lost", ["files.json", "state.json", ".metadata", "__0_0.distcp"])
def test_a_lost_file_passes_it_over(tmp_path: Path, trained: Trained, lost: str) -> None:
    saved(tmp_path, trained, 1, 2)
    (tmp_path / "step-00000002" / lost).unlink()
    path, damaged = newest(tmp_path)
    assert path == tmp_path / "step-00000001"
    assert len(damaged) == 1


def test_all_damaged_is_refused_and_each_is_named(tmp_path: Path, trained: Trained) -> None:
    saved(tmp_path, trained, 1, 2)
    for path in tmp_path.iterdir():
        (path / "__0_0.distcp").write_bytes(b"")
    with pytest.raises(RunError, match=r"none of its checkpoints is whole .*step-00000002: .*step-00000001: .*overwri"):
        newest(tmp_path)


def test_what_a_kill_left_half_written_is_no_checkpoint_and_is_replaced(tmp_path: Path, trained: Trained) -> None:
    saved(tmp_path, trained, 1)
    half = tmp_path / "step-00000002.tmp"
    half.mkdir()
    (half / "__0_0.distcp").write_bytes(b"half")
    assert newest(tmp_path) == (tmp_path / "step-00000001", [])
    saved(tmp_path, trained, 2)
    assert newest(tmp_path) == (tmp_path / "step-00000002", [])
    assert not half.exists()


def test_damaged_ones_do_not_push_a_whole_one_out(tmp_path: Path, trained: Trained) -> None:
    saved(tmp_path, trained, 1, 2, keep=2)
    (tmp_path / "step-00000002" / "__0_0.distcp").write_bytes(b"")
    saved(tmp_path, trained, 2, keep=2)  # the run goes on from step 1, and writes step 2 anew
    assert newest(tmp_path) == (tmp_path / "step-00000002", [])


def test_the_list_counts_every_byte(tmp_path: Path, trained: Trained) -> None:
    saved(tmp_path, trained, 1)
    listed = read_sealed_json(tmp_path / "step-00000001" / "files.json")
    assert listed["step"] == 1
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "step-00000001").iterdir()}
    assert {name: facts["bytes"] for name, facts in listed["files"].items()} == {
        name: size for name, size in sizes.items() if name != "files.json"
    }


def test_a_full_disk_is_told_in_a_sentence_and_the_one_before_is_whole(
    tmp_path: Path, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    saved(tmp_path, trained, 1)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(room, "write_sealed_json", full)
    writer = checkpoints(tmp_path)
    writer.save(trained.student, trained.optimizer, {}, step=2)
    with pytest.raises(RunError, match=r"could not be written \(No space left on device\).*run the command again"):
        writer.wait()
    assert newest(tmp_path) == (tmp_path / "step-00000001", [])
