"""AdamW as written down: decay on matrices alone, the learning rate from outside."""

from __future__ import annotations

import pytest
import torch

from predistill.students.build import build_student, student_config
from predistill.training.optim import adamw, set_lr


class Both(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.matrix = torch.nn.Parameter(torch.randn(3, 4))
        self.gain = torch.nn.Parameter(torch.randn(4))
        self.frozen = torch.nn.Parameter(torch.randn(2, 2), requires_grad=False)


def test_steps_are_those_of_the_definition_in_float64() -> None:
    model, lr, betas, decay = Both(), 0.01, (0.9, 0.95), 0.1
    optimizer = adamw(model, betas=betas, weight_decay=decay)
    set_lr(optimizer, lr)
    names = ("matrix", "gain")
    expected = {name: getattr(model, name).detach().double().clone() for name in names}
    moments = {name: [torch.zeros_like(expected[name]), torch.zeros_like(expected[name])] for name in names}
    for step in range(1, 6):
        for name in names:
            gradient = torch.sin(torch.arange(expected[name].numel()).double() * step).reshape(expected[name].shape)
            getattr(model, name).grad = gradient.float()
            first, second = moments[name]
            first.mul_(betas[0]).add_((1 - betas[0]) * gradient)
            second.mul_(betas[1]).add_((1 - betas[1]) * gradient**2)
            if name == "matrix":
                expected[name] *= 1 - lr * decay
            unbiased = first / (1 - betas[0] ** step), second / (1 - betas[1] ** step)
            expected[name] -= lr * unbiased[0] / (unbiased[1].sqrt() + 1e-8)
        optimizer.step()
    for name in names:
        assert torch.allclose(getattr(model, name).double(), expected[name], atol=1e-6), name


def test_every_trainable_parameter_is_in_one_group() -> None:
    model = build_student(
        student_config("nano-xs", vocab_size=300, row_len=32, end_id=0), seed=0, device=torch.device("cpu")
    )
    optimizer = adamw(model, betas=(0.9, 0.95), weight_decay=0.1)
    matrices, vectors = (group["params"] for group in optimizer.param_groups)
    assert {id(p) for p in matrices} == {id(p) for p in model.parameters() if p.ndim >= 2}
    assert {id(p) for p in vectors} == {id(p) for p in model.parameters() if p.ndim < 2}
    assert len(matrices) + len(vectors) == len(list(model.parameters()))
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    frozen = Both()
    held = [p for group in adamw(frozen, betas=(0.9, 0.95), weight_decay=0.1).param_groups for p in group["params"]]
    assert frozen.frozen not in set(held)


def test_without_a_learning_rate_nothing_moves() -> None:
    model = Both()
    before = model.matrix.detach().clone()
    optimizer = adamw(model, betas=(0.9, 0.95), weight_decay=0.1)
    model.matrix.grad = torch.ones_like(model.matrix)
    optimizer.step()
    assert torch.equal(model.matrix, before)
    set_lr(optimizer, 0.5)
    optimizer.step()
    assert float((model.matrix.detach() - before).abs().max()) == pytest.approx(0.5, rel=0.4)
