"""A document meets a task file exactly when a gram of the one is a gram of the other."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from predistill.corpus.overlap import TaskGrams, row_texts, task_grams
from predistill.errors import CorpusError
from predistill.fingerprint import file_sha256
from tests.corpus.test_grams import grams_of


def written(path: Path, rows: list[Any]) -> Path:
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    packed = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(packed(data))
    return path


def prose(seed: int, words: int) -> str:
    draw = random.Random(seed)
    return " ".join(draw.choices(["the", "cat", "sat", "on", "a", "mat", "and", "dog", "春", "眠"], k=words))


@settings(max_examples=25)
@given(st.integers(0, 2**32), st.integers(1, 3))
def test_documents_meet_the_files_that_the_definition_says(
    tmp_path_factory: pytest.TempPathFactory, seed: int, files: int
) -> None:
    draw = random.Random(seed)
    folder = tmp_path_factory.mktemp("tasks")
    rows = [[prose(draw.randrange(10**6), draw.randrange(10, 30)) for _ in range(20)] for _ in range(files)]
    paths = [written(folder / f"{n}.jsonl", [{"text": text} for text in each]) for n, each in enumerate(rows)]
    found, facts = task_grams(paths)
    grams_F = [{gram for text in each for gram in grams_of(text)} for each in rows]
    assert [file.grams for file in facts] == [len(each) for each in grams_F]
    assert len(found) == len(set().union(*grams_F))
    assert [file.short_rows for file in facts] == [sum(not grams_of(text) for text in each) for each in rows]
    documents = [prose(draw.randrange(10**6), 40) for _ in range(20)]
    for number in range(0, 20, 2):  # half of them hold a piece of a row, of about as many words as a gram has
        row = draw.choice(draw.choice(rows)).split()
        start = draw.randrange(len(row))
        documents[number] += " " + " ".join(row[start : start + draw.randrange(11, 24)])
    expected = [[n for n, each in enumerate(grams_F) if each & set(grams_of(text))] for text in documents]
    assert found.files_met(documents) == expected
    assert [found.files_met([document])[0] for document in documents] == expected
    found.save(folder / "saved")
    assert TaskGrams.load(folder / "saved").files_met(documents) == expected


def test_an_option_is_read_in_the_gap_or_behind_the_text() -> None:
    assert row_texts({"id": "a-0", "sentence": "So _ won.", "choices": ["Ann", "Bob"], "answer": 1}) == [
        *("a-0", "So _ won.", "Ann", "Bob"),
        *("So Ann won.", "So Bob won."),
    ]
    assert row_texts({"question": "Who won", "choices": {"label": ["A"], "text": ["Ann"]}}) == [
        *("Who won", "A", "Ann"),
        *("Who won A", "Who won Ann"),
    ]
    assert row_texts({"question": "甲是____。", "n": 3, "choices": [r"\1"], "none": None})[-1] == r"甲是\1。"
    assert row_texts({}) == []


def test_a_sentence_is_found_where_its_gap_is_filled(tmp_path: Path) -> None:
    row = {"sentence": "The trophy does not fit into the brown suitcase because _ is far too large.", "choices": ["it"]}
    found, _ = task_grams([written(tmp_path / "a.jsonl", [row])])
    filled = "the trophy does not fit into the brown suitcase because it is far too large"
    for start in range(3):
        assert found.files_met([" ".join(filled.split()[start : start + 13])]) == [[0]]
    assert found.files_met([filled.replace("because it", "because she")]) == [[]]


def test_files_folders_and_packings_are_read_once_each(tmp_path: Path) -> None:
    folder = tmp_path / "tasks"
    paths = [
        written(folder / name, [{"text": prose(n, 30)}])
        for n, name in enumerate(["a.jsonl.zst", "b.jsonl", "c.jsonl.gz"])
    ]
    (folder / "README.md").write_text("no rows")
    found, facts = task_grams([paths[1], folder, paths[0]])
    assert [file.name for file in facts] == ["b.jsonl", "a.jsonl.zst", "c.jsonl.gz"]
    assert [file.sha256 for file in facts] == [file_sha256(paths[n]) for n in (1, 0, 2)]
    assert found.files_met([prose(1, 30), prose(0, 30), prose(2, 30)]) == [[0], [1], [2]]
    assert (np.diff(found.hash_G.astype(object)) >= 0).all()


def test_what_cannot_be_compared_is_said(tmp_path: Path) -> None:
    long = {"text": prose(0, 30)}
    bad = written(tmp_path / "bad.jsonl", [long])
    bad.write_bytes(bad.read_bytes() + b"\nnot JSON\n")
    short = written(tmp_path / "short.jsonl", [{"question": "who was that", "answers": ["Ann"]}])
    (tmp_path / "folder").mkdir()
    (tmp_path / "a.txt").write_text(prose(0, 30))
    for source, says in [
        (tmp_path / "none", r"none: no such file or folder\. Check the path given to --decontaminate\."),
        (bad, r"bad\.jsonl line 3: not JSON .* Mend the line"),
        (short, r"short\.jsonl: no row has 13 words in a row.* Leave it out"),
        (tmp_path / "folder", r"folder: --decontaminate reads \.jsonl files .* the folder holds none\."),
        (tmp_path / "a.txt", r"a\.txt: --decontaminate reads \.jsonl files .* this is none\."),
    ]:
        with pytest.raises(CorpusError, match=says):
            task_grams([source])
    _, facts = task_grams(
        [written(tmp_path / "folder" / "long.jsonl", [long]), short.rename(tmp_path / "folder" / "short.jsonl").parent]
    )
    assert [(file.name, file.short_rows) for file in facts] == [("long.jsonl", 0), ("short.jsonl", 1)]


def test_half_a_surrogate_pair_is_no_word(tmp_path: Path) -> None:
    found, _ = task_grams([written(tmp_path / "a.jsonl", [{"text": "\ud800 " + prose(0, 30)}])])
    assert found.files_met([prose(0, 30)]) == [[0]]
