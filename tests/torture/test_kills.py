"""Ten kills at random moments of a capture; the record goes to benchmarks/results/torture.json.

The fast laws kill twice (tests/stages); here the same helper kills on, so that starts, rows, shards and seals are all
hit. $PREDISTILL_TORTURE_SEED repeats the choice of moments, if not the machine's timing.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from predistill.runs import Run
from predistill.stages.capture import capture
from predistill.store import Store
from tests.made import files_below
from tests.processes import Forks, Kill, bytes_below, kill_then_finish
from tests.torture.records import SEED, record

pytestmark = pytest.mark.slow

KILLS = 10
ATTEMPTS = 5

Attempt = Callable[[int], tuple[list[Kill], dict[str, bool]]]


def test_capture_killed_ten_times_has_the_bytes_of_one_never_killed(
    corpus: Path, lm_run: Run, forks: Forks, tmp_path: Path
) -> None:
    from predistill.objective import TopPK

    whole = tmp_path / "whole"
    capture(lm_run.path, corpus=corpus, out=whole, truncation=TopPK(p=0.95, k=100))
    expected = store_files(whole)
    moments = random.Random(SEED + 1)

    def attempt(number: int) -> tuple[list[Kill], dict[str, bool]]:
        out = tmp_path / f"store{number}"
        kills = kill_then_finish(
            forks,
            ("capture", "--teacher", lm_run.path, "--corpus", corpus, "--out", out),
            log=tmp_path / "log",
            progress=lambda: bytes_below(out / "shards"),
            total=bytes_below(whole / "shards"),
            times=KILLS,
            moments=moments,
        )
        Store(out).verify()
        return kills, {"every file equal byte for byte": store_files(out) == expected}

    tortured("capture", "bytes of shards", attempt)


def store_files(path: Path) -> dict[str, bytes]:
    return {name: data for name, data in files_below(path).items() if not name.startswith("costs/")}


def tortured(what: str, unit: str, attempt: Attempt) -> None:
    """Attempts until one was killed as often as it should; every one of them must come out right."""
    attempts: list[dict[str, Any]] = []
    while len(attempts) < ATTEMPTS and (not attempts or len(attempts[-1]["kills"]) < KILLS):
        kills, outcomes = attempt(len(attempts))
        attempts.append({"kills": [asdict(kill) for kill in kills], "outcomes": outcomes})
    record(what, {"kills_wanted": KILLS, "unit of progress": unit, "attempts": attempts})
    assert all(all(entry["outcomes"].values()) for entry in attempts), attempts
    assert len(attempts[-1]["kills"]) == KILLS, "no attempt was killed often enough before it ended"
