"""Held-out measures against float64 sums of the model's own logits; a model is no distance from itself."""

from __future__ import annotations

import math
from collections import Counter
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from predistill.corpus import Corpus
from predistill.evaluation import heldout as room
from predistill.evaluation.calibration import calibration_noise, expected_calibration_error
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


def entropy(logprob_NV: torch.Tensor) -> float:
    """The mean entropy in nats."""
    return -float((logprob_NV.exp() * logprob_NV).sum(dim=1).mean())


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
    assert record["ece_noise"] == pytest.approx(calibration_noise(confidence), rel=1e-4)
    assert record["entropy_nats"] == pytest.approx(entropy(q_NV), rel=1e-6)
    bins = cast("list[dict[str, float]]", record["reliability"])
    assert len(bins) == 15
    assert sum(part["count"] for part in bins) == len(label_N)
    gaps = [part["count"] * abs(part["confidence"] - part["accuracy"]) for part in bins]
    assert sum(gaps) / len(label_N) == pytest.approx(record["ece"], rel=1e-12)
    distance = record["teacher"]
    assert isinstance(distance, dict)
    assert distance["name"] == "pd"
    assert distance["kl_nats"] == pytest.approx(float((p_NV.exp() * (p_NV - q_NV)).sum(dim=1).mean()), rel=1e-4)
    assert distance["reverse_kl_nats"] == pytest.approx(float((q_NV.exp() * (q_NV - p_NV)).sum(dim=1).mean()), rel=1e-4)
    assert distance["reverse_kl_nats"] != pytest.approx(distance["kl_nats"], rel=1e-2)
    assert distance["loss_nats"] == pytest.approx(-float(p_NV.gather(1, label_N[:, None]).mean()), rel=1e-6)
    assert distance["entropy_nats"] == pytest.approx(entropy(p_NV), rel=1e-6)
    assert distance["entropy_gap_nats"] == pytest.approx(entropy(q_NV) - entropy(p_NV), abs=1e-5)
    sure, right = p_NV.amax(dim=1).exp().numpy(), (p_NV.argmax(dim=1) == label_N).numpy()
    assert distance["ece"] == pytest.approx(expected_calibration_error(sure, right), abs=1e-3)
    agreement = float((p_NV.argmax(dim=1) == q_NV.argmax(dim=1)).double().mean())
    assert 0.02 < agreement < 0.98
    assert distance["agreement"] == pytest.approx(agreement, abs=1e-3)


def test_every_breakdown_is_its_definition_in_float64(
    student: PreTrainedModel, teacher: PreTrainedModel, heldout: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "CHUNK_POSITIONS", 100)
    monkeypatch.setattr(room, "CHUNK_TOKENS", 11)  # of the train split: a part that is lost would show
    record = measure_heldout(student, heldout, teacher=teacher, batch_rows=7).record(bytes_per_token=3.0, teacher="pd")
    (q_NV, label_N), (p_NV, _) = logprobs(student, heldout), logprobs(teacher, heldout)
    slow = {
        "loss_nats": -q_NV.gather(1, label_N[:, None])[:, 0],
        "teacher_loss_nats": -p_NV.gather(1, label_N[:, None])[:, 0],
        "kl_nats": (p_NV.exp() * (p_NV - q_NV)).sum(dim=1),
    }
    train = Corpus(heldout.path)
    times = Counter(train.stream(0, train.split_stats["tokens"]).tolist())
    key = {
        "by_position": torch.arange(len(label_N)) % heldout.row_len,
        "by_frequency": torch.tensor([times[label] for label in label_N.tolist()]),
    }
    for name, key_N in key.items():
        parts = cast("list[dict[str, Any]]", record[name])
        assert len(parts) > 3
        for part in parts:
            within_N = (part["from"] <= key_N) & (key_N < part["to"])
            assert part["tokens"] == int(within_N.sum())
            for measure, value_N in slow.items():
                assert part[measure] == pytest.approx(float(value_N[within_N].mean()), rel=1e-4)
    parts = cast("list[dict[str, Any]]", record["by_teacher_entropy"])
    assert len(parts) == 10
    order_N = (-(p_NV.exp() * p_NV).sum(dim=1)).argsort(stable=True)
    for part, within_n in zip(parts, np.array_split(order_N.numpy(), 10), strict=True):
        assert part["tokens"] == len(within_n)
        lowest, highest = (float(-(p_NV[i].exp() * p_NV[i]).sum()) for i in (within_n[0], within_n[-1]))
        assert (part["from"], part["to"]) == pytest.approx((lowest, highest), rel=1e-5)
        for measure, value_N in slow.items():  # two positions at an edge may change places in float32
            assert part[measure] == pytest.approx(float(value_N[within_n].mean()), rel=1e-2)


