"""Checkpoints that are whole or absent: state first, then a checksummed list of files, then the rename.

    checkpoints/step-00000100/state.pt      weights, optimizer, counters
                              files.json    sizes and SHA-256, sealed with its own CRC32C

A damaged newest checkpoint is told by its list and passed over for the one before it.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch

from predistill.files import fsync_dir, read_sealed_json, write_sealed_json
from predistill.fingerprint import file_sha256

__all__ = ["latest_checkpoint", "load_checkpoint", "save_checkpoint"]


def save_checkpoint(folder: Path, *, step: int, state: dict[str, Any], keep: int) -> Path:
    """Write `state` as the checkpoint of `step`, then delete all but the newest `keep`."""
    final = folder / f"step-{step:08d}"
    temporary = folder / f"{final.name}.tmp"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    state_path = temporary / "state.pt"
    with state_path.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    files = {state_path.name: {"bytes": state_path.stat().st_size, "sha256": file_sha256(state_path)}}
    write_sealed_json(temporary / "files.json", {"step": step, "files": files})
    shutil.rmtree(final, ignore_errors=True)
    temporary.rename(final)
    fsync_dir(folder)
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return final


def latest_checkpoint(folder: Path) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, or None; and a sentence for each damaged one that was passed over."""
    damaged: list[str] = []
    for path in reversed(_checkpoints(folder)):
        try:
            listed = read_sealed_json(path / "files.json")["files"]
            for name, facts in listed.items():
                if file_sha256(path / name) != facts["sha256"]:
                    raise ValueError(f"the SHA-256 of {name} does not match files.json")
        except (OSError, ValueError, KeyError) as error:
            damaged.append(f"{path}: passed over, {error}.")
            continue
        return path, damaged
    return None, damaged


def load_checkpoint(path: Path, *, device: torch.device) -> dict[str, Any]:
    """The state of a checkpoint that `latest_checkpoint` named (its checksums were compared there)."""
    state: dict[str, Any] = torch.load(path / "state.pt", map_location=device, weights_only=True)
    return state


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp")
