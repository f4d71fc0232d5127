"""Choosing documents: they are found where they are, copied unchanged and in order, and all else stays as it was."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from predistill.corpus import Corpus
from predistill.corpus.chosen import copy_chosen, document_hashes, document_stops
from predistill.corpus.tokenizer import load_tokenizer
from predistill.errors import CorpusError
from predistill.stages.prepare import prepare
from tests.made import files_below

WORDS = ["the", "cat", "sat", "on", "mat", "then", "another", "looked", "garden", "春眠不觉晓", "处处闻啼鸟", "，"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Some 250 documents of 3 to 60 words in rows of 16 tokens."""
    folder = tmp_path_factory.mktemp("chosen")
    draw = random.Random(0)
    texts = [f"{number}: " + " ".join(draw.choices(WORDS, k=draw.randrange(3, 60))) for number in range(280)]
    (folder / "t.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepare(folder / "t.jsonl", out=folder / "c", train_tokenizer=300, row_len=16, held_out=0.1, processes=1)
    return Corpus(folder / "c")


def stream_of(corpus: Corpus) -> list[int]:
    """The stream, from the rows."""
    ids, _ = corpus.rows(range(len(corpus)))
    return [*ids[:, :-1].ravel().tolist(), int(ids[-1, -1])]


def documents_of(corpus: Corpus) -> list[tuple[int, ...]]:
    """Token by token: what ends with an end token, and what is left at the end."""
    first, *labels = stream_of(corpus)
    assert first == corpus.end_id
    documents: list[list[int]] = [[]]
    for token in labels:
        documents[-1].append(token)
        if token == corpus.end_id:
            documents.append([])
    return [tuple(document) for document in documents if document]


def copied(corpus: Corpus, chosen_D: np.ndarray, out: Path, **facts: Any) -> Corpus:
    copy_chosen(corpus, chosen_D, document_stops(corpus), out=out, facts=facts, on_bytes=lambda _: None)
    return Corpus(out)


@pytest.mark.parametrize("block_tokens", [1, 7, 100, 1 << 20])
def test_documents_lie_between_end_tokens_whatever_the_block(corpus: Corpus, block_tokens: int) -> None:
    documents = documents_of(corpus)
    assert len(documents) > 200
    stop_D = document_stops(corpus, block_tokens=block_tokens)
    assert stop_D.tolist() == np.cumsum([len(document) for document in documents]).tolist()
    assert stop_D[-1] == len(corpus) * corpus.row_len


def test_a_hash_is_of_the_tokens_and_the_seed(corpus: Corpus) -> None:
    stop_D = document_stops(corpus)
    found = document_hashes(corpus, stop_D, seed=5).tolist()
    assert found == [
        xxhash.xxh64_intdigest(np.array(document, "<i4").tobytes(), seed=5) for document in documents_of(corpus)
    ]
    assert found != document_hashes(corpus, stop_D, seed=6).tolist()


@pytest.mark.parametrize("seed", range(6))
def test_the_chosen_documents_are_copied_unchanged_and_in_order(corpus: Corpus, tmp_path: Path, seed: int) -> None:
    documents = documents_of(corpus)
    chosen_D = np.random.default_rng(seed).random(len(documents)) < 0.4
    chosen_D[-1] = seed % 2 == 0  # the one that the last row cuts
    new = copied(corpus, chosen_D, tmp_path / "new")
    expected = [token for document, chosen in zip(documents, chosen_D, strict=True) if chosen for token in document]
    stream = stream_of(new)
    assert stream == [corpus.end_id, *expected][: len(stream)]
    stats = new.split_stats
    assert (len(stream) - 1, stats["dropped_tokens"]) == (len(expected) // 16 * 16, len(expected) % 16)
    assert (stats["documents"], stats["tokens"]) == (chosen_D.sum(), len(stream))
    tokenizer = load_tokenizer(new.path)
    text = sum(tokenizer.text_bytes(np.array(d)) for d, chosen in zip(documents, chosen_D, strict=True) if chosen)
    assert stats["bytes"] + stats["dropped_bytes"] == text
    assert 0 <= stats["dropped_bytes"] < 16 * 12
    new.verify()


def test_what_was_not_to_be_chosen_stays_as_it_was(corpus: Corpus, tmp_path: Path) -> None:
    new = copied(corpus, np.arange(len(document_stops(corpus))) < 100, tmp_path / "new", note="n")
    for name in "held_out.bin", "tokenizer.json", "tokenizer_config.json":
        assert (new.path / name).read_bytes() == (corpus.path / name).read_bytes()
    Corpus(new.path, "held_out").verify()
    assert sorted(path.name for path in new.path.iterdir()) == sorted(path.name for path in corpus.path.iterdir())
    changed = {key for key, value in new.manifest.items() if corpus.manifest.get(key) != value}
    assert changed == {"splits", "note"}
    assert new.manifest["splits"]["held_out"] == corpus.manifest["splits"]["held_out"]
    assert new.fingerprint != corpus.fingerprint


def test_all_documents_are_the_corpus_again(corpus: Corpus, tmp_path: Path) -> None:
    new = copied(corpus, np.ones(len(document_stops(corpus)), bool), tmp_path / "new")
    assert (new.path / "train.bin").read_bytes() == (corpus.path / "train.bin").read_bytes()
    assert new.fingerprint == corpus.fingerprint
    assert abs(new.split_stats["bytes"] - corpus.split_stats["bytes"]) <= 4  # the cut may go through a character


@pytest.fixture(scope="module")
def instruct(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """Conversations of two turns in rows of 16 tokens, in a template that writes the end token within them."""
    folder = tmp_path_factory.mktemp("instruct")
    draw = random.Random(0)
    talks = [
        [
            {"role": role, "content": f"{number} {' '.join(draw.choices(WORDS, k=draw.randrange(1, 9)))}"}
            for role in ("user", "assistant", "user", "assistant")
        ]
        for number in range(80)
    ]
    (folder / "t.jsonl").write_text("".join(json.dumps({"messages": talk}) + "\n" for talk in talks))
    (folder / "t.jinja").write_text("{% for m in messages %}{{ m.role + ':' + m.content + eos_token }}{% endfor %}")
    settings: dict[str, Any] = {"row_len": 16, "held_out": 0.1, "processes": 1, "instruct": True}
    prepare(folder / "t.jsonl", out=folder / "c", train_tokenizer=300, chat_template=folder / "t.jinja", **settings)
    return Corpus(folder / "c")


def labels_of(corpus: Corpus) -> list[tuple[int, bool]]:
    """Each label, and whether it is counted."""
    ids, counted = corpus.rows(range(len(corpus)))
    assert counted is not None
    return list(zip(ids[:, 1:].ravel().tolist(), counted.ravel().tolist(), strict=True))


def test_the_marks_of_chosen_conversations_are_copied_with_them(instruct: Corpus, tmp_path: Path) -> None:
    stop_D = document_stops(instruct)
    labels = labels_of(instruct)
    documents = [labels[start:stop] for start, stop in zip([0, *stop_D], stop_D, strict=False)]
    assert all([token for token, _ in document].count(instruct.end_id) == 4 for document in documents[:-1])
    chosen_D = np.random.default_rng(0).random(len(documents)) < 0.5
    new = copied(instruct, chosen_D, tmp_path / "new")
    expected = [label for document, chosen in zip(documents, chosen_D, strict=True) if chosen for label in document]
    assert labels_of(new) == expected[: len(new) * 16]
    assert new.split_stats["counted"] == sum(counted for _, counted in labels_of(new)) > 100
    new.verify()
    Corpus(new.path, "held_out").verify()
    assert files_below(new.path).keys() == files_below(instruct.path).keys()
    again = copied(new, np.ones(len(document_stops(new)), bool), tmp_path / "again")
    assert again.fingerprint == new.fingerprint


def test_documents_that_fill_no_row_are_refused(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"fill no row of 16\. Select a larger part of"):
        copied(corpus, np.zeros(len(document_stops(corpus)), bool), tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_nothing_half_made_stays(corpus: Corpus, tmp_path: Path) -> None:
    def stopped(_count: int) -> None:
        raise KeyboardInterrupt

    stop_D = document_stops(corpus)
    with pytest.raises(KeyboardInterrupt):
        copy_chosen(corpus, stop_D > 0, stop_D, out=tmp_path / "new", facts={}, on_bytes=stopped)
    assert list(tmp_path.iterdir()) == []
