"""The fused head: equal to the objective written densely, exact where that is promised, cheap as cross-entropy."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from predistill.errors import RecipeError
from predistill.objective import (
    KLD,
    MSE,
    NLL,
    AsSampled,
    Ghost,
    Renormalise,
    SparseTargets,
    Static,
    ToLabel,
    TopK,
    TopPK,
    Zero,
    distill_loss,
    linear_distill_loss,
)
from predistill.objective.combine import refusal
from predistill.objective.table import LOSSES, TAILS

TEMPERATURES = (
    Static(value=1.0),
    Static(value=2.0),
    Static(value=0.3),
    Static(value=2.0, sides="both"),
    Static(value=0.5, sides="both"),
)
ALLOWED = [
    pytest.param(loss, tail, temperature, id=f"{loss}-{tail.kind}-{temperature.value}-{temperature.sides}")
    for loss in LOSSES
    for tail in TAILS
    for temperature in TEMPERATURES
    if refusal(loss, tail, temperature) is None
]


def close(found: Tensor, wanted: Tensor, limit: float) -> None:
    scale = wanted.detach().abs().max().clamp(min=1e-3)
    assert torch.isfinite(found).all()
    assert (found.detach() - wanted.detach()).abs().max() <= limit * scale


def capped_logits(problem: Any, *, scale: float, softcap: float | None) -> Tensor:
    logit_NV = scale * (problem.hidden_ND[problem.counted_N] @ problem.weight_VD.T + problem.bias_V)
    return logit_NV if softcap is None else softcap * torch.tanh(logit_NV / softcap)


def dense_total(
    problem: Any, dense: Any, *, loss: Any, tail: Any, temperature: Any, alpha: float, z_loss: float
) -> tuple[Tensor, Tensor, Tensor]:
    """(total, lm, kd) from full distributions."""
    logit_NV = capped_logits(problem, scale=0.7, softcap=4.0)
    counted_N = problem.counted_N
    full_NV = torch.zeros(len(counted_N), logit_NV.shape[1], dtype=torch.float64)
    full_NV[counted_N] = logit_NV
    kd_N = dense(
        full_NV,
        problem.label_N,
        problem,
        loss=loss.kind,
        space=getattr(loss, "space", ""),
        tail=tail.kind,
        tau=temperature.value,
        sides=temperature.sides,
    )
    has_target_N = problem.kept_NV.any(dim=1) & counted_N
    lm_N = torch.zeros(len(counted_N), dtype=torch.float64)
    lm_N[counted_N] = torch.nn.functional.cross_entropy(logit_NV, problem.label_N[counted_N], reduction="none")
    kd_N = torch.where(has_target_N, kd_N, 0.0)
    alpha_N = alpha * has_target_N.double()
    total = ((1 - alpha_N) * lm_N + alpha_N * kd_N).sum() + z_loss * logit_NV.logsumexp(dim=1).square().sum()
    return total, lm_N.sum(), kd_N.sum()


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize(("loss", "tail", "temperature"), ALLOWED)
def test_fused_equals_dense_and_reference_equals_dense(
    problem: Any, dense: Any, tolerance: Any, loss: Any, tail: Any, temperature: Any, alpha: float
) -> None:
    case = problem()
    inputs = (case.hidden_ND, case.weight_VD, case.bias_V)
    choices = {"loss": loss, "tail": tail, "temperature": temperature, "alpha": alpha, "z_loss": 1e-2}
    targets = case.sampled if tail.kind == "as_sampled" else case.targets
    total, lm, kd = dense_total(case, dense, loss=loss, tail=tail, temperature=temperature, alpha=alpha, z_loss=1e-2)
    wanted = torch.autograd.grad(total, inputs)

    fused = linear_distill_loss(
        case.hidden_ND,
        case.weight_VD,
        case.label_N,
        targets,
        chunk_tokens=5,
        bias_V=case.bias_V,
        logit_scale=0.7,
        softcap=4.0,
        **choices,
    )
    logit_NV = torch.full((len(case.label_N), len(case.weight_VD)), float("nan"), dtype=torch.float64)
    logit_NV = logit_NV.index_put((case.counted_N,), capped_logits(case, scale=0.7, softcap=4.0))
    reference = distill_loss(logit_NV, case.label_N, targets, **choices)
    for parts in (fused, reference):
        close(parts.total, total, tolerance.float64)
        close(parts.lm, lm, tolerance.float64)
        assert int(parts.count) == 22
        if alpha == 0:
            assert parts.kd is None
            assert int(parts.kd_count) == 0
        else:
            assert parts.kd is not None
            close(parts.kd, kd, tolerance.float64)
            assert int(parts.kd_count) == 21
        for found, gradient in zip(torch.autograd.grad(parts.total, inputs), wanted, strict=True):
            close(found, gradient, tolerance.float64)
    if alpha != 0:
        close(fused.kl, reference.kl, tolerance.float64)


def test_the_table_of_combinations_reaches_every_loss_and_every_tail() -> None:
    assert len(ALLOWED) > 25
    assert {type(case.values[0]) for case in ALLOWED} == {NLL, KLD, MSE}
    assert {type(case.values[1]) for case in ALLOWED} == {Renormalise, Zero, ToLabel, Ghost, AsSampled}


@pytest.mark.parametrize(("loss", "tail", "temperature"), ALLOWED)
def test_the_gradient_is_the_finite_difference_of_the_returned_loss(
    problem: Any, tolerance: Any, loss: Any, tail: Any, temperature: Any
) -> None:
    case = problem()
    targets = case.sampled if tail.kind == "as_sampled" else case.targets

    def total(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
        return linear_distill_loss(
            hidden_ND,
            weight_VD,
            case.label_N,
            targets,
            alpha=0.8,
            loss=loss,
            tail=tail,
            temperature=temperature,
            softcap=6.0,
            z_loss=1e-2,
        ).total

    inputs = (case.hidden_ND, case.weight_VD)
    gradients = torch.autograd.grad(total(*inputs), inputs)
    generator = torch.Generator().manual_seed(2)
    directions = [torch.randn(x.shape, dtype=torch.float64, generator=generator) for x in inputs]
    step = 1e-5
    with torch.no_grad():
        ahead, behind = (total(*(x + s * d for x, d in zip(inputs, directions, strict=True))) for s in (step, -step))
    slope = sum((g * d).sum() for g, d in zip(gradients, directions, strict=True))
    assert isinstance(slope, Tensor)
    close(slope, (ahead - behind) / (2 * step), tolerance.finite_difference)


def test_kl_is_the_divergence_at_temperature_one_whatever_is_optimised(
    problem: Any, dense: Any, tolerance: Any
) -> None:
    case = problem()
    parts = linear_distill_loss(
        case.hidden_ND, case.weight_VD, case.label_N, case.targets, alpha=0.5, loss=MSE(), temperature=Static(value=2.0)
    )
    logit_NV = case.hidden_ND @ case.weight_VD.T
    kl_N = dense(logit_NV, case.label_N, case, loss="kld", space="", tail="renormalise", tau=1.0, sides="teacher")
    close(parts.kl, kl_N[case.counted_N & case.kept_NV.any(dim=1)].sum(), tolerance.float64)


# Exactness


def fp32_case(problem: Any, **sizes: int) -> Any:
    case = problem(dtype=torch.float32, **sizes)
    tensors = {name: getattr(case.targets, name).float() for name in ("logprob_NK", "log_rest_N")}
    case.targets = dataclasses.replace(case.targets, **tensors)
    return case


def outcome(case: Any, targets: SparseTargets | None, **choices: Any) -> tuple[Tensor, ...]:
    parts = linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, targets, bias_V=case.bias_V, **choices)
    return parts.total, parts.lm, *torch.autograd.grad(parts.total, (case.hidden_ND, case.weight_VD, case.bias_V))


@pytest.mark.parametrize("alpha", [0, 0.0, torch.tensor(0.0)])
@pytest.mark.parametrize("tail", [Renormalise(), Ghost()], ids=lambda tail: tail.kind)
def test_alpha_zero_is_the_lm_run_to_the_bit(problem: Any, alpha: Any, tail: Any) -> None:
    case = fp32_case(problem)
    for found, wanted in zip(outcome(case, case.targets, alpha=alpha, tail=tail), outcome(case, None), strict=True):
        assert torch.equal(found, wanted)


def test_a_position_without_a_target_counts_its_lm_loss_in_full(problem: Any) -> None:
    case = fp32_case(problem)
    nobody = dataclasses.replace(case.targets, ids_NK=torch.full_like(case.targets.ids_NK, -1))
    for found, wanted in zip(outcome(case, nobody, alpha=0.9), outcome(case, None), strict=True):
        assert torch.equal(found, wanted)


def test_a_tensor_alpha_is_the_number(problem: Any) -> None:
    case = problem()
    number = outcome(case, case.targets, alpha=0.25)
    tensor = outcome(case, case.targets, alpha=torch.tensor(0.25))
    assert all(torch.equal(a, b) for a, b in zip(number, tensor, strict=True))


def test_the_same_call_twice_gives_the_same_bits(problem: Any) -> None:
    case = fp32_case(problem)
    first, second = (outcome(case, case.targets, alpha=0.9, temperature=Static(value=2.0)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("tail", [Renormalise(), Ghost()], ids=lambda tail: tail.kind)
def test_the_chunk_size_does_not_matter(problem: Any, tolerance: Any, tail: Any) -> None:
    case = problem()
    whole = outcome(case, case.targets, alpha=0.9, tail=tail)
    for chunk_tokens in (1, 7, 22, 1000):
        found = outcome(case, case.targets, alpha=0.9, tail=tail, chunk_tokens=chunk_tokens)
        for a, b in zip(found, whole, strict=True):
            close(a, b, tolerance.float64)


def test_everything_kept_is_no_truncation(tolerance: Any) -> None:
    generator = torch.Generator().manual_seed(3)
    teacher_NV = 2 * torch.randn(17, 31, generator=generator)
    student_NV = torch.randn(17, 31, generator=generator)
    label_N = torch.randint(31, (17,), generator=generator)
    wanted = torch.nn.functional.kl_div(
        student_NV.double().log_softmax(1), teacher_NV.double().log_softmax(1), log_target=True, reduction="sum"
    )
    for truncation in (TopK(k=31), TopK(k=1000), TopPK(p=1.0, k=31)):
        targets = truncation(teacher_NV)
        for tail in (Renormalise(), Zero(), ToLabel(), Ghost()):
            kd = linear_distill_loss(student_NV, torch.eye(31), label_N, targets, alpha=1.0, tail=tail).kd
            assert kd is not None
            close(kd.double(), wanted, tolerance.float32_value * 5)


def test_autocast_around_the_head_changes_nothing(problem: Any) -> None:
    case = fp32_case(problem)
    wanted = outcome(case, case.targets, alpha=0.9)
    with torch.autocast("cpu", torch.bfloat16):
        found = outcome(case, case.targets, alpha=0.9)
    assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


# Backward


def test_an_upstream_scalar_multiplies_the_gradient_and_backward_may_run_twice(problem: Any, tolerance: Any) -> None:
    case = problem()
    inputs = (case.hidden_ND, case.weight_VD, case.bias_V)
    parts = linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, case.targets, bias_V=case.bias_V)
    once = torch.autograd.grad(parts.total, inputs, retain_graph=True)
    loss = parts.total / 7
    loss.backward(retain_graph=True)
    loss.backward()
    for value, gradient in zip(inputs, once, strict=True):
        close(value.grad, gradient * 2 / 7, tolerance.float64)


def test_gradients_accumulate_over_micro_batches_to_those_of_the_whole(problem: Any, tolerance: Any) -> None:
    case = problem()
    whole = outcome(case, case.targets, alpha=0.9)[2:]
    for rows in (slice(0, 9), slice(9, None)):
        linear_distill_loss(
            case.hidden_ND[rows],
            case.weight_VD,
            case.label_N[rows],
            case.targets.select(rows),
            alpha=0.9,
            bias_V=case.bias_V,
        ).total.backward()
    for value, gradient in zip((case.hidden_ND, case.weight_VD, case.bias_V), whole, strict=True):
        close(value.grad, gradient, tolerance.float64)


@pytest.mark.parametrize("trainable", ["hidden_ND", "weight_VD", "bias_V"])
def test_one_operand_alone_may_be_trainable(problem: Any, trainable: str) -> None:
    case = problem()
    wanted = torch.autograd.grad(
        linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, case.targets, bias_V=case.bias_V).total,
        getattr(case, trainable),
    )[0]
    for name in ("hidden_ND", "weight_VD", "bias_V"):
        getattr(case, name).requires_grad_(name == trainable)
    parts = linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, case.targets, bias_V=case.bias_V)
    assert torch.equal(torch.autograd.grad(parts.total, getattr(case, trainable))[0], wanted)


def test_without_gradients_the_numbers_are_the_same(problem: Any) -> None:
    case = problem()
    with_gradient = linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, case.targets, alpha=0.6)
    with torch.no_grad():
        without = linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, case.targets, alpha=0.6)
    assert not without.total.requires_grad
    for name in ("total", "lm", "kd", "kl", "count", "kd_count"):
        assert torch.equal(getattr(with_gradient, name).detach(), getattr(without, name))


def test_only_total_has_a_gradient(problem: Any) -> None:
    case = problem()
    parts = linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, case.targets)
    assert parts.total.requires_grad
    assert not any(part is not None and part.requires_grad for part in (parts.lm, parts.kd, parts.kl))


def test_what_does_not_count_is_never_read(problem: Any) -> None:
    case = problem()
    assert case.hidden_ND[1].isnan().all()
    _, _, grad_ND, grad_VD, _ = outcome(case, case.targets, alpha=0.5)
    assert (grad_ND[1] == 0).all()
    assert torch.isfinite(grad_VD).all()


@pytest.mark.parametrize("with_targets", [True, False])
@pytest.mark.parametrize("counted", [0, 3])
def test_no_positions_and_no_counted_positions_give_zeros(with_targets: bool, counted: int) -> None:
    hidden_ND = torch.zeros(counted, 4, requires_grad=True)
    weight_VD = torch.ones(6, 4, requires_grad=True)
    ids_NK = torch.zeros(counted, 1, dtype=torch.int64)
    targets = SparseTargets(ids_NK, logprob_NK=torch.zeros(counted, 1), log_rest_N=torch.zeros(counted))
    label_N = torch.full((counted,), -100)
    parts = linear_distill_loss(hidden_ND, weight_VD, label_N, targets if with_targets else None)
    parts.total.backward()
    assert float(parts.total.detach()) == int(parts.count) == int(parts.kd_count) == 0
    assert weight_VD.grad is not None
    assert not weight_VD.grad.any()


# Cost


class Calls(TorchDispatchMode):
    """Which operators ran, and how large a tensor each one made."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        first = out[0] if isinstance(out, tuple) else out
        self.seen.append((str(func.overloadpacket), first.numel() if isinstance(first, Tensor) else 0))
        return out


