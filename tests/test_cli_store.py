"""`predistill store`: every verb in JSON and in words, and one sentence with exit 2 for what cannot be done."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from predistill.assets import teacher_path
from predistill.cli_store import store_app
from predistill.corpus import Corpus
from predistill.store import Store, StoreWriter
from tests.made import Ended
from tests.store.made import PERMUTATION, TRUNCATED, token_hash, truncated_row

Call = Callable[..., Ended]


@pytest.fixture
def copy(store: Path, tmp_path: Path) -> Path:
    """The captured store, to damage."""
    shutil.copytree(store, tmp_path / "copy")
    return tmp_path / "copy"


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def test_the_verbs_are_those_of_the_design() -> None:
    verbs = {command.name for command in store_app.registered_commands}
    assert verbs == {"inspect", "verify", "repair", "seal", "merge", "select", "export"}


def test_inspect(call: Call, store: Path) -> None:
    facts = json.loads(call("store", "inspect", store, "--json").out)
    assert sum(stream["bytes"] for stream in facts["streams"].values()) == facts["bytes"]
    assert facts["manifest"] == Store(store).manifest
    page = call("store", "inspect", store).out
    assert max(len(line) for line in page.splitlines()[1:]) <= 80
    assert "the teacher's loss" in page


def test_verify_checksums(call: Call, copy: Path) -> None:
    rows = len(Store(copy))
    assert json.loads(call("store", "verify", copy, "--json").out) == {"rows": rows, "intact": True}
    assert "every checksum matches" in call("store", "verify", copy).out
    shard = next((copy / "shards").iterdir())
    flip(shard, shard.stat().st_size // 2)
    damaged = call("store", "verify", copy, "--json")
    assert (damaged.code, damaged.out) == (2, "")
    assert "damaged" in damaged.words


def test_verify_with_the_teacher(call: Call, store: Path, corpus: Path) -> None:
    flags = ("--teacher", teacher_path(), "--corpus", corpus, "--rows", "64")
    facts = json.loads(call("store", "verify", store, *flags, "--json").out)
    assert facts["teacher"]["rows_equal"] == facts["teacher"]["rows"] == 64
    assert "64 of them equal to the bit" in call("store", "verify", store, *flags).out
    for wrong, says in (
        (flags[:2], "go together"),
        (("--rows", "3"), "--rows: without --teacher and --corpus"),
        ((*flags[:4], "--rows", "0"), "1 or more"),
    ):
        ended = call("store", "verify", store, *wrong)
        assert (ended.code, ended.out) == (2, "")
        assert says in ended.words


def test_repair(call: Call, copy: Path) -> None:
    whole = call("store", "repair", copy)
    assert (whole.code, "nothing is wrong" in whole.out) == (0, True)
    flip(next((copy / "shards").iterdir()), 2000)
    facts = json.loads(call("store", "repair", copy, "--json").out)
    assert (facts["missing"], facts["complete"]) == (1, False)
    words = call("store", "repair", copy).out
    assert f"Rows to capture again: {facts['rows_missing'][0]}" in words
    assert "predistill capture" in words


def test_seal(call: Call, tmp_path: Path) -> None:
    with StoreWriter(tmp_path / "s", manifest=TRUNCATED, permutation=PERMUTATION) as writer:
        for row in (0, 1, 3):
            writer.write(row, token_hash(row), truncated_row(row))
    for flags, says in (
        ((), "does not know how many rows its corpus split has"),
        (("--rows", "4"), "1 of 4 rows are missing, the first is row 2"),
        (("--rows", "0"), "--rows 0"),
        (("--rows", "3", "--partial"), "holds row 3 of 3 rows"),
    ):
        ended = call("store", "seal", tmp_path / "s", *flags)
        assert (ended.code, ended.out) == (2, "")
        assert says in ended.words, ended.words
    facts = json.loads(call("store", "seal", tmp_path / "s", "--rows", "4", "--partial", "--json").out)
    assert (facts["rows"], facts["rows_expected"]) == (3, 4)
    assert "sealed already" in call("store", "seal", tmp_path / "s", "--rows", "4").words


def test_select_and_merge(call: Call, store: Path, tmp_path: Path) -> None:
    rows = len(Store(store))
    parts = []
    for span in ("0:200", "200:"):
        parts.append(tmp_path / f"p{len(parts)}")
        ended = call("store", "select", store, "--out", parts[-1], "--rows", span, "--top-k", "9", "--json")
        assert ended.code == 0, ended.err
    assert "172 rows of the corpus split are not in it" not in ended.out
    merged = call("store", "merge", *parts, "--out", tmp_path / "m")
    assert (merged.code, f"{rows:,} rows" in merged.out, "complete" in merged.out) == (0, True, True)
    again = call("store", "merge", *parts, "--out", tmp_path / "m", "--json")
    assert (again.code, again.out) == (2, "")
    for argv, says in (
        (("merge", parts[0], "--out", tmp_path / "n"), "two stores or more"),
        (("merge", parts[0], store, "--out", tmp_path / "n"), "its truncation is not that of"),
        (("select", store, "--out", tmp_path / "n", "--top-k", "500"), "not wider"),
    ):
        ended = call("store", *argv)
        assert (ended.code, ended.out) == (2, "")
        assert says in ended.words
    assert not (tmp_path / "n").exists()


def test_export(call: Call, store: Path, corpus: Path, masked_corpus: Path, tmp_path: Path) -> None:
    import duckdb

    out = tmp_path / "p.parquet"
    facts = json.loads(call("store", "export", store, "--out", out, "--corpus", corpus, "--rows", "8", "--json").out)
    assert (facts["rows"], facts["files"]) == (8, 1)
    labels = duckdb.sql(f"SELECT label_id FROM '{out}' ORDER BY row, position").fetchnumpy()["label_id"]
    assert labels.tolist() == Corpus(corpus).rows(range(8))[0][:, 1:].reshape(-1).tolist()
    assert "one file" in call("store", "export", store, "--out", out, "--rows", "8", "--overwrite").out
    other = call("store", "export", store, "--out", tmp_path / "q.parquet", "--corpus", masked_corpus)
    assert (other.code, "another corpus" in other.words) == (2, True)


def test_what_is_not_there_is_said_in_one_sentence(call: Call, tmp_path: Path) -> None:
    none = tmp_path / "none"
    for argv in (
        ("inspect", none),
        ("verify", none),
        ("repair", none),
        ("seal", none, "--rows", "1"),
        ("merge", none, none, "--out", tmp_path / "o"),
        ("select", none, "--out", tmp_path / "o"),
        ("export", none, "--out", tmp_path / "o"),
        ("inspect", "nowhere://bucket/store"),
    ):
        ended = call("store", *argv)
        assert (ended.code, ended.out) == (2, ""), argv
        assert str(argv[1]) in ended.words or "nowhere" in ended.words, ended.words
        assert ended.words.endswith(".")
        assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []
