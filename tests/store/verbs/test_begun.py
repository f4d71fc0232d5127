"""Sealing by hand: what is there, closed and sealed, unless somebody is still at work."""

from __future__ import annotations

from pathlib import Path

import pytest

from predistill.errors import StoreError
from predistill.files import sealed_json
from predistill.store import Store, StoreWriter
from predistill.store.verbs.begun import seal
from tests.store.made import PERMUTATION, TRUNCATED, all_bytes, token_hash, truncated_row, write_store


def written(path: Path, rows: range, *, writer: int) -> Path:
    """One writer's rows, and then it is gone."""
    with StoreWriter(path, manifest=TRUNCATED, permutation=PERMUTATION, writer=writer, shard_bytes=20_000) as part:
        for row in rows:
            part.write(row, token_hash(row), truncated_row(row))
    return path


def test_with_every_row_there_it_is_the_store_that_a_capture_seals(tmp_path: Path) -> None:
    whole = write_store(tmp_path / "whole", rows=6)
    written(tmp_path / "s", range(6), writer=0)
    (tmp_path / "s" / "calibration.json").write_bytes(sealed_json({"teacher_ce": 1.25, "kl": 5e-06}))
    (tmp_path / "s" / "claims").mkdir()
    (tmp_path / "s" / "claims" / "00000000-000").write_bytes(b"0")
    seal(tmp_path / "s", rows_expected=6).verify()
    assert all_bytes(tmp_path / "s") == all_bytes(whole)


def test_parts_of_dead_writers_are_closed_and_means_measured_where_none_are_known(tmp_path: Path) -> None:
    written(tmp_path / "s", range(3), writer=0)
    written(tmp_path / "s", range(5, 7), writer=4)
    store = seal(tmp_path / "s", rows_expected=9, partial=True)
    store.verify()
    assert store.present().tolist() == [0, 1, 2, 5, 6]
    assert store.manifest["writers"] == [0, 4]
    assert store.manifest["self_test"]["sample_rows"] == 5
    assert 0 < store.manifest["self_test"]["mean_kept_mass"] < 1


def test_what_cannot_be_sealed_is_said(tmp_path: Path) -> None:
    path = written(tmp_path / "s", range(3), writer=0)
    with pytest.raises(StoreError, match=r"2 of 5 rows are missing, the first is row 3.*--partial"):
        seal(path, rows_expected=5)
    with (
        StoreWriter(path, manifest=TRUNCATED, permutation=PERMUTATION, writer=1),
        pytest.raises(StoreError, match="writer 1 is at work on it"),
    ):
        seal(path, rows_expected=5, partial=True)
    with pytest.raises(StoreError, match="no teacher store is here"):
        seal(tmp_path / "none", rows_expected=5)
    seal(path, rows_expected=5, partial=True)
    with pytest.raises(StoreError, match="sealed already"):
        seal(path, rows_expected=5, partial=True)


def test_a_store_without_a_whole_row_is_not_sealed(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no whole row of 5"):
        seal(written(tmp_path / "s", range(0), writer=0), rows_expected=5, partial=True)
    with pytest.raises(StoreError, match="no teacher store is here"):
        Store(tmp_path / "t")