def calls_of(case: Any, targets: SparseTargets | None, **choices: Any) -> list[tuple[str, int]]:
    with Calls() as calls:
        linear_distill_loss(
            case.hidden_ND, case.weight_VD, case.label_N, targets, chunk_tokens=8, **choices
        ).total.backward()
    return calls.seen


def test_distillation_costs_the_three_products_of_the_lm_loss_and_as_many_passes_over_the_vocabulary(
    problem: Any,
) -> None:
    case = problem(positions=25, vocabulary=4096, width=2, dtype=torch.float32)  # 24 counted: three chunks of 8
    case.targets = TopPK(p=0.9, k=20)(case.p_NV.log())
    products = ("aten.mm", "aten.addmm", "aten.addmm_", "aten.bmm")
    for targets in (None, case.targets):
        seen = calls_of(case, targets, alpha=0.9, temperature=Static(value=2.0))
        assert len([name for name, _ in seen if name in products]) == 3 * 3
        assert max(size for _, size in seen) == 8 * 4096
    wide = [
        sum(size == 8 * 4096 and name not in ("slice", "t", "transpose") for name, size in calls_of(case, targets))
        for targets in (None, case.targets)
    ]
    assert wide[0] == wide[1] > 0


# Precision


def error(found: Tensor, wanted: Tensor) -> float:
    return float((found.double() - wanted).norm() / wanted.norm())


