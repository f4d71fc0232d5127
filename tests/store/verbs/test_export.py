"""Export: what DuckDB and Hugging Face datasets read is what the store gives, a line a position."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from predistill.errors import StoreError
from predistill.store import RowTargets, Store, StoreWriter
from predistill.store.verbs.export import export
from tests.store.made import PERMUTATION, SAMPLED, TRUNCATED, sampled_row, token_hash, write_store

ROWS, POSITIONS = 6, 32


def lists(flat: np.ndarray, targets: RowTargets) -> list[list[Any]]:
    return [part.tolist() for part in np.split(flat, np.cumsum(targets.length_N)[:-1])]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_store(tmp_path_factory.mktemp("store") / "s", rows=ROWS)


def test_duckdb_reads_back_what_the_store_gives(store: Path, tmp_path: Path) -> None:
    import duckdb

    facts = export(store, out=tmp_path / "p.parquet")
    assert facts == {
        "out": str(tmp_path / "p.parquet"),
        "files": 1,
        "rows": ROWS,
        "positions": ROWS * POSITIONS,
        "bytes": (tmp_path / "p.parquet").stat().st_size,
    }
    expected = Store(store).rows(range(ROWS))
    found = duckdb.sql(f"SELECT * FROM '{tmp_path}/p.parquet' ORDER BY row, position").fetchnumpy()
    assert found["row"].tolist() == np.repeat(np.arange(ROWS), POSITIONS).tolist()
    assert found["position"].tolist() == list(range(POSITIONS)) * ROWS
    assert [list(ids) for ids in found["ids"]] == lists(expected.ids_E, expected)
    assert [list(values) for values in found["logprobs"]] == lists(expected.logprob_E, expected)
    for name, field in (
        ("log_rest", "log_rest_N"),
        ("entropy", "entropy_N"),
        ("logit_std", "logit_std_N"),
        ("label_logprob", "label_logprob_N"),
    ):
        assert found[name].dtype == np.float32
        assert np.array_equal(found[name], getattr(expected, field)), name
    masses = duckdb.sql(
        "SELECT max(abs(1 - kept - exp(log_rest))) FROM (SELECT any_value(log_rest) AS log_rest, sum(exp(l)) AS kept "
        f"FROM (SELECT row, position, log_rest, unnest(logprobs) AS l FROM '{tmp_path}/p.parquet') "
        "GROUP BY row, position)"
    ).fetchall()
    assert masses[0][0] < 1e-5


def test_datasets_reads_a_folder_of_several_files(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datasets import load_dataset

    monkeypatch.setattr("predistill.store.verbs.export.BATCH_POSITIONS", POSITIONS)
    facts = export(store, out=tmp_path / "p", file_bytes=10_000)
    assert facts["files"] == len(list((tmp_path / "p").iterdir())) > 1
    found = load_dataset(
        "parquet", data_files=str(tmp_path / "p" / "*.parquet"), split="train", cache_dir=str(tmp_path / "cache")
    )
    expected = Store(store).rows(range(ROWS))
    assert found.features["ids"].feature.dtype == "int32"
    assert found.features["logprobs"].feature.dtype == "float32"
    assert found["ids"][:] == lists(expected.ids_E, expected)
    assert found["row"][:] == np.repeat(np.arange(ROWS), POSITIONS).tolist()
    found.cleanup_cache_files()


def test_pyarrow_finds_split_floats_and_the_manifest_s_facts(store: Path, tmp_path: Path) -> None:
    from pyarrow import parquet

    export(store, out=tmp_path / "p.parquet")
    file = parquet.ParquetFile(tmp_path / "p.parquet", page_checksum_verification=True)
    columns = {
        file.metadata.row_group(0).column(i).path_in_schema: file.metadata.row_group(0).column(i)
        for i in range(file.metadata.num_columns)
    }
    for name in ("logprobs.list.element", "log_rest", "entropy"):
        assert "BYTE_STREAM_SPLIT" in columns[name].encodings, name
        assert columns[name].compression == "ZSTD"
    about = json.loads(file.schema_arrow.metadata[b"predistill"])
    assert about["store_id"] == Store(store).manifest["store_id"]
    assert about["truncation"] == TRUNCATED["truncation"]


@pytest.mark.parametrize("tau", [None, 1.5])
def test_draws_are_lists_of_counts(tmp_path: Path, tau: float | None) -> None:
    import duckdb

    facts = {**SAMPLED, "sampling": {**SAMPLED["sampling"], "proposal_temperature": tau or 1.0}}
    with StoreWriter(tmp_path / "d", manifest=facts, permutation=PERMUTATION) as writer:
        for row in range(2):
            writer.write(row, token_hash(row), sampled_row(row, tau=tau))
        writer.seal({}, rows_expected=2)
    export(tmp_path / "d", out=tmp_path / "d.parquet")
    expected = Store(tmp_path / "d").rows([0, 1])
    found = duckdb.sql(f"SELECT * FROM '{tmp_path}/d.parquet' ORDER BY row, position").fetchnumpy()
    assert [list(values) for values in found["counts"]] == lists(expected.count_E, expected)
    assert {sum(values) for values in found["counts"]} == {50}
    assert ("logprobs" in found) == ("normaliser" in found) == (tau is not None)
    assert "log_rest" not in found


def test_some_rows_of_a_partial_store(tmp_path: Path) -> None:
    import duckdb

    with StoreWriter(tmp_path / "d", manifest=SAMPLED, permutation=PERMUTATION) as writer:
        for row in (1, 3, 5, 7):
            writer.write(row, token_hash(row), sampled_row(row))
        writer.seal({}, rows_expected=9, partial=True)
    assert export(tmp_path / "d", out=tmp_path / "d.parquet", rows=(2, 7))["rows"] == 2
    assert duckdb.sql(f"SELECT DISTINCT row FROM '{tmp_path}/d.parquet' ORDER BY row").fetchall() == [(3,), (5,)]
    with pytest.raises(StoreError, match="none of its 4 rows is among those asked for"):
        export(tmp_path / "d", out=tmp_path / "e.parquet", rows=(8, 9))
    assert not (tmp_path / "e.parquet").exists()


class Tokens:
    """A corpus of so many tokens."""

    def __init__(self, ids: np.ndarray) -> None:
        self.ids = ids

    def rows(self, indices: Any) -> tuple[np.ndarray, None]:
        return self.ids[np.asarray(indices)], None


def test_a_corpus_adds_what_is_read_and_what_is_to_be_predicted_and_must_be_the_captured_one(tmp_path: Path) -> None:
    import duckdb

    from predistill.fingerprint import row_hash

    ids = np.random.default_rng(0).integers(0, 1024, (2, POSITIONS + 1))
    with StoreWriter(tmp_path / "d", manifest=SAMPLED, permutation=PERMUTATION) as writer:
        for row in range(2):
            writer.write(row, row_hash(ids[row]), sampled_row(row))
        writer.seal({}, rows_expected=2)
    export(tmp_path / "d", out=tmp_path / "d.parquet", corpus=Tokens(ids))
    found = duckdb.sql(f"SELECT input_id, label_id FROM '{tmp_path}/d.parquet' ORDER BY row, position").fetchnumpy()
    assert found["input_id"].tolist() == ids[:, :-1].reshape(-1).tolist()
    assert found["label_id"].tolist() == ids[:, 1:].reshape(-1).tolist()
    with pytest.raises(StoreError, match=r"row 0 .* was made from other tokens"):
        export(tmp_path / "d", out=tmp_path / "e.parquet", corpus=Tokens(ids + 1))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "d.parquet"]  # nothing half done is left


def test_nothing_is_overwritten_unasked(store: Path, tmp_path: Path) -> None:
    (tmp_path / "p.parquet").write_text("mine")
    with pytest.raises(StoreError, match="is there already"):
        export(store, out=tmp_path / "p.parquet")
    assert (tmp_path / "p.parquet").read_text() == "mine"
    assert export(store, out=tmp_path / "p.parquet", overwrite=True)["bytes"] > 1000
    assert [path.name for path in tmp_path.iterdir()] == ["p.parquet"]


def test_without_pyarrow_it_says_what_to_install(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(StoreError, match=r"pip install 'predistill\[parquet\]'"):
        export(store, out=tmp_path / "p.parquet")
