"""Copying: a model that looks back copies, one that does not is at chance, and the numbers are the model's own."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig, PreTrainedModel

from predistill.corpus import Corpus
from predistill.evaluation.copying import copied_sequences, copy_lengths, measure_copying
from predistill.runs import Run
from predistill.students.build import load_model
from predistill.students.masks import document_mask

CPU = torch.device("cpu")
SURE = 60.0  # nats: exp(-60) is nothing in float32
SEQUENCES = 6


class LooksBack(torch.nn.Module):
    """A backbone of width V that says what followed when the longest ending of its past was seen before: an induction
    head without limits. Where nothing was, it says nothing, and its head makes that the uniform distribution."""

    device = CPU

    def __init__(self, vocab_size: int, *, blind: bool = False) -> None:
        super().__init__()
        self.config = PretrainedConfig(max_position_embeddings=64)
        self.vocab_size, self.blind = vocab_size, blind
        self.head = torch.nn.Linear(vocab_size, vocab_size, bias=False)
        self.head.weight.data = torch.eye(vocab_size)

    @property
    def base_model(self) -> torch.nn.Module:
        return self

    def get_output_embeddings(self) -> torch.nn.Module:
        return self.head

    def forward(self, *, input_ids: torch.Tensor, attention_mask: Any, use_cache: bool) -> Any:
        del attention_mask, use_cache
        hidden_BTD = torch.zeros((*input_ids.shape, self.vocab_size))
        for row, ids in enumerate(input_ids.tolist()):
            for place in range(len(ids)):
                if not self.blind and (said := _followed(ids[: place + 1])) is not None:
                    hidden_BTD[row, place, said] = SURE
        return SimpleNamespace(last_hidden_state=hidden_BTD)


def _followed(past: list[int]) -> int | None:
    """What came after the place before the end whose past agrees longest with the whole past."""
    best, said = 0, None
    for end in range(len(past) - 1):
        same = 0
        while same <= end and past[end - same] == past[-1 - same]:
            same += 1
        if same > best:
            best, said = same, past[end + 1]
    return said


@pytest.fixture(scope="module")
def heldout(corpus: Path) -> Corpus:
    return Corpus(corpus, split="held_out")


def test_who_looks_back_copies_and_who_does_not_is_at_chance(heldout: Corpus) -> None:
    for blind in (False, True):
        model = cast(PreTrainedModel, LooksBack(heldout.vocab_size, blind=blind))
        record = measure_copying(model, heldout, sequences=SEQUENCES)
        chance = math.log(heldout.vocab_size)
        assert (record["vocab_size"], record["chance_nats"]) == (heldout.vocab_size, chance)
        assert [line["length"] for line in record["lengths"]] == [8, 16, 32]
        for line in record["lengths"]:
            if blind:
                assert line["first_loss_nats"] == pytest.approx(chance, rel=1e-6)
                assert line["loss_nats"] == pytest.approx(chance, rel=1e-6)
                assert line["accuracy"] < 0.05
            else:
                assert line["first_loss_nats"] > 0.9 * chance
                assert line["loss_nats"] < 1e-6
                assert line["accuracy"] == 1.0


@pytest.mark.parametrize("masked", [False, True])
def test_every_number_is_the_definition_in_float64(
    masked: bool, lm_run: Run, heldout: Corpus, masked_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("predistill.evaluation.copying.BATCH_POSITIONS", 70)  # batches of 4, 2 and 1
    monkeypatch.setattr("predistill.evaluation.copying.CHUNK_POSITIONS", 23)
    model = load_model(lm_run.model_path, device=CPU).eval()
    measured = Corpus(masked_corpus, split="held_out") if masked else heldout
    lines = measure_copying(model, measured, sequences=SEQUENCES)["lengths"]
    assert [line["length"] for line in lines] == [8, 16, 32]
    for line in lines:
        length = line["length"]
        ids = torch.from_numpy(
            copied_sequences(length, count=SEQUENCES, vocab_size=heldout.vocab_size, end_id=heldout.end_id)
        )
        mask = document_mask(ids[:, :-1], end_id=heldout.end_id) if masked else None
        with torch.no_grad():
            logit_BTV = model(ids[:, :-1], attention_mask=mask, use_cache=False).logits.double()
        loss_BT = -logit_BTV.log_softmax(dim=-1).gather(2, ids[:, 1:, None])[:, :, 0]
        first, second = slice(0, length), slice(length + 1, 2 * length)
        assert line["sequences"] == SEQUENCES
        assert line["first_loss_nats"] == pytest.approx(float(loss_BT[:, first].mean()), rel=1e-6)
        assert line["loss_nats"] == pytest.approx(float(loss_BT[:, second].mean()), rel=1e-6)
        right_BT = logit_BTV.argmax(dim=-1) == ids[:, 1:]
        assert line["accuracy"] == pytest.approx(float(right_BT[:, second].double().mean()), abs=1e-9)


def test_a_sequence_is_the_end_token_and_twice_the_same_words_of_which_none_is_it() -> None:
    for end_id in (0, 3, 9):
        ids = copied_sequences(16, count=200, vocab_size=10, end_id=end_id)
        assert ids.shape == (200, 33)
        assert (ids[:, 0] == end_id).all()
        assert (ids[:, 1:17] == ids[:, 17:]).all()
        counts = np.bincount(ids[:, 1:17].ravel(), minlength=10)
        assert counts[end_id] == 0
        assert np.delete(counts, end_id).min() > 0.8 * 3200 / 9  # all others alike: 356 each, of spread 18


def test_everyone_of_a_vocabulary_gets_the_same_sequences_and_each_length_its_own() -> None:
    one, again = (copied_sequences(16, count=5, vocab_size=2048, end_id=0) for _ in range(2))
    assert (one == again).all()
    assert (one[0, 1:9] != copied_sequences(8, count=5, vocab_size=2048, end_id=0)[0, 1:9]).any()


@pytest.mark.parametrize(
    ("row_len", "lengths"),
    [(15, []), (16, [8]), (31, [8]), (32, [8, 16]), (256, [8, 16, 32, 64, 128]), (300, [8, 16, 32, 64, 128])],
)
def test_lengths_double_as_long_as_both_copies_fit_a_row(row_len: int, lengths: list[int]) -> None:
    assert copy_lengths(row_len) == lengths


def test_a_model_s_context_bounds_the_lengths_too(heldout: Corpus) -> None:
    model = LooksBack(heldout.vocab_size, blind=True)
    model.config.max_position_embeddings = 40
    record = measure_copying(cast(PreTrainedModel, model), heldout, sequences=1)
    assert [line["length"] for line in record["lengths"]] == [8, 16]