def near_student(*, spread: float, offset: float = 0.0) -> tuple[Tensor, Tensor, Tensor, SparseTargets]:
    """A student whose logits are the teacher's plus noise: (hidden, weight, label, targets)."""
    generator = torch.Generator().manual_seed(4)
    weight_VD = torch.randn(512, 16, generator=generator)
    hidden_ND = torch.randn(64, 16, generator=generator)
    teacher_NV = hidden_ND @ weight_VD.T
    targets = TopPK(p=0.95, k=50)(teacher_NV)
    noise_ND = spread * torch.randn(64, 16, generator=generator)
    label_N = torch.randint(512, (64,), generator=generator)
    return hidden_ND + noise_ND + offset, weight_VD, label_N, targets


def gradient_errors(
    hidden_ND: Tensor, weight_VD: Tensor, label_N: Tensor, targets: SparseTargets, **choices: Any
) -> list[float]:
    """Relative errors of both gradients against float64 on the same numbers."""
    gradients = []
    for dtype in (hidden_ND.dtype, torch.float64):
        inputs = [x.detach().to(dtype).requires_grad_() for x in (hidden_ND, weight_VD)]
        parts = linear_distill_loss(*inputs, label_N, targets, **choices)
        gradients.append(torch.autograd.grad(parts.total, inputs))
    return [error(found, wanted) for found, wanted in zip(*gradients, strict=True)]


