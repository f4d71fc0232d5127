"""Real processes that run `predistill`, and their violent ends: shared by the fast laws and by tests/torture.

A cold start loads torch for seconds. `Forks` starts a process as a fork of one that has loaded it already: as real to a
signal, and soon there. Run as a script, this file is that process.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COMMAND = [sys.executable, "-c", "from predistill.cli import main; main()"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
PATIENCE_SECONDS = 120.0
POLL_SECONDS = 0.002


def predistill(*argv: str | Path) -> subprocess.CompletedProcess[str]:
    """`predistill ARGV` in a fresh interpreter and a user's environment, until it ends."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    return subprocess.run(
        [*COMMAND, *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env=environment,
    )


def torchrun(processes: int, *argv: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """`torchrun --nproc-per-node PROCESSES ARGV` until it ends, on a port that is free."""
    return subprocess.run(
        [*TORCHRUN, "--nproc-per-node", str(processes), *map(str, argv)],
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
    )


class Forks:
    """Starts `predistill ARGV` as forks of one warm process, any number at once; a context manager."""

    def __enter__(self) -> Forks:
        self._server = subprocess.Popen(
            [sys.executable, "-P", __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        return self

    def __exit__(self, *failure: object) -> None:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.close()
        self._server.wait()
        self._server.stdout.close()

    def start(self, *argv: str | Path, log: Path, env: dict[str, str] | None = None) -> Forked:
        """Start it; what it prints is appended to `log`. `env`: what its environment has beside that of the tests."""
        return Forked(self.ask({"argv": [str(part) for part in argv], "log": str(log), "env": env or {}}), self)

    def ask(self, request: dict[str, Any]) -> Any:
        """The server's answer: a new process's number, or the exit code of an old one."""
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write((json.dumps(request) + "\n").encode())
        return json.loads(self._server.stdout.readline())

    def run(self, *argv: str | Path, log: Path, env: dict[str, str] | None = None) -> int:
        """Start it and wait; its exit code."""
        return self.start(*argv, log=log, env=env).wait()


class Forked:
    """One process, alive or ended."""

    def __init__(self, pid: int, forks: Forks) -> None:
        self.pid, self._forks = pid, forks
        self._code: int | None = None

    def ended(self) -> bool:
        """Whether it has ended by now."""
        if self._code is None:
            self._code = self._forks.ask({"poll": self.pid})
        return self._code is not None

    def kill(self, number: signal.Signals) -> None:
        """Send a signal; it may have ended before."""
        if not self.ended():
            os.kill(self.pid, number)

    def wait(self) -> int:
        """Its exit code; minus the signal's number where a signal ended it."""
        until = time.monotonic() + PATIENCE_SECONDS
        while not self.ended():
            assert time.monotonic() < until, f"process {self.pid} still runs after {PATIENCE_SECONDS:g} s"
            time.sleep(POLL_SECONDS)
        assert self._code is not None
        return self._code


@dataclass(frozen=True)
class Kill:
    """When a process was killed: `progress` was seen last, of `total`, and it lived for `delay_s` more."""

    progress: int
    total: int
    delay_s: float


def kill_then_finish(
    forks: Forks,
    argv: Sequence[str | Path],
    *,
    log: Path,
    progress: Callable[[], int],
    total: int,
    times: int,
    moments: random.Random,
    killed: Callable[[], object] = lambda: None,
) -> list[Kill]:
    """Start the command, kill -9 it at a random moment, `times` times over, then let it finish.

    `progress()` reads how far the work on disk is, 0 .. total. The moments are spread: one in each of `times` equal
    stretches of the work, at a random place of it and a random time after. Returns them; there are fewer than `times`
    where the work ended before it was killed (the caller starts afresh then). `killed()` is called after each, with the
    disk as it was left. Fails unless the last start exits 0.
    """
    kills = []
    for stretch in range(times):
        process = forks.start(*argv, log=log)
        aim = (stretch + moments.random()) / times * 0.9 * total
        delay_s = moments.uniform(0, 0.03)
        while (seen := progress()) < aim and not process.ended():
            time.sleep(POLL_SECONDS)
        time.sleep(delay_s)
        process.kill(signal.SIGKILL)
        if process.wait() != -signal.SIGKILL:
            break
        kills.append(Kill(seen, total, round(delay_s, 4)))
        killed()
    code = forks.run(*argv, log=log)
    assert code == 0, log.read_text()
    return kills


def lines_of(path: Path) -> int:
    """Whole lines of a file that may grow, or not be there yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def bytes_below(folder: Path) -> int:
    """Bytes of all files below a folder that may change meanwhile."""
    size = 0
    for path in folder.rglob("*"):
        try:
            size += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # renamed since it was listed
            continue
    return size


def _serve() -> None:
    import predistill.stages.capture
    import predistill.stages.train  # noqa: F401  (warm is what this process is for)

    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            pid, status = os.waitpid(request["poll"], os.WNOHANG)
            print("null" if pid == 0 else os.waitstatus_to_exitcode(status), flush=True)
            continue
        pid = os.fork()
        if pid == 0:
            os.environ.update(request["env"])
            _become(request["argv"], request["log"])
        print(pid, flush=True)


def _become(argv: list[str], log: str) -> None:
    """What a fork does: the command line, as the console script runs it."""
    from predistill.cli import main

    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.argv = ["predistill", *argv]
    signal.signal(signal.SIGINT, signal.default_int_handler)  # whatever the tests were started by ignores
    code = 0
    try:
        main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
