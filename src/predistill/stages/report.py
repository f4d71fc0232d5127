"""predistill report: run directories -> one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from predistill.errors import RunError
from predistill.files import write_atomic
from predistill.report import read_footprint, read_record, report_page
from predistill.runs import Run, find_runs

__all__ = ["report"]


def report(paths: Sequence[str | Path], *, out: str | Path | None = None) -> Path:
    """Write the page over every run at or below `paths` to `out` (default: report.html in the first); returns its path.

    A path may also be a footprint.json, or a directory that holds one. Runs that have not ended are shown as such.
    Raises RunError where there is no run, or where a file is broken.
    """
    assert paths
    runs: dict[Path, Run] = {}
    footprints: dict[Path, Path] = {}
    for path in map(Path, paths):
        footprint = path if path.is_file() else path / "footprint.json"
        found = [] if path.is_file() else find_runs(path)
        if footprint.is_file():
            footprints[footprint.resolve()] = footprint
        elif not found:
            what = "no run (a directory with recipe.yaml) in it" if path.is_dir() else "no such directory"
            raise RunError(f"{path}: {what}. Name a directory made by `predistill train`, or one that holds several.")
        runs.update({run.path.resolve(): run for run in found})
    if not runs:
        raise RunError(f"{paths[0]}: a footprint, and no run beside it. Name a directory with runs as well.")
    page = report_page(
        [read_record(run) for run in runs.values()], [read_footprint(path) for path in footprints.values()]
    )
    if out is None:
        first = Path(paths[0])
        out = (first.parent if first.is_file() else first) / "report.html"
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page.encode())
    return out