@pytest.mark.parametrize("tail", [Renormalise(), Ghost()], ids=lambda tail: tail.kind)
@pytest.mark.parametrize("spread", [1.0, 0.02])
def test_float32_gradients_hold_near_convergence(tolerance: Any, tail: Any, spread: float) -> None:
    """Random logits cannot show the cancellation in q - t; a student that is nearly there does."""
    case = near_student(spread=spread)
    kd = linear_distill_loss(*case, alpha=1.0, tail=tail).kd
    assert kd is not None
    assert (float(kd) / 64 < 0.2) == (spread < 1)
    assert max(gradient_errors(*case, alpha=1.0, tail=tail)) < tolerance.float32_gradient


@pytest.mark.parametrize("tail", [Renormalise(), Ghost()], ids=lambda tail: tail.kind)
def test_bfloat16_operands_keep_their_gradient(tolerance: Any, tail: Any) -> None:
    hidden_ND, weight_VD, label_N, targets = near_student(spread=0.05)
    errors = gradient_errors(hidden_ND.bfloat16(), weight_VD.bfloat16(), label_N, targets, alpha=1.0, tail=tail)
    assert max(errors) < tolerance.bfloat16_gradient


def test_a_large_common_offset_of_the_logits_changes_nothing(tolerance: Any) -> None:
    hidden_ND, weight_VD, label_N, targets = near_student(spread=0.5)
    weight_VD[:, 0] = 1.0
    moved_ND = hidden_ND.clone()
    moved_ND[:, 0] += (
        4096.0  # exactly representable sums would be asking too much: compare with float64 on these numbers
    )
    assert max(gradient_errors(moved_ND, weight_VD, label_N, targets, alpha=0.7)) < 100 * tolerance.float32_gradient
    found = linear_distill_loss(moved_ND, weight_VD, label_N, targets, alpha=0.7)
    wanted = linear_distill_loss(moved_ND.double(), weight_VD.double(), label_N, targets, alpha=0.7)
    close(found.total.double(), wanted.total, 1e-3)


