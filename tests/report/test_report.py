from __future__ import annotations

from pathlib import Path

import pytest

from predistill.errors import RunError
from predistill.stages.report import report

from .made_measures import made_footprint
from .made_runs import made_run


def test_a_directory_of_runs_and_its_runs_by_name_make_the_same_page(tmp_path: Path) -> None:
    for name in ("lm", "pd"):
        made_run(tmp_path / "runs" / name, name=name, teacher=name == "pd", steps=20)
    whole = report([tmp_path / "runs"])
    named = report(
        [tmp_path / "runs" / "lm", tmp_path / "runs" / "pd", tmp_path / "runs"], out=tmp_path / "new" / "page.html"
    )
    assert whole == tmp_path / "runs" / "report.html"
    assert named.read_bytes() == whole.read_bytes()


def test_one_run_has_its_report_beside_it(tmp_path: Path) -> None:
    page = report([made_run(tmp_path / "lm", steps=20)])
    assert page == tmp_path / "lm" / "report.html"
    assert "No distilled run here." in page.read_text(encoding="utf-8")


def test_a_footprint_is_shown_where_it_lies_beside_the_runs_or_is_named(tmp_path: Path) -> None:
    made_run(tmp_path / "runs" / "lm", steps=20)
    assert "What they cost to use" not in report([tmp_path / "runs"]).read_text(encoding="utf-8")
    elsewhere = made_footprint(tmp_path / "fp.json")
    named = report([tmp_path / "runs", elsewhere], out=tmp_path / "named.html").read_text(encoding="utf-8")
    elsewhere.rename(tmp_path / "runs" / "footprint.json")
    beside = report([tmp_path / "runs"]).read_text(encoding="utf-8")
    assert beside.count("What they cost to use") == 1
    assert named.count("What they cost to use") == 1


def test_a_footprint_alone_is_no_report(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run beside it"):
        report([made_footprint(tmp_path / "footprint.json")])
    with pytest.raises(RunError, match="no run beside it"):
        report([tmp_path])


def test_where_there_is_no_run_the_error_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no run"):
        report([tmp_path])
    with pytest.raises(RunError, match="no such directory"):
        report([tmp_path / "absent"])