def test_the_parts_of_each_breakdown_make_the_whole(
    student: PreTrainedModel, teacher: PreTrainedModel, heldout: Corpus
) -> None:
    record = measure_heldout(student, heldout, teacher=teacher).record(bytes_per_token=3.0, teacher="pd")
    distance = cast("dict[str, float]", record["teacher"])
    whole = {
        "loss_nats": record["loss_nats"],
        "teacher_loss_nats": distance["loss_nats"],
        "kl_nats": distance["kl_nats"],
    }
    for name in ("by_position", "by_frequency", "by_teacher_entropy"):
        parts = cast("list[dict[str, Any]]", record[name])
        assert sum(part["tokens"] for part in parts) == record["tokens"]
        for measure, value in whole.items():
            mean = sum(part["tokens"] * part[measure] for part in parts) / cast("int", record["tokens"])
            assert mean == pytest.approx(value, rel=1e-9)


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
    assert (distance["reverse_kl_nats"], distance["entropy_gap_nats"]) == (0.0, 0.0)
    for measure in ("loss_nats", "entropy_nats", "ece"):
        assert distance[measure] == record[measure]


def test_without_a_teacher_there_is_no_distance(student: PreTrainedModel, heldout: Corpus) -> None:
    alone = measure_heldout(student, heldout, teacher=None, rows=2).record(bytes_per_token=3.0, teacher=None)
    taught = measure_heldout(student, heldout, teacher=student, rows=2).record(bytes_per_token=3.0, teacher="itself")
    assert alone["teacher"] is None
    assert alone["by_teacher_entropy"] is None
    for name in ("by_position", "by_frequency"):
        parts = cast("list[dict[str, Any]]", taught.pop(name))
        assert alone.pop(name) == [{**part, "teacher_loss_nats": None, "kl_nats": None} for part in parts]
    del taught["teacher"], taught["by_teacher_entropy"], alone["teacher"], alone["by_teacher_entropy"]
    assert alone == taught


def test_the_first_rows_are_measured_when_so_many_are_asked_for(student: PreTrainedModel, heldout: Corpus) -> None:
    seen: list[tuple[int, int]] = []
    few = measure_heldout(
        student, heldout, teacher=None, rows=5, batch_rows=2, on_progress=lambda *done: seen.append(done)
    )
    assert seen == [(2, 5), (4, 5), (5, 5)]
    q_NV, label_N = logprobs(student, heldout)
    part = slice(0, 5 * heldout.row_len)
    assert few.student.loss_sum == pytest.approx(-float(q_NV[part].gather(1, label_N[part, None]).sum()), rel=1e-6)
    assert (few.rows, few.tokens) == (5, 5 * heldout.row_len)


def test_a_masked_corpus_is_measured_with_its_mask(
    student: PreTrainedModel, masked_corpus: Path, heldout: Corpus
) -> None:
    masked = Corpus(masked_corpus, split="held_out")
    q_NV, label_N = logprobs(student, masked)
    loss = -float(q_NV.gather(1, label_N[:, None]).mean())
    assert cheap(student, masked, rows=10_000) == pytest.approx(loss, rel=1e-6)
    measured = measure_heldout(student, masked, teacher=student)
    assert measured.student.loss_sum / measured.tokens == pytest.approx(loss, rel=1e-6)
    assert abs(loss - cheap(student, heldout, rows=10_000)) > 1e-4


def test_columns_beyond_the_tokenizer_s_words_take_no_mass(student: PreTrainedModel, heldout: Corpus) -> None:
    from copy import deepcopy

    wider = deepcopy(student)
    wider.resize_token_embeddings(heldout.vocab_size + 64, mean_resizing=False)
    with torch.no_grad():
        wider.get_output_embeddings().weight[heldout.vocab_size :] *= 50
    plain, padded = (measure_heldout(model, heldout, teacher=student, rows=4) for model in (student, wider))
    assert padded.student.loss_sum == pytest.approx(plain.student.loss_sum, rel=1e-6)
    for kl in (padded.kl, padded.reverse_kl):
        assert np.concatenate(kl) == pytest.approx(0.0, abs=1e-5)
    assert np.concatenate(padded.student.entropy) == pytest.approx(np.concatenate(plain.student.entropy), rel=1e-5)
    assert cheap(wider, heldout, rows=4) == pytest.approx(plain.student.loss_sum / plain.tokens, rel=1e-6)