@pytest.mark.parametrize("sure", [20.0, 60.0, 200.0])
def test_a_sure_student_has_a_finite_and_right_ghost_loss(tolerance: Any, sure: float) -> None:
    """1 - sum q is 0 in float32 here; the mass outside the kept ids is not."""
    logit_NV = torch.zeros(2, 8)
    logit_NV[:, 3] = sure
    targets = SparseTargets(
        torch.tensor([[3, 5], [3, 5]]),
        logprob_NK=torch.tensor([[0.8, 0.1]] * 2).log(),
        log_rest_N=torch.tensor([0.1, 0.1]).log(),
    )
    label_N = torch.tensor([3, 0])
    parts = linear_distill_loss(logit_NV, torch.eye(8), label_N, targets, alpha=1.0, tail=Ghost())
    wanted = 2 * (0.8 * -0.2231435513 + 0.1 * (-2.302585093 + sure) + 0.1 * (-2.302585093 + sure - 1.791759469))
    assert parts.kd is not None
    assert float(parts.kd) == pytest.approx(wanted, rel=tolerance.float32_value * 5)
    assert max(gradient_errors(logit_NV, torch.eye(8), label_N, targets, alpha=1.0, tail=Ghost())) < 1e-5


def test_a_sure_and_right_student_has_the_float64_gradient(tolerance: Any) -> None:
    """A read-modify-write of softmax - 1 in a narrow buffer loses all of it (Liger #1329)."""
    logit_NV = torch.zeros(3, 64)
    logit_NV[:, 7] = torch.tensor([6.0, 9.0, 12.0])
    label_N = torch.tensor([7, 7, 7])
    targets = TopK(k=5)(logit_NV + torch.randn(3, 64, generator=torch.Generator().manual_seed(5)))
    assert max(gradient_errors(logit_NV, torch.eye(64), label_N, targets, alpha=0.5)) < 5 * tolerance.float32_gradient


