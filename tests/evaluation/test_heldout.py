"""Held-out measures against float64 sums of the model's own logits; a model is no distance from itself."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from predistill.corpus import Corpus
from predistill.evaluation import heldout as room
from predistill.evaluation.calibration import expected_calibration_error
from predistill.evaluation.heldout import heldout_in_training, measure_heldout
from predistill.runs import Run
from predistill.students.build import load_model
from predistill.students.masks import document_mask
from tests.made import ALONE, in_training

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def heldout(corpus: Path) -> Corpus:
    opened = Corpus(corpus, split="held_out")
    assert 8 < len(opened) < 200
    return opened


@pytest.fixture(scope="module")
def student(lm_run: Run) -> PreTrainedModel:
    return load_model(lm_run.model_path, device=CPU).eval()


@pytest.fixture(scope="module")
def teacher(pd_run: Run) -> PreTrainedModel:
    return load_model(pd_run.model_path, device=CPU).eval()


def cheap(model: PreTrainedModel, corpus: Corpus, **which: int) -> float:
    """The loss that training measures."""
    student = in_training(model, end_id=corpus.end_id if corpus.document_mask else None)
    return heldout_in_training(student, corpus, world=ALONE, **which)["loss_nats"]


@torch.no_grad()
def logprobs(model: PreTrainedModel, corpus: Corpus) -> tuple[torch.Tensor, torch.Tensor]:
    """Float64 log-softmax [N, V] over the whole split by the model's own forward pass, and the labels [N]."""
    ids = torch.from_numpy(corpus.rows(np.arange(len(corpus)))[0])
    mask = document_mask(ids[:, :-1], end_id=corpus.end_id) if corpus.document_mask else None
    logit_BTV = model(ids[:, :-1], attention_mask=mask, use_cache=False).logits
    return logit_BTV.flatten(0, 1).double().log_softmax(dim=-1), ids[:, 1:].flatten()


def test_every_measure_is_its_definition_in_float64(
    student: PreTrainedModel, teacher: PreTrainedModel, heldout: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "CHUNK_POSITIONS", 100)  # not a divisor of anything
    measured = measure_heldout(student, heldout, teacher=teacher, batch_rows=7)
    stats = heldout.split_stats
    record = measured.record(bytes_per_token=stats["bytes"] / stats["tokens"], teacher="pd")
    q_NV, label_N = logprobs(student, heldout)
    p_NV, _ = logprobs(teacher, heldout)
    loss = -float(q_NV.gather(1, label_N[:, None]).mean())
    assert record["rows"] == len(heldout)
    assert record["tokens"] == len(label_N) == len(heldout) * heldout.row_len
    assert record["loss_nats"] == pytest.approx(loss, rel=1e-6)
    assert record["bits_per_byte"] == pytest.approx(loss / math.log(2) * stats["tokens"] / stats["bytes"], rel=1e-6)
    assert record["accuracy"] == pytest.approx(float((q_NV.argmax(dim=1) == label_N).double().mean()), abs=1e-3)
    confidence, correct = q_NV.amax(dim=1).exp().numpy(), (q_NV.argmax(dim=1) == label_N).numpy()
    assert record["ece"] == pytest.approx(expected_calibration_error(confidence, correct), abs=1e-3)
    distance = record["teacher"]
    assert isinstance(distance, dict)
    assert distance["name"] == "pd"
    assert distance["kl_nats"] == pytest.approx(float((p_NV.exp() * (p_NV - q_NV)).sum(dim=1).mean()), rel=1e-4)
    assert distance["loss_nats"] == pytest.approx(-float(p_NV.gather(1, label_N[:, None]).mean()), rel=1e-6)
    agreement = float((p_NV.argmax(dim=1) == q_NV.argmax(dim=1)).double().mean())
    assert 0.02 < agreement < 0.98
    assert distance["agreement"] == pytest.approx(agreement, abs=1e-3)


def test_the_cheap_loss_is_the_same_loss(student: PreTrainedModel, heldout: Corpus) -> None:
    q_NV, label_N = logprobs(student, heldout)
    loss_N = -q_NV.gather(1, label_N[:, None])[:, 0]
    whole = heldout_in_training(in_training(student), heldout, rows=10_000, world=ALONE)
    assert whole["loss_nats"] == pytest.approx(float(loss_N.mean()), rel=1e-6)
    measured = measure_heldout(student, heldout, teacher=None).record(bytes_per_token=1.0, teacher=None)
    assert whole["ece"] == pytest.approx(measured["ece"], rel=1e-5)
    first = cheap(student, heldout, rows=5, batch_rows=2)
    assert first == pytest.approx(float(loss_N[: 5 * heldout.row_len].mean()), rel=1e-6)


def test_the_kl_of_a_model_to_itself_is_0_and_it_agrees_everywhere(student: PreTrainedModel, heldout: Corpus) -> None:
    record = measure_heldout(student, heldout, teacher=student).record(bytes_per_token=3.0, teacher="itself")
    distance = record["teacher"]
    assert isinstance(distance, dict)
    assert (distance["kl_nats"], distance["agreement"]) == (0.0, 1.0)
    assert distance["loss_nats"] == record["loss_nats"]


def test_without_a_teacher_there_is_no_distance(student: PreTrainedModel, heldout: Corpus) -> None:
    assert (
        measure_heldout(student, heldout, teacher=None, rows=2).record(bytes_per_token=3.0, teacher=None)["teacher"]
        is None
    )


def test_the_first_rows_are_measured_when_so_many_are_asked_for(student: PreTrainedModel, heldout: Corpus) -> None:
    seen: list[tuple[int, int]] = []
    few = measure_heldout(
        student, heldout, teacher=None, rows=5, batch_rows=2, on_progress=lambda *done: seen.append(done)
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
    q_NV, label_N = logprobs(student, heldout)
    part = slice(0, 5 * heldout.row_len)
    assert few.loss_sum == pytest.approx(-float(q_NV[part].gather(1, label_N[part, None]).sum()), rel=1e-6)
    assert (few.rows, few.tokens) == (5, 5 * heldout.row_len)


def test_a_masked_corpus_is_measured_with_its_mask(
    student: PreTrainedModel, masked_corpus: Path, heldout: Corpus
) -> None:
    masked = Corpus(masked_corpus, split="held_out")
    q_NV, label_N = logprobs(student, masked)
    loss = -float(q_NV.gather(1, label_N[:, None]).mean())
    assert cheap(student, masked, rows=10_000) == pytest.approx(loss, rel=1e-6)
    measured = measure_heldout(student, masked, teacher=student)
    assert measured.loss_sum / measured.tokens == pytest.approx(loss, rel=1e-6)
    assert abs(loss - cheap(student, heldout, rows=10_000)) > 1e-4


def test_columns_beyond_the_tokenizer_s_words_take_no_mass(student: PreTrainedModel, heldout: Corpus) -> None:
    from copy import deepcopy

    wider = deepcopy(student)
    wider.resize_token_embeddings(heldout.vocab_size + 64, mean_resizing=False)
    with torch.no_grad():
        wider.get_output_embeddings().weight[heldout.vocab_size :] *= 50
    plain, padded = (measure_heldout(model, heldout, teacher=student, rows=4) for model in (student, wider))
    assert padded.loss_sum == pytest.approx(plain.loss_sum, rel=1e-6)
    assert padded.kl_sum == pytest.approx(0.0, abs=1e-3)
    assert cheap(wider, heldout, rows=4) == pytest.approx(plain.loss_sum / plain.tokens, rel=1e-6)
