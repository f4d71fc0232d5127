"""Checkpoints that are whole or absent, written behind the training, and read at any number of processes.

    checkpoints/step-00000100/__0_0.distcp ...   weights and optimizer, a part a process (torch.distributed.checkpoint)
                              .metadata          which part holds what
                              state.json         what the run counts beside tensors
                              files.json         sizes and SHA-256 of all of them, sealed with its own CRC32C: last

What is saved is copied first; training goes on while it is written. A damaged newest checkpoint is told by its list
and passed over for the one before it. PyTorch reads .metadata with pickle: nothing is read before the list is checked.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import async_save

from predistill.errors import RunError
from predistill.files import fsync_dir, read_sealed_json, write_atomic, write_sealed_json
from predistill.fingerprint import file_sha256
from predistill.training.student import Student
from predistill.world import World

__all__ = ["Checkpoints"]

# One process is what one process means to save.
warnings.filterwarnings("ignore", message="torch.distributed is disabled, unavailable or uninitialized")


class Checkpoints:
    """The checkpoints of a run, in `folder`; every process has one, and calls the same methods in the same order.

    The newest `keep` are kept, and those of every `keep_steps` steps. A context manager: leaving waits for the one
    that is being written, and leaving on an error gives it up.
    """

    def __init__(self, folder: Path, world: World, *, keep: int, keep_steps: int | None = None) -> None:
        self._folder, self._world, self._keep, self._keep_steps = folder, world, keep, keep_steps
        # Its own group: what is written behind the training must not meet the training's own sums.
        self._group = distributed.new_group(backend="gloo") if world.size > 1 else None
        self._sealer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._pending: list[Future[Any]] = []

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: type[BaseException] | None, *failure: object) -> None:
        try:
            if kind is None:
                self.wait()
        finally:
            self._sealer.shutdown(wait=kind is None, cancel_futures=True)

    def save(self, student: Student, optimizer: torch.optim.Optimizer, facts: dict[str, Any], *, step: int) -> None:
        """Begin to write the checkpoint of `step`: weights, optimizer, and `facts` (plain data, of the first process).

        Returns once all is copied. Raises RunError where the one before could not be written.
        """
        self.wait()
        final = self._folder / f"step-{step:08d}"
        temporary = final.with_name(final.name + ".tmp")
        if self._world.first:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write_atomic(temporary / "state.json", json.dumps(facts).encode())
        self._world.meet()  # nobody writes before the folder is there
        written = async_save(
            dict(_tensors(student, optimizer)),
            checkpoint_id=temporary,
            process_group=self._group,
            no_dist=self._group is None,
        )
        assert isinstance(written, Future)
        self._pending = [written]
        if self._world.first:
            self._pending.append(self._sealer.submit(self._seal, written, temporary, final, step))

    def wait(self) -> None:
        """Until the checkpoint that is being written is whole. Raises RunError where it cannot be written."""
        pending, self._pending = self._pending, []
        for future in pending:
            try:
                future.result()
            except Exception as error:
                raise RunError(
                    f"{self._folder}: a checkpoint could not be written ({_reason(error)}). Make room or mend the "
                    "disk, and run the command again: it goes on from the last whole one."
                ) from error

    def forget(self, step: int) -> None:
        """Drop the checkpoints of `step` and after. Raises RunError, and drops none, where there is none before."""
        self.wait()
        self._world.of_first(lambda: _forget(self._folder, step))

    def newest(self) -> tuple[Path | None, list[str]]:
        """The newest whole checkpoint, or None where there is none yet; and a sentence for each damaged one that was
        passed over. The first process looks, all get its answer. Raises RunError where all are damaged."""
        return self._world.of_first(lambda: _newest(self._folder))

    def load(self, path: Path, student: Student, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """Put the tensors of a checkpoint that `newest` named in place; its facts."""
        names = FileSystemReader(path).read_metadata().state_dict_metadata
        for name, parameter in student.model.named_parameters():
            state = optimizer.state[parameter]
            for key in (key.rpartition(".")[2] for key in names if key.startswith(f"optimizer.{name}.")):
                state[key] = torch.zeros((), device=parameter.device) if key == "step" else torch.zeros_like(parameter)
        load(
            dict(_tensors(student, optimizer)),
            checkpoint_id=path,
            process_group=self._group,
            no_dist=self._group is None,
        )
        facts: dict[str, Any] = json.loads((path / "state.json").read_text(encoding="utf-8"))
        return facts

    def _seal(self, written: Future[Any], temporary: Path, final: Path, step: int) -> None:
        """Once all processes have written: the list of files, and the rename that makes the checkpoint."""
        written.result()
        parts = {part.relative_path for part in FileSystemReader(temporary).read_metadata().storage_data.values()}
        if absent := sorted(parts - {path.name for path in temporary.iterdir()}):
            raise RunError(
                f"{temporary}: {absent[0]} is not here: another machine wrote it elsewhere. Name an --out that all "
                "machines share."
            )
        files = {path.name: {"bytes": path.stat().st_size, "sha256": file_sha256(path)} for path in temporary.iterdir()}
        write_sealed_json(temporary / "files.json", {"step": step, "files": files})
        shutil.rmtree(final, ignore_errors=True)
        temporary.rename(final)
        fsync_dir(final.parent)
        for old in _checkpoints(self._folder)[: -self._keep]:
            if self._keep_steps is None or _step_of(old) % self._keep_steps:
                shutil.rmtree(old)


def _tensors(student: Student, optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """All that a checkpoint holds, by name; a tied weight once."""
    persistent = student.model.state_dict().keys()
    for name, parameter in student.model.named_parameters():
        yield f"model.{name}", parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            yield f"optimizer.{name}.{key}", value
    for name, buffer in student.model.named_buffers():
        if name in persistent:
            yield f"model.{name}", buffer


def _forget(folder: Path, step: int) -> None:
    there = _checkpoints(folder)
    if there and _step_of(there[0]) >= step:
        raise RunError(
            f"{folder}: no checkpoint is from before step {step:,}, so the run cannot be rolled back behind it. Keep "
            "older ones (keep, keep_every), or set watch.policy to warn or stop; the run can go on as it is."
        )
    for path in there:
        if _step_of(path) >= step:
            shutil.rmtree(path)


def _newest(folder: Path) -> tuple[Path | None, list[str]]:
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
    if damaged:
        raise RunError(
            f"{folder}: none of its checkpoints is whole ({' '.join(damaged)}) Put a copy of one back, or start the "
            "run anew with --overwrite."
        )
    return None, []


def _checkpoints(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("step-*") if path.suffix != ".tmp")


def _step_of(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def _reason(error: BaseException) -> str:
    """What the innermost cause says: torch wraps what a process met in errors of its own."""
    failures: Callable[[], Any] | dict[int, Any] = getattr(error, "failures", {})
    for wrapped in failures.values() if isinstance(failures, dict) else ():
        return _reason(wrapped[0])
    cause = error.__cause__ or error.__context__
    if cause is not None and not isinstance(error, OSError):
        return _reason(cause)
    return os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error).splitlines()[0]
