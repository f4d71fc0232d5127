"""Where a store lies: a local directory, or anything that fsspec reaches by URL (S3, GCS, HTTP, ...).

Both are the same few acts on named files. What a store needs of a place: a range of a file, a whole file put at once,
and a file created by exactly one of many who try.
"""

from __future__ import annotations

import os
import re
import secrets
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from predistill.files import fsync_dir

__all__ = ["File", "LocalPlace", "Place", "UrlPlace", "open_place"]

_HALF_WRITTEN = re.compile(r"\..+\.[0-9a-f]{8}")
_TRIES = 100


class File(Protocol):
    """A file open for positional reads from any thread."""

    @property
    def size(self) -> int:
        """Its bytes."""

    def read(self, start: int, size: int) -> bytes:
        """`size` bytes from `start`; fewer only at the end of the file."""


class Place(ABC):
    """A directory of named files. Names use `/`; `OSError` for what the place refuses, `FileNotFoundError` for what
    is not there."""

    many_open: int  # how many of its files may be open at once

    @abstractmethod
    def file(self, name: str) -> File:
        """A file, open."""

    @abstractmethod
    def ranges(self, wanted: Sequence[tuple[File, int, int]]) -> list[bytes]:
        """Of each (file, start, size) its bytes: side by side, where the place answers slowly."""

    @abstractmethod
    def names(self, folder: str) -> list[str]:
        """The names of the files in a folder, sorted; none where there is no such folder."""

    @abstractmethod
    def put(self, name: str, data: bytes) -> None:
        """Write a whole file, durably; whoever reads sees the old one or the new one."""

    @abstractmethod
    def create(self, name: str, data: bytes, *, durable: bool = True) -> bool:
        """Write a whole file if there is none; of many who try, exactly one gets True. `durable`: outlives a power
        cut."""

    @abstractmethod
    def take_in(self, path: Path, name: str) -> None:
        """Make a finished local file one of the place's; it is gone from where it was."""

    @abstractmethod
    def remove(self, *names: str) -> None:
        """Remove files, those of them that are there."""

    @abstractmethod
    def copy(self, name: str, to: str) -> None:
        """Give a file's bytes a second name, which keeps them when the first is put anew or removed."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def sweep(self) -> None:
        """Remove what writers that were killed left half written."""

    def read(self, name: str) -> bytes:
        """A whole file."""
        file = self.file(name)
        return file.read(0, file.size)


def open_place(where: str | Path) -> Place:
    """The place that a path or a URL names."""
    if isinstance(where, Path) or "://" not in where:
        return LocalPlace(Path(where))
    return LocalPlace(Path(where.removeprefix("file://"))) if where.startswith("file://") else UrlPlace(where)


class LocalFile:
    """A file descriptor, closed when nothing refers to it."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        self.size = os.fstat(self._fd).st_size

    def __del__(self) -> None:
        if hasattr(self, "_fd") and os is not None:  # at the interpreter's end the modules go first
            os.close(self._fd)

    def read(self, start: int, size: int) -> bytes:
        """As `File.read`."""
        return os.pread(self._fd, size, start)


class LocalPlace(Place):
    """A directory."""

    many_open = 256

    def __init__(self, path: Path) -> None:
        self.path = path

    def __str__(self) -> str:
        return str(self.path)

    def file(self, name: str) -> LocalFile:
        return LocalFile(self.path / name)

    def ranges(self, wanted: Sequence[tuple[File, int, int]]) -> list[bytes]:
        return [file.read(start, size) for file, start, size in wanted]

    def names(self, folder: str) -> list[str]:
        try:
            found = [entry.name for entry in os.scandir(self.path / folder) if entry.is_file()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(name for name in found if not _HALF_WRITTEN.fullmatch(name))

    def put(self, name: str, data: bytes) -> None:
        self._write(name, data, os.replace, durable=True)

    def create(self, name: str, data: bytes, *, durable: bool = True) -> bool:
        try:
            self._write(name, data, os.link, durable=durable)  # unlike a rename, it fails where there is a file
        except FileExistsError:
            return False
        return True

    def _write(self, name: str, data: bytes, become: Callable[[Path, Path], None], *, durable: bool) -> None:
        """Write a file that nobody else has a name for, and let it `become` the one that is wanted."""
        path = self.path / name
        for _ in range(_TRIES):
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
            try:
                with temporary.open("wb") as file:
                    file.write(data)
                    if durable:
                        file.flush()
                        os.fsync(file.fileno())
                become(temporary, path)
            except FileNotFoundError:  # it or its folder was swept away by a writer that sealed the store
                continue
            finally:
                temporary.unlink(missing_ok=True)
            if durable:
                fsync_dir(path.parent)
            return
        raise FileNotFoundError(f"{path}: its folder is removed again and again")

    def sweep(self) -> None:
        for path in self.path.rglob(".*"):
            if _HALF_WRITTEN.fullmatch(path.name):
                path.unlink(missing_ok=True)

    def take_in(self, path: Path, name: str) -> None:
        path.rename(self.path / name)
        fsync_dir((self.path / name).parent)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.path / name).unlink(missing_ok=True)

    def copy(self, name: str, to: str) -> None:
        (self.path / to).parent.mkdir(parents=True, exist_ok=True)
        (self.path / to).hardlink_to(self.path / name)  # nothing of a place is ever written in its place
        fsync_dir((self.path / to).parent)

    def exists(self, name: str) -> bool:
        return (self.path / name).exists()


