"""The held-out text in other words: no byte is lost or counted twice, and a token's loss is its definition's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from predistill.assets import teacher_path
from predistill.corpus import Corpus
from predistill.corpus.tokenizer import load_tokenizer as corpus_tokenizer
from predistill.evaluation.heldout import measure_heldout
from predistill.evaluation.respelled import heldout_texts, measure_respelled, text_bytes
from predistill.students.build import build_student, load_model, load_tokenizer, student_config

CPU = torch.device("cpu")


def test_the_texts_of_all_rows_are_the_split_s(corpus: Path) -> None:
    heldout = Corpus(corpus, split="held_out")
    texts = heldout_texts(heldout, rows=len(heldout))
    tokens = heldout.split_stats["tokens"]
    assert len(texts) == 1 + int(heldout.closes(1, len(heldout) * heldout.row_len + 1).sum())
    rest = corpus_tokenizer(corpus).text_bytes(heldout.stream(len(heldout) * heldout.row_len + 1, tokens))
    assert text_bytes(texts) + rest == pytest.approx(heldout.split_stats["bytes"], abs=9)  # a character may be cut


@pytest.mark.parametrize("rows", [1, 7])
def test_a_character_that_the_last_row_cuts_is_left_out(rows: int, corpus: Path) -> None:
    heldout = Corpus(corpus, split="held_out")
    texts = heldout_texts(heldout, rows=rows)
    whole = heldout_texts(heldout, rows=len(heldout))
    assert texts[:-1] == whole[: len(texts) - 1]
    assert whole[len(texts) - 1].startswith(texts[-1])


def test_in_the_corpus_own_words_it_is_the_held_out_loss(corpus: Path, masked_corpus: Path) -> None:
    model, tokenizer = load_model(teacher_path(), device=CPU).eval(), load_tokenizer(teacher_path())
    for path in (corpus, masked_corpus):
        heldout = Corpus(path, split="held_out")
        nats, tokens = measure_respelled(
            model,
            heldout_texts(heldout, rows=20),
            tokenizer,
            end_id=heldout.end_id,
            row_len=heldout.row_len,
            document_mask=heldout.document_mask,
        )
        said = measure_heldout(model, heldout, teacher=None, rows=20).student
        assert tokens == pytest.approx(said.tokens, abs=3)  # the last word may be cut elsewhere
        assert nats == pytest.approx(said.loss_sum, rel=5e-3)


@pytest.mark.parametrize("texts", [["ab c", "", "dé"], ["x"], [""]])
def test_a_token_s_loss_is_its_definition_s(texts: list[str]) -> None:
    tokenizer = load_tokenizer(teacher_path())
    model = build_student(student_config("nano-xs", vocab_size=2048, row_len=4, end_id=0), seed=0, device=CPU).eval()
    stream = [0]
    for number, text in enumerate(texts):
        stream += [0] * (number > 0) + tokenizer.encode(text, add_special_tokens=False)
    expected = 0.0
    for position in range(len(stream) - 1):
        ids = torch.tensor([stream[position - position % 4 : position + 1]])  # rows of 4 tokens
        with torch.inference_mode():
            expected -= float(model(input_ids=ids).logits[0, -1].double().log_softmax(dim=-1)[stream[position + 1]])
    nats, tokens = measure_respelled(model, texts, tokenizer, end_id=0, row_len=4, batch_rows=2)
    assert tokens == len(stream) - 1
    assert nats == pytest.approx(expected, rel=1e-5)
