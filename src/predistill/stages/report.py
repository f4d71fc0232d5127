"""predistill report: run directories -> one self-contained HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from predistill.errors import RunError
from predistill.files import write_atomic
from predistill.report import read_record, report_page
from predistill.runs import Run, find_runs

__all__ = ["report"]


def report(paths: Sequence[str | Path], *, out: str | Path | None = None) -> Path:
    """Write the page over every run at or below `paths` to `out` (default: report.html in the first); returns its path.

    Runs that have not ended are shown as such. Raises RunError where there is no run, or where a run's file is broken.
    """
    assert paths
    runs: dict[Path, Run] = {}
    for path in map(Path, paths):
        found = find_runs(path)
        if not found:
            what = "no run (a directory with recipe.yaml) in it" if path.is_dir() else "no such directory"
            raise RunError(f"{path}: {what}. Name a directory made by `predistill train`, or one that holds several.")
        runs.update({run.path.resolve(): run for run in found})
    page = report_page([read_record(run) for run in runs.values()])
    out = Path(out) if out is not None else Path(paths[0]) / "report.html"
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, page.encode())
    return out
