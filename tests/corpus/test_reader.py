"""A corpus gives the rows its token file defines, and says what is wrong when it is not whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from predistill.corpus import Corpus
from predistill.corpus.reader import FORMAT, INSTRUCT_FORMAT
from predistill.errors import CorpusError
from predistill.files import write_sealed_json
from predistill.fingerprint import file_sha256

TOKENS = np.arange(100, 125)


def made_corpus(folder: Path, **changed: object) -> Path:
    """24 labels in rows of 6, so 4 rows; nothing held out."""
    folder.mkdir()
    TOKENS.astype("<u2").tofile(folder / "train.bin")
    (folder / "held_out.bin").touch()
    (folder / "tokenizer.json").write_text("{}")
    hashes = {name: file_sha256(folder / name) for name in ("train.bin", "held_out.bin", "tokenizer.json")}
    manifest = {
        "format": FORMAT,
        "row_len": 6,
        "document_mask": False,
        "stream": {"opened_by": 7, "documents_closed_by": 7},
        "id_dtype": "<u2",
        "tokenizer": {"sha256": hashes["tokenizer.json"], "vocab_size": 200, "end_token": "<e>", "end_id": 7},
        "splits": {
            "train": {"rows": 4, "tokens": 25, "sha256": hashes["train.bin"]},
            "held_out": {"rows": 0, "tokens": 0, "sha256": hashes["held_out.bin"]},
        },
    }
    write_sealed_json(folder / "manifest.json", {**manifest, **changed})
    return folder


MARKS = np.array([0, *[0, 1, 3, 0, 1, 1] * 3, *[0] * 6], dtype=np.uint8)


def made_instruct_corpus(folder: Path, *, marks: np.ndarray = MARKS, **changed: object) -> Path:
    """The same with marks: two counted labels in a row, the second of which closes a document; none in the last row."""
    base = Corpus(made_corpus(folder)).manifest
    marks.tofile(folder / "train.mask.bin")
    (folder / "held_out.mask.bin").touch()
    splits = {
        split: {**stats, "mask_sha256": file_sha256(folder / f"{split}.mask.bin")}
        for split, stats in base["splits"].items()
    }
    write_sealed_json(folder / "manifest.json", {**base, "format": INSTRUCT_FORMAT, "splits": splits, **changed})
    return folder


def test_rows_overlap_by_one_token_so_that_every_token_is_a_label_once(tmp_path: Path) -> None:
    corpus = Corpus(made_corpus(tmp_path / "c"))
    ids, mask = corpus.rows(range(len(corpus)))
    assert (len(corpus), corpus.row_len) == (4, 6)
    assert (ids.shape, ids.dtype.name, mask) == ((4, 7), "int64", None)
    assert ids[:, 1:].ravel().tolist() == TOKENS[1:].tolist()
    assert ids[:, 0].tolist() == TOKENS[:-1:6].tolist()


def test_rows_come_in_the_order_asked(tmp_path: Path) -> None:
    corpus = Corpus(made_corpus(tmp_path / "c"))
    assert corpus.rows([2, 0, 2])[0][:, 0].tolist() == [112, 100, 112]
    assert corpus.rows([])[0].shape == (0, 7)


def test_a_row_of_conversations_comes_with_the_marks_of_its_labels(tmp_path: Path) -> None:
    corpus = Corpus(made_instruct_corpus(tmp_path / "c"))
    ids, counted = corpus.rows([2, 0, 3])
    assert (corpus.instruct, Corpus(made_corpus(tmp_path / "d")).instruct) == (True, False)
    assert ids[:, 0].tolist() == [112, 100, 118]
    assert counted is not None
    assert counted.dtype == np.bool_
    assert counted.astype(int).tolist() == [[0, 1, 1, 0, 1, 1], [0, 1, 1, 0, 1, 1], [0] * 6]
    assert np.flatnonzero(corpus.closes(0, 25)).tolist() == [3, 9, 15]
    marks = corpus.marks(2, 5)
    assert marks is not None
    assert marks.tolist() == [1, 3, 0]


def test_a_text_closes_where_its_end_token_stands(tmp_path: Path) -> None:
    tokenizer = {**Corpus(made_corpus(tmp_path / "a")).manifest["tokenizer"], "end_id": 104}
    corpus = Corpus(made_corpus(tmp_path / "b", tokenizer=tokenizer))
    assert np.flatnonzero(corpus.closes(2, 9)).tolist() == [2]
    assert corpus.marks(2, 9) is None


@pytest.mark.parametrize("index", [-1, 4])
def test_a_row_that_is_not_there_is_an_error(tmp_path: Path, index: int) -> None:
    with pytest.raises(IndexError, match=r"\(train\) go from 0 to 3"):
        Corpus(made_corpus(tmp_path / "c")).rows([0, index])


def test_the_derived_facts_are_the_manifests(tmp_path: Path) -> None:
    corpus = Corpus(made_corpus(tmp_path / "c"), split="held_out")
    assert (len(corpus), corpus.vocab_size, corpus.end_id, corpus.document_mask) == (0, 200, 7, False)
    assert corpus.tokenizer_path == tmp_path / "c" / "tokenizer.json"
    assert corpus.split_stats["tokens"] == 0


def test_the_fingerprint_changes_with_all_that_decides_a_row_and_with_nothing_else(tmp_path: Path) -> None:
    twins = [made_corpus(tmp_path / name, note=name) for name in "ab"]
    same = {Corpus(twin, split).fingerprint for twin in twins for split in ("train", "held_out")}
    assert len(same) == 1
    base = Corpus(tmp_path / "a").manifest
    changes: list[dict[str, object]] = [
        {"row_len": 3},
        {"document_mask": True},
        {"stream": {"opened_by": 8, "documents_closed_by": 7}},
        {"tokenizer": {**base["tokenizer"], "sha256": "0"}},
        {"splits": {**base["splits"], "train": {**base["splits"]["train"], "sha256": "0"}}},
        {"splits": {**base["splits"], "held_out": {**base["splits"]["held_out"], "sha256": "0"}}},
    ]
    found = {Corpus(made_corpus(tmp_path / str(n), **change)).fingerprint for n, change in enumerate(changes)}
    assert len(found | same) == len(changes) + 1


def test_the_fingerprint_of_a_text_corpus_is_what_it_was_before_there_were_masks(tmp_path: Path) -> None:
    assert Corpus(made_corpus(tmp_path / "c")).fingerprint == "8522f03c1095d34b"


def test_the_fingerprint_of_conversations_changes_with_their_masks(tmp_path: Path) -> None:
    corpora = [made_corpus(tmp_path / "t")] + [
        made_instruct_corpus(tmp_path / str(n), marks=marks) for n, marks in enumerate((MARKS, MARKS, 1 - MARKS % 2))
    ]
    text, one, twin, other = (Corpus(corpus).fingerprint for corpus in corpora)
    assert one == twin
    assert len({text, one, other}) == 3


def test_verify_finds_a_flipped_bit_in_any_file(tmp_path: Path) -> None:
    folder = made_instruct_corpus(tmp_path / "c")
    Corpus(folder).verify()
    for name in "train.bin", "train.mask.bin", "tokenizer.json":
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
        with pytest.raises(CorpusError, match=rf"{name}: its bytes are not those that were written"):
            Corpus(folder).verify()
        (folder / name).write_bytes(whole)


def test_what_is_not_a_whole_corpus_is_refused(tmp_path: Path) -> None:
    folder = made_corpus(tmp_path / "c")
    with pytest.raises(CorpusError, match=r'no split "heldout"; did you mean "held_out"\? One of train, held_out\.'):
        Corpus(folder, "heldout")
    (folder / "train.bin").write_bytes(bytes(48))
    with pytest.raises(CorpusError, match=r"train\.bin: has 48 bytes, the manifest says 50 bytes"):
        Corpus(folder)
    (folder / "train.bin").unlink()
    with pytest.raises(CorpusError, match=r"train\.bin: is missing"):
        Corpus(folder)
    with pytest.raises(CorpusError, match=r"train\.mask\.bin: has 24 bytes, the manifest says 25 bytes"):
        Corpus(made_instruct_corpus(tmp_path / "short", marks=MARKS[1:]))
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "row_len": 5}))
    with pytest.raises(CorpusError, match=r"manifest\.json: damaged: its checksum does not match"):
        Corpus(folder)
    (folder / "manifest.json").unlink()
    with pytest.raises(CorpusError, match="no prepared corpus here"):
        Corpus(folder)
    with pytest.raises(CorpusError, match=r"format 'other', and this version reads 'predistill-corpus-1'"):
        Corpus(made_corpus(tmp_path / "d", format="other"))
