"""A damaged store, repaired and captured again: the store that it was, and only the lost rows are written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predistill.assets import teacher_path
from predistill.objective import TopPK
from predistill.stages import capture as stage
from predistill.stages.capture import capture, group_rows
from predistill.store import Store
from predistill.store.place import LocalFile
from predistill.store.verbs.repair import repair
from predistill.store.verbs.salvage import footer_of


def damage(path: Path, lost: list[int]) -> None:
    """Flip a bit in the records of some rows."""
    shard = path / "shards" / "00000-000000.pds"
    footer = footer_of(LocalFile(shard))
    assert footer is not None
    data = bytearray(shard.read_bytes())
    for line in footer[np.isin(footer["row"], lost)]:
        data[int(line["offset"]) + int(line["bytes"]) // 2] ^= 1
    shard.write_bytes(data)


def test_the_same_capture_makes_just_the_lost_rows(
    store: Path, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "s", Store(store)
    shutil.copytree(store, path)
    lost = [3, 70, 71, 200]
    damage(path, lost)
    report = repair(path)
    assert (report["rows_missing"], report["missing"], report["complete"]) == (lost, 4, False)

    groups: list[int] = []
    targets = stage._Teaching._targets

    def counted(self: Any, rows: np.ndarray) -> Any:
        groups.append(int(rows[0]) // len(rows))
        return targets(self, rows)

    monkeypatch.setattr(stage._Teaching, "_targets", counted)
    again = capture(teacher_path(), corpus=corpus, out=path, truncation=TopPK(p=0.95, k=100))
    assert groups == sorted({row // group_rows(whole.manifest["row_len"]) for row in lost})  # nothing is measured anew
    again.verify()
    assert again.manifest["store_id"] == whole.manifest["store_id"]
    assert again.manifest["self_test"] == whole.manifest["self_test"]
    footers = [footer_of(LocalFile(shard)) for shard in sorted((path / "shards").iterdir())]
    assert sorted(int(row) for footer in footers[1:] if footer is not None for row in footer["row"]) == lost
    rows = np.arange(len(whole))
    assert again.records(rows) == whole.records(rows)
    assert again.totals["rows"] == whole.totals["rows"]
