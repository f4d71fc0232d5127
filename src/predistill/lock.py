"""A lock that its holder's death releases: how one process knows that another still lives."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

__all__ = ["Lock", "is_held"]


class Lock:
    """A held lock file; `take` gives None when somebody else holds it."""

    def __init__(self, path: Path, fd: int) -> None:
        self.path, self._fd = path, fd

    @staticmethod
    def take(path: Path) -> Lock | None:
        """Hold the lock, unless another process does."""
        path.parent.mkdir(parents=True, exist_ok=True)
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(fd)
                return None
            if _is_at(fd, path):
                os.utime(fd)  # a sign of life, from a new holder
                return Lock(path, fd)
            os.close(fd)  # its holder removed the file between our opening and our locking

    def beat(self) -> None:
        """A sign of life: the file's time."""
        os.utime(self._fd)

    def release(self, *, remove: bool = False) -> None:
        """Let go, once; `remove` the file too: nobody will need it again."""
        if self._fd >= 0:
            if remove:
                self.path.unlink(missing_ok=True)
            os.close(self._fd)
            self._fd = -1


def is_held(path: Path) -> bool:
    """Whether a living process holds the lock."""
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def _is_at(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
