"""Any number of processes gives the same ids in the same order, and none of them outlives its caller."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from predistill.corpus import workers
from predistill.corpus.conversations import Conversation, marked_ids
from predistill.corpus.marks import COUNTED, MARKED_DTYPE, ids_and_marks
from predistill.corpus.tokenizer import train_bpe
from predistill.corpus.workers import tokenised, tokenised_conversations
from predistill.errors import CorpusError

DTYPE = np.dtype("<u2")


@pytest.fixture(scope="module")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer")
    train_bpe([b"the cat sat on the mat, and the dog ran after the cat"], vocab_size=270).save(folder)
    return folder / "tokenizer.json"


def made_texts(count: int) -> list[bytes]:
    draw = random.Random(0)
    return [" ".join(draw.choices(["the", "cat", "sat", "鸟"], k=draw.randrange(1, 60))).encode() for _ in range(count)]


@pytest.mark.parametrize("processes", [1, 3])
def test_any_number_of_processes_gives_the_ids_of_the_tokenizer_in_order(
    tokenizer_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "BATCH_BYTES", 500)
    texts = made_texts(300)
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    found = list(tokenised(texts, tokenizer_path=tokenizer_path, id_dtype=DTYPE, processes=processes))
    assert [text for text, *_ in found] == texts
    for text, ids, files_met in found:
        assert files_met == []
        assert np.frombuffer(ids, DTYPE).tolist() == tokenizer.encode(text.decode()).ids
    assert psutil.Process().children() == []


def test_a_special_token_in_a_text_is_text(tokenizer_path: Path) -> None:
    text = b"say <|endoftext|> twice"
    ((_, ids, _),) = tokenised([text], tokenizer_path=tokenizer_path, id_dtype=DTYPE, processes=1)
    found = np.frombuffer(ids, DTYPE).tolist()
    assert 0 not in found
    assert Tokenizer.from_file(str(tokenizer_path)).decode(found).encode() == text


@pytest.mark.parametrize("processes", [1, 3])
def test_any_number_of_processes_marks_conversations_alike(
    tokenizer_path: Path, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "BATCH_BYTES", 500)
    told = [Conversation(text.decode(), [(4, 9)], len(text) % 2 == 0, b"") for text in made_texts(100)]
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    pairs = tokenised_conversations(
        told, tokenizer_path=tokenizer_path, end_id=0, special_tokens_are_text=True, processes=processes
    )
    found = list(pairs)
    assert [conversation for conversation, *_ in found] == told
    for conversation, ids, _ in found:
        assert ids == marked_ids(tokenizer, conversation, end_id=0).tobytes()
    assert psutil.Process().children() == []


@pytest.mark.parametrize("as_text", [True, False])
def test_a_special_token_in_a_conversation_is_the_template_s_or_text(tokenizer_path: Path, as_text: bool) -> None:
    told = Conversation("<|endoftext|>", [(0, 13)], False, b"")
    ((_, data, _),) = tokenised_conversations(
        [told], tokenizer_path=tokenizer_path, end_id=1, special_tokens_are_text=as_text, processes=1
    )
    ids, _ = ids_and_marks(np.frombuffer(data, MARKED_DTYPE), MARKED_DTYPE)
    assert (0 in ids) == (len(ids) == 2) == (not as_text)


def test_a_token_begins_with_its_own_white_space(tmp_path: Path) -> None:
    tokenizer = Tokenizer(models.BPE({"b": 0, "Ġ": 1, "ĠĠ": 2, "c": 3, "<e>": 4}, [("Ġ", "Ġ")]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)  # says that two spaces begin behind themselves
    assert tokenizer.encode("b  c").offsets == [(0, 1), (3, 3), (3, 4)]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    ((_, data, _),) = tokenised_conversations(
        [Conversation("b  c", [(0, 3)], False, b"")],
        tokenizer_path=tmp_path / "tokenizer.json",
        end_id=4,
        special_tokens_are_text=True,
        processes=1,
    )
    ids, marks = ids_and_marks(np.frombuffer(data, MARKED_DTYPE), MARKED_DTYPE)
    assert (ids.tolist(), (marks & COUNTED).tolist()) == ([0, 2, 3, 4], [1, 1, 0, 0])


@given(st.text("a鸟🙂\n"), st.integers(4, 20))
def test_pieces_are_bounded_and_join_to_the_text(text: str, piece_bytes: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers, "PIECE_BYTES", piece_bytes)
        pieces = list(workers._pieces(text.encode()))
    assert "".join(pieces) == text
    assert max(len(piece.encode()) for piece in pieces) <= piece_bytes


def test_a_text_is_cut_after_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "PIECE_BYTES", 10)
    assert list(workers._pieces(b"one\ntwo\nthree\nforever")) == ["one\ntwo\n", "three\n", "forever"]


def test_pieces_have_the_ids_of_the_whole(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = Tokenizer.from_file(str(tokenizer_path))
    text = "The cat sat.\n\n  The mat\nand (the dog)\n ran, 1, 2\n春眠\n\n\n".encode() * 50
    monkeypatch.setattr(workers, "PIECE_BYTES", 100)
    assert len(list(workers._pieces(text))) > 20
    ids = np.frombuffer(workers._encoded(tokenizer, text, DTYPE), DTYPE)
    assert ids.tolist() == tokenizer.encode(text.decode()).ids


def test_a_reader_that_stops_early_leaves_no_process(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "BATCH_BYTES", 500)
    pairs = tokenised(made_texts(300), tokenizer_path=tokenizer_path, id_dtype=DTYPE, processes=2)
    next(pairs)
    assert len(psutil.Process().children()) == 2
    pairs.close()
    assert psutil.Process().children() == []


def test_a_killed_process_is_an_error_and_not_a_wait(tokenizer_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "BATCH_BYTES", 500)
    pairs = tokenised(made_texts(300), tokenizer_path=tokenizer_path, id_dtype=DTYPE, processes=2)
    next(pairs)
    for child in psutil.Process().children():
        child.kill()
    with pytest.raises(CorpusError, match=r"A tokenising process ended with status -9\. If memory ran short"):
        list(pairs)
    assert psutil.Process().children() == []
