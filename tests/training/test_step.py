"""One step is the gradient of the mean over counted labels, whatever the micro-batches; against plain autograd."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, Qwen3MoeConfig

from predistill.corpus import Corpus
from predistill.objective import KLD, All, Renormalise, SparseTargets, Static, TopPK
from predistill.store import Store
from predistill.students.build import build_student, student_config
from predistill.teachers.stored import StoredTeacher
from predistill.training.optim import adamw, set_lr
from predistill.training.step import MicroBatch, Objective, StepResult, train_step
from tests.made import ALONE, in_training

CPU = torch.device("cpu")
OBJECTIVE = Objective(KLD(), Static(), Renormalise(), All())
ALPHA = 0.7
ROWS = np.array([3, 50, 9, 17, 60, 2])


class Recorded(torch.optim.SGD):
    """Keeps the gradients that it was asked to follow, and follows none."""

    @torch.no_grad()
    def step(self, closure: object = None) -> None:  # type: ignore[override]
        assert closure is None
        self.seen = [p.grad.clone() for group in self.param_groups for p in group["params"] if p.grad is not None]


def student(corpus: Path, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    opened = Corpus(corpus)
    config = student_config("nano-xs", vocab_size=opened.vocab_size, row_len=opened.row_len, end_id=opened.end_id)
    return build_student(config, seed=0, device=CPU).to(dtype).train()  # type: ignore[return-value]


def micro_batches(corpus: Path, store: Path, rows: np.ndarray, size: int) -> list[MicroBatch]:
    opened = Corpus(corpus)
    teacher = StoredTeacher(Store(store), truncation=TopPK(p=0.95, k=100), device=CPU)
    batches = []
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        ids, _ = opened.rows(part)
        label_BT = torch.from_numpy(ids[:, 1:].copy())
        label_BT[part == 50, :40] = -100  # labels that do not count, unevenly spread over the micro-batches
        batches.append(MicroBatch(torch.from_numpy(ids), label_BT, teacher.targets(part, ids)))
    return batches


def gradients(
    corpus: Path, store: Path, rows: np.ndarray, size: int, clip: float | None = None
) -> tuple[StepResult, list[torch.Tensor]]:
    model = student(corpus)
    optimizer = Recorded(model.parameters(), lr=0.0)
    result = train_step(
        in_training(model),
        optimizer,
        micro_batches(corpus, store, rows, size),
        objective=OBJECTIVE,
        alpha=ALPHA,
        clip=clip,
        world=ALONE,
    )
    assert all(p.grad is None for p in model.parameters())
    return result, optimizer.seen


def mean_loss_float64(model: PreTrainedModel, batch: MicroBatch) -> torch.Tensor:
    """Mean over counted labels of (1 - alpha) * -log q(label) + alpha * KL(renormalised target || q)."""
    targets: SparseTargets = batch.targets  # type: ignore[assignment]
    assert targets.logprob_NK is not None
    logprob_NV = model(batch.ids_BT1[:, :-1]).logits.flatten(0, 1).log_softmax(dim=-1)
    label_N = batch.label_BT.flatten()
    target_NK = targets.logprob_NK.double().masked_fill(targets.ids_NK < 0, -torch.inf).softmax(dim=1)
    student_NK = logprob_NV.gather(1, targets.ids_NK.clamp(min=0))
    entropy_NK = torch.special.entr(target_NK)
    kd_N = -(entropy_NK + target_NK * student_NK).sum(dim=1)
    lm_N = -logprob_NV.gather(1, label_N.clamp(min=0)[:, None])[:, 0]
    counted_N = label_N != -100
    return ((1 - ALPHA) * lm_N + ALPHA * kd_N)[counted_N].sum() / counted_N.sum()


def test_the_gradient_is_that_of_the_mean_over_counted_labels_by_plain_autograd(corpus: Path, store: Path) -> None:
    model = student(corpus, torch.float64)
    (whole,) = micro_batches(corpus, store, ROWS, len(ROWS))
    loss = mean_loss_float64(model, whole)
    loss.backward()
    result, ours = gradients(corpus, store, ROWS, 2)
    assert result.total / result.count == pytest.approx(loss.item(), rel=1e-5)
    expected = [p.grad for p in model.parameters()]
    assert len(ours) == len(expected) > 10
    for gradient, exact in zip(ours, expected, strict=True):
        assert exact is not None
        assert float((gradient - exact).norm() / exact.norm()) < 1e-4


@pytest.mark.parametrize("size", [1, 2, 4])
def test_micro_batches_change_the_gradient_by_rounding_only(corpus: Path, store: Path, size: int) -> None:
    result, ours = gradients(corpus, store, ROWS, size)
    whole, expected = gradients(corpus, store, ROWS, len(ROWS))
    assert (result.count, result.kd_count) == (whole.count, whole.kd_count) == (6 * 64 - 40, 6 * 64 - 40)
    for name in ("total", "lm", "kd", "kl", "grad_norm"):
        assert getattr(result, name) == pytest.approx(getattr(whole, name), rel=1e-5), name
    for a, b in zip(ours, expected, strict=True):
        assert float((a - b).abs().max()) < 1e-5
    assert max(float(b.abs().max()) for b in expected) > 1e-2


def test_the_order_of_rows_changes_the_gradient_by_rounding_only(corpus: Path, store: Path) -> None:
    _, ours = gradients(corpus, store, ROWS[::-1].copy(), 2)
    _, expected = gradients(corpus, store, ROWS, 2)
    for a, b in zip(ours, expected, strict=True):
        assert float((a - b).abs().max()) < 1e-5


def test_the_norm_is_measured_before_it_is_clipped(corpus: Path, store: Path) -> None:
    free, unclipped = gradients(corpus, store, ROWS, 6)
    norm = float(torch.stack([g.double().square().sum() for g in unclipped]).sum().sqrt())
    assert free.grad_norm == pytest.approx(norm, rel=1e-5)
    clipped, ours = gradients(corpus, store, ROWS, 6, clip=norm / 4)
    assert clipped.grad_norm == pytest.approx(norm, rel=1e-5)
    assert float(torch.stack([g.double().square().sum() for g in ours]).sum().sqrt()) == pytest.approx(
        norm / 4, rel=1e-3
    )


def test_a_window_without_a_counted_label_changes_nothing(corpus: Path) -> None:
    model = student(corpus)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = adamw(model, betas=(0.9, 0.95), weight_decay=0.0)
    set_lr(optimizer, 0.1)
    ids = torch.zeros(1, 65, dtype=torch.long)
    result = train_step(
        in_training(model),
        optimizer,
        [MicroBatch(ids, torch.full((1, 64), -100), None)],
        objective=OBJECTIVE,
        alpha=0.0,
        clip=1.0,
        world=ALONE,
    )
    assert (result.count, result.total) == (0, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_step_that_is_not_finite_is_not_taken(corpus: Path, store: Path) -> None:
    model = student(corpus)
    with torch.no_grad():
        model.base_model.norm.weight[0] = torch.nan
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = adamw(model, betas=(0.9, 0.95), weight_decay=0.0)
    set_lr(optimizer, 0.1)
    result = train_step(
        in_training(model), optimizer, micro_batches(corpus, store, ROWS, 6), objective=OBJECTIVE, alpha=0.5, clip=1.0,
        world=ALONE,
    )  # fmt: skip
    assert not result.updated
    assert math.isnan(result.total)
    assert not optimizer.state
    assert all(torch.equal(a, b) or bool(a.isnan().any()) for a, b in zip(before, model.parameters(), strict=True))


def test_a_step_that_is_left_out_is_measured_and_not_taken(corpus: Path, store: Path) -> None:
    model = student(corpus)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    result = train_step(
        in_training(model), optimizer, micro_batches(corpus, store, ROWS, 6), objective=OBJECTIVE, alpha=0.5, clip=1.0,
        world=ALONE, update=False, asked=lambda: True,
    )  # fmt: skip
    assert (result.updated, result.asked) == (False, 1)
    assert result.total > 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_routers_loss_is_a_mean_over_the_labels_of_the_window(corpus: Path, store: Path) -> None:
    opened = Corpus(corpus)
    config = Qwen3MoeConfig(
        vocab_size=opened.vocab_size, hidden_size=32, intermediate_size=64, moe_intermediate_size=32,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, head_dim=16, num_experts=4,
        num_experts_per_tok=2, router_aux_loss_coef=0.5,
    )  # fmt: skip
    model = build_student(config, seed=0, device=CPU).train()
    (batch,) = micro_batches(corpus, store, ROWS, 6)
    own = model(input_ids=batch.ids_BT1[:, :-1], output_router_logits=True, labels=batch.ids_BT1[:, :-1]).aux_loss
    optimizer = Recorded(model.parameters(), lr=0.0)
    result = train_step(in_training(model), optimizer, [batch], objective=OBJECTIVE, alpha=0.0, clip=None, world=ALONE)
    assert own > 0.1
    assert (result.total - result.lm) / result.count == pytest.approx(0.5 * own.item(), rel=1e-5)