# Refusals


def test_a_teacher_of_another_vocabulary_is_refused() -> None:
    targets = TopK(k=5)(torch.zeros(2, 40))
    targets = dataclasses.replace(targets, ids_NK=targets.ids_NK + 30)
    with pytest.raises(RecipeError, match=r"token id 34.* 32 ids.*tokenizer"):
        linear_distill_loss(torch.zeros(2, 4), torch.zeros(32, 4), torch.zeros(2, dtype=torch.int64), targets)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tail": AsSampled()}, "sampled targets only"),
        ({"tail": Ghost(), "temperature": Static(value=2.0)}, "tempered mass"),
        ({"alpha": 1.5}, "between 0 and 1"),
        ({"alpha": float("nan")}, "between 0 and 1"),
    ],
)
def test_what_does_not_go_together_is_refused(problem: Any, change: dict[str, Any], message: str) -> None:
    case = problem()
    with pytest.raises(RecipeError, match=message):
        linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, case.targets, **change)


def test_sampled_targets_go_with_their_own_tail_only(problem: Any) -> None:
    case = problem()
    with pytest.raises(RecipeError, match="use tail as_sampled"):
        linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, case.sampled)


def test_kld_of_sampled_targets_needs_the_entropy_and_nll_does_not(problem: Any) -> None:
    case = problem()
    bare = dataclasses.replace(case.sampled, entropy_N=None)
    with pytest.raises(RecipeError, match="Use loss nll"):
        linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, bare, tail=AsSampled())
    parts = linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, bare, loss=NLL(), tail=AsSampled())
    assert parts.kl is None
    assert parts.kd is not None


def test_one_target_too_many_is_refused(problem: Any) -> None:
    case = problem()
    with pytest.raises(RecipeError, match="23 targets for 22 labels"):
        linear_distill_loss(case.hidden_ND[:22], case.weight_VD, case.label_N[:22], case.targets)
