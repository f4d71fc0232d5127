"""Where a corpus is built: beside its place and under a hidden name, so that what stands at its place is whole."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from predistill.errors import CorpusError
from predistill.files import fsync_dir

__all__ = ["check_free", "moved_when_whole"]


def check_free(out: Path, *, overwrite: bool) -> None:
    """Raise `CorpusError` unless nothing is at `out`, or a corpus that may be overwritten."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / "manifest.json").is_file():
        raise CorpusError(f"{out}: is there already, and is not a corpus. Choose another --out.")
    if not overwrite:
        raise CorpusError(f"{out}: a corpus is there already. Pass --overwrite to replace it, or choose another --out.")


@contextmanager
def moved_when_whole(out: Path) -> Iterator[Path]:
    """A fresh folder beside `out` that takes its place on success and goes on failure."""
    folder = out.absolute().with_name(f".{out.absolute().name}.partial")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        yield folder
    except BaseException:
        shutil.rmtree(folder)
        raise
    if out.exists():
        shutil.rmtree(out)
    folder.rename(out)
    fsync_dir(folder.parent)
