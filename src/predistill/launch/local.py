"""Processes of this machine."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

from predistill.errors import PredistillError, RunError
from predistill.launch.job import Job

__all__ = ["run"]


def run(job: Job) -> list[Exception]:
    """As `launch.run_many`. The processes end with this one, unless it is killed outright."""
    context = multiprocessing.get_context("spawn")  # a fork after torch has made threads may hang
    processes, answers = [], []
    try:
        for rank in range(job.times):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_one, args=(theirs, job.work, job.settings, rank, job.threads), daemon=True
            )
            process.start()
            theirs.close()
            processes.append(process)
            answers.append(ours)
        while any(process.is_alive() for process in processes):
            wait([process.sentinel for process in processes if process.is_alive()], timeout=0.5)
            job.on_wait()
    finally:
        for process in processes:
            process.terminate()
            process.join()
    return [error for pair in zip(processes, answers, strict=True) if (error := _failure(*pair)) is not None]


def _one(answer: Connection, work: Callable[..., None], settings: dict[str, Any], rank: int, threads: int) -> None:
    os.environ["LOCAL_RANK"] = str(rank)  # the accelerator to take, as under torchrun
    os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        work(**settings)
    except PredistillError as error:
        answer.send(error)
    except KeyboardInterrupt:
        answer.send(None)


def _failure(process: Any, answer: Connection) -> Exception | None:
    try:
        if answer.poll() and (error := answer.recv()) is not None:
            return error  # type: ignore[no-any-return]
    except EOFError:
        pass
    if process.exitcode == 0:
        return None
    if process.exitcode > 0:  # a bug: its traceback stands on stderr
        return RuntimeError(f"process {process.pid} ended with exit code {process.exitcode}")
    killed = signal.Signals(-process.exitcode).name
    return RunError(f"A worker (process {process.pid}) was ended by {killed}. Run the same command again to go on.")
