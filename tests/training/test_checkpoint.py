"""Checkpoints are whole or passed over; so many are kept as were asked for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from predistill.training.checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint

CPU = torch.device("cpu")


def state_of(step: int) -> dict[str, Any]:
    return {"model": {"w": torch.arange(1000.0) + step}, "clock": {"step": step, "seconds": 0.1 + step}}


def saved(folder: Path, *steps: int, keep: int = 9) -> None:
    for step in steps:
        save_checkpoint(folder, step=step, state=state_of(step), keep=keep)


def test_what_is_saved_is_loaded_to_the_bit(tmp_path: Path) -> None:
    saved(tmp_path, 7)
    path, damaged = latest_checkpoint(tmp_path)
    assert path is not None
    assert damaged == []
    state = load_checkpoint(path, device=CPU)
    assert state["clock"] == state_of(7)["clock"]
    assert torch.equal(state["model"]["w"], state_of(7)["model"]["w"])


def test_nothing_saved_is_no_checkpoint(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path / "checkpoints") == (None, [])


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_keep_are_kept(tmp_path: Path, keep: int) -> None:
    saved(tmp_path, 1, 5, 10, 100, keep=keep)
    names = ["step-00000001", "step-00000005", "step-00000010", "step-00000100"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names[-keep:]


def test_the_newest_is_the_one_of_the_most_steps_not_the_last_written(tmp_path: Path) -> None:
    saved(tmp_path, 100, 20)
    path, _ = latest_checkpoint(tmp_path)
    assert path is not None
    assert path.name == "step-00000100"


def test_a_flipped_bit_anywhere_in_the_newest_passes_it_over_and_says_so(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    for file in sorted((tmp_path / "step-00000002").iterdir()):
        data = file.read_bytes()
        for place in range(0, len(data), max(1, len(data) // 40)):
            flipped = bytearray(data)
            flipped[place] ^= 1 << place % 8
            file.write_bytes(flipped)
            path, damaged = latest_checkpoint(tmp_path)
            assert path == tmp_path / "step-00000001", (file.name, place)
            assert len(damaged) == 1
            assert damaged[0].startswith(f"{tmp_path / 'step-00000002'}: passed over")
        file.write_bytes(data)
    assert latest_checkpoint(tmp_path) == (tmp_path / "step-00000002", [])


@pytest.mark.parametrize("lost", ["files.json", "state.pt"])
def test_a_lost_file_passes_it_over(tmp_path: Path, lost: str) -> None:
    saved(tmp_path, 1, 2)
    (tmp_path / "step-00000002" / lost).unlink()
    path, damaged = latest_checkpoint(tmp_path)
    assert path == tmp_path / "step-00000001"
    assert len(damaged) == 1


def test_all_damaged_is_none_with_a_sentence_each(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)
    for path in tmp_path.iterdir():
        (path / "state.pt").write_bytes(b"")
    path, damaged = latest_checkpoint(tmp_path)
    assert path is None
    assert len(damaged) == 2


def test_what_a_kill_left_half_written_is_no_checkpoint_and_is_replaced(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    half = tmp_path / "step-00000002.tmp"
    half.mkdir()
    (half / "state.pt").write_bytes(b"half")
    assert latest_checkpoint(tmp_path) == (tmp_path / "step-00000001", [])
    saved(tmp_path, 2)
    assert latest_checkpoint(tmp_path) == (tmp_path / "step-00000002", [])
    assert not half.exists()


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    saved(tmp_path, 2)
    save_checkpoint(tmp_path, step=2, state={"clock": {"step": 2}}, keep=1)
    assert load_checkpoint(tmp_path / "step-00000002", device=CPU) == {"clock": {"step": 2}}


def test_damaged_ones_do_not_push_a_whole_one_out(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2, keep=2)
    (tmp_path / "step-00000002" / "state.pt").write_bytes(b"")
    # The run goes on from step 1 and writes step 2 anew.
    saved(tmp_path, 2, keep=2)
    path, damaged = latest_checkpoint(tmp_path)
    assert path == tmp_path / "step-00000002"
    assert damaged == []


def test_only_tensors_and_plain_values_are_unpickled(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, step=1, state={"path": Path("x")}, keep=1)
    with pytest.raises(Exception, match=r"(?i)weights.only"):
        load_checkpoint(tmp_path / "step-00000001", device=CPU)