class UrlFile:
    """A file behind a URL: each read is one range request."""

    def __init__(self, place: UrlPlace, name: str) -> None:
        self._place, self.path = place, place.full(name)
        size = place.ask("size", self.path)
        if size is None:
            raise OSError(f"{place.url}: the server does not say how long {name} is")
        self.size = int(size)

    def read(self, start: int, size: int) -> bytes:
        """As `File.read`."""
        end = min(start + size, self.size)
        return bytes(self._place.ask("cat_file", self.path, start=start, end=end)) if start < end else b""


class UrlPlace(Place):
    """A prefix of an object store, or a folder of a web server. Credentials and endpoints are those of fsspec's own
    configuration and of the environment (AWS_ENDPOINT_URL, FSSPEC_S3_...)."""

    many_open = 1 << 16  # nothing is held open

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            # Listings are never kept: other workers write beside us.
            self._fs, self._root = fsspec.core.url_to_fs(self.url, use_listings_cache=False)
        except (ImportError, ValueError) as error:
            raise OSError(f"{error}") from None

    def __str__(self) -> str:
        return self.url

    def full(self, name: str) -> str:
        """The name as the file system wants it."""
        return f"{self._root}/{name}"

    def ask(self, act: str, *args: Any, **settings: Any) -> Any:
        """Call the file system; whatever a client library raises becomes an OSError of one line."""
        try:
            return getattr(self._fs, act)(*args, **settings)
        except (FileNotFoundError, FileExistsError):
            raise
        except Exception as error:
            raise OSError(_one_line(error)) from error

    def file(self, name: str) -> UrlFile:
        return UrlFile(self, name)

    def read(self, name: str) -> bytes:
        data: bytes = self.ask("cat_file", self.full(name))  # one request: between two it may be put anew
        return data

    def ranges(self, wanted: Sequence[tuple[File, int, int]]) -> list[bytes]:
        paths = [file.path for file, _, _ in wanted if isinstance(file, UrlFile)]
        starts, ends = [start for _, start, _ in wanted], [start + size for _, start, size in wanted]
        found = self.ask("cat_ranges", paths, starts, ends, on_error="raise")
        for data in found:
            if isinstance(data, Exception):  # an fsspec before 2026 gives them back all the same
                raise OSError(_one_line(data)) from data
        return [bytes(data) for data in found]

    def names(self, folder: str) -> list[str]:
        try:
            found = self.ask("ls", self.full(folder), detail=True)
        except FileNotFoundError:
            return []
        return sorted(str(entry["name"]).rsplit("/", 1)[-1] for entry in found if entry["type"] == "file")

    def put(self, name: str, data: bytes) -> None:
        self.ask("pipe_file", self.full(name), data)

    def create(self, name: str, data: bytes, *, durable: bool = True) -> bool:  # noqa: ARG002  # a put always is
        try:
            self.ask("pipe_file", self.full(name), data, mode="create")
        except FileExistsError:
            return False
        return True

    def take_in(self, path: Path, name: str) -> None:
        self.ask("put_file", str(path), self.full(name))
        path.unlink()

    def remove(self, *names: str) -> None:
        try:
            if len(names) > 1:  # an object store removes a thousand with one request
                self.ask("rm", [self.full(name) for name in names])
                return
        except FileNotFoundError:  # one of them
            pass
        for name in names:
            with suppress(FileNotFoundError):
                self.ask("rm_file", self.full(name))

    def copy(self, name: str, to: str) -> None:
        self.ask("cp_file", self.full(name), self.full(to))

    def sweep(self) -> None:
        return  # a put is whole or not at all

    def exists(self, name: str) -> bool:
        found: bool = self.ask("exists", self.full(name))
        return found


def _one_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
