"""One capture, three workers at all times, of whom a random one is killed thirty times."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import pytest
import zstandard

from predistill.assets import sample_path, tokenizer_path
from predistill.objective import TopPK
from predistill.runs import Run
from predistill.stages.capture import capture
from predistill.stages.prepare import prepare
from predistill.store import Store
from tests.made import ROW_LEN
from tests.processes import Forks
from tests.stages.test_capture_workers import command, killed_at_random
from tests.store.crowd import left_behind
from tests.torture.records import SEED, record

pytestmark = pytest.mark.slow

KILLS, WORKERS = 30, 3
ATTEMPTS = 4


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole embedded sample: long enough to be killed in so often."""
    folder = tmp_path_factory.mktemp("large")
    with sample_path().open("rb") as file:
        lines = zstandard.ZstdDecompressor().stream_reader(file).read().decode().splitlines()
    (folder / "text.jsonl").write_text("".join(json.dumps(json.loads(line)) + "\n" for line in lines[::4]))
    prepare(folder / "text.jsonl", out=folder / "corpus", tokenizer=tokenizer_path(), row_len=ROW_LEN, processes=1)
    return folder / "corpus"


def test_thirty_kills_during_one_capture_leave_the_rows_of_one_process(
    large: Path, lm_run: Run, forks: Forks, tmp_path: Path
) -> None:
    single = capture(lm_run.path, corpus=large, out=tmp_path / "single", truncation=TopPK(p=0.95, k=100), threads=1)
    moments = random.Random(SEED)
    attempts = []
    for attempt in range(ATTEMPTS):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        out = folder / "store"
        kills = killed_at_random(
            forks,
            command(lm_run, large, out),
            out,
            workers=WORKERS,
            kills=KILLS,
            folder=folder,
            moments=moments,
            pause_s=0.3 / (attempt + 1),
        )
        store, rows = Store(out), np.arange(len(single))
        store.verify()
        outcomes = {
            "every record equal byte for byte": store.records(rows) == single.records(rows),
            "no file left behind": left_behind(out) == [],
        }
        twice = store.manifest["totals"]["rows_twice"]
        attempts.append({"kills": kills, "rows": len(single), "rows_twice": twice, "outcomes": outcomes})
        if len(kills) == KILLS:
            break
    entry = {"kills_wanted": KILLS, "workers": WORKERS, "unit of kills": "seconds since the start"}
    record("capture by many workers", {**entry, "attempts": attempts})
    assert all(all(done["outcomes"].values()) for done in attempts), attempts
    assert len(attempts[-1]["kills"]) == KILLS, "no attempt was killed often enough before it ended"
