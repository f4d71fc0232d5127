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
    JSD,
    KLD,
    MSE,
    NLL,
    All,
    AsSampled,
    Decoupled,
    DropLowTeacherEntropy,
    Full,
    Ghost,
    NormKD,
    Renormalise,
    ReverseKLD,
    SparseTargets,
    Static,
    StdScaled,
    ToLabel,
    TopK,
    TopPK,
    TopStudentEntropy,
    Uniform,
    Zero,
    chunks,
    distill_loss,
    head,
    linear_distill_loss,
)
from predistill.objective.combine import needs_all
from tests.objective.cases import ALLOWED, POSITIONS, ROW_LEN, close, fp32_case, outcome


def capped_logits(problem: Any, *, scale: float, softcap: float | None) -> Tensor:
    logit_NV = scale * (problem.hidden_ND[problem.counted_N] @ problem.weight_VD.T + problem.bias_V)
    return logit_NV if softcap is None else softcap * torch.tanh(logit_NV / softcap)


def dense_total(
    problem: Any,
    dense: Any,
    dense_positions: Any,
    kept_NV: Tensor,
    *,
    positions: Any,
    alpha: float,
    z_loss: float,
    **parts: Any,
) -> tuple[Tensor, Tensor, Tensor, int]:
    """(total, lm, kd, how many distil) from full distributions."""
    logit_NV = capped_logits(problem, scale=0.7, softcap=4.0)
    counted_N = problem.counted_N
    full_NV = torch.zeros(len(counted_N), logit_NV.shape[1], dtype=torch.float64).index_put((counted_N,), logit_NV)
    kd_N = dense(full_NV, problem.label_N, problem, kept_NV, **parts)
    distil_N = dense_positions(positions, kept_NV.any(dim=1) & counted_N, full_NV, problem)
    lm_N = torch.zeros(len(counted_N), dtype=torch.float64)
    lm_N[counted_N] = torch.nn.functional.cross_entropy(logit_NV, problem.label_N[counted_N], reduction="none")
    kd_N = torch.where(distil_N, kd_N, 0.0)
    alpha_N = alpha * distil_N.double()
    total = ((1 - alpha_N) * lm_N + alpha_N * kd_N).sum() + z_loss * logit_NV.logsumexp(dim=1).square().sum()
    return total, lm_N.sum(), kd_N.sum(), int(distil_N.sum())


@pytest.mark.parametrize("alpha", [0.3, 1.0])
@pytest.mark.parametrize("positions", POSITIONS, ids=lambda positions: positions.kind)
@pytest.mark.parametrize(("loss", "tail", "temperature"), ALLOWED)
def test_fused_equals_dense_and_reference_equals_dense(
    problem: Any,
    dense: Any,
    dense_positions: Any,
    targets_for: Any,
    tolerance: Any,
    loss: Any,
    tail: Any,
    temperature: Any,
    positions: Any,
    alpha: float,
) -> None:
    case = problem()
    inputs = (case.hidden_ND, case.weight_VD, case.bias_V)
    targets, kept_NV = targets_for(case, tail, temperature)
    choices = {
        "loss": loss, "tail": tail, "temperature": temperature, "positions": positions, "alpha": alpha, "z_loss": 1e-2,
    }  # fmt: skip
    total, lm, kd, distilled = dense_total(case, dense, dense_positions, kept_NV, **choices)
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
        row_len=ROW_LEN,
        **choices,
    )
    logit_NV = torch.full((len(case.label_N), len(case.weight_VD)), float("nan"), dtype=torch.float64)
    logit_NV = logit_NV.index_put((case.counted_N,), capped_logits(case, scale=0.7, softcap=4.0))
    reference = distill_loss(logit_NV, case.label_N, targets, row_len=ROW_LEN, **choices)
    for parts in (fused, reference):
        close(parts.total, total, tolerance.float64)
        close(parts.lm, lm, tolerance.float64)
        assert parts.kd is not None
        close(parts.kd, kd, tolerance.float64)
        assert int(parts.count) == 23
        assert int(parts.kd_count) == distilled
        for found, gradient in zip(torch.autograd.grad(parts.total, inputs), wanted, strict=True):
            close(found, gradient, tolerance.float64)
    close(fused.kl, reference.kl, tolerance.float64)


def test_the_table_of_combinations_reaches_every_loss_and_every_tail() -> None:
    assert len(ALLOWED) > 100
    assert {type(case.values[0]) for case in ALLOWED} == {NLL, KLD, ReverseKLD, JSD, MSE}
    tails = {Renormalise, Ghost, ToLabel, Uniform, Zero, Decoupled, AsSampled}
    assert {type(case.values[1]) for case in ALLOWED} == tails


@pytest.mark.parametrize(("loss", "tail", "temperature"), ALLOWED)
def test_the_gradient_is_the_finite_difference_of_the_returned_loss(
    problem: Any,
    targets_for: Any,
    tolerance: Any,
    loss: Any,
    tail: Any,
    temperature: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    case = problem()
    targets, _ = targets_for(case, tail, temperature)
    if temperature.kind == "norm_kd":  # the student's deviation is a constant of the gradient: let it be one
        deviation_N = 2 + torch.arange(case.counted_N.sum(), dtype=torch.float64) / 10
        monkeypatch.setattr(chunks, "deviation", lambda *_, **__: deviation_N)

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
    kl_N = dense(logit_NV, case.label_N, case, case.kept_NV, loss=KLD(), tail=Renormalise(), temperature=Static())
    close(parts.kl, kl_N[case.counted_N & case.kept_NV.any(dim=1)].sum(), tolerance.float64)


# Exactness


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


@pytest.mark.parametrize("vocab_size", [29, 26])
def test_rows_beyond_the_vocabulary_are_as_if_they_were_not_there(problem: Any, vocab_size: int) -> None:
    case = problem()
    padding_PD = torch.randn(29 - vocab_size + 3, 5, generator=torch.Generator().manual_seed(9)).double()
    wide_VD = torch.cat((case.weight_VD.detach()[:vocab_size], padding_PD)).requires_grad_()
    bias_V = torch.cat((case.bias_V.detach()[:vocab_size], padding_PD[:, 0]))
    label_N = case.label_N.clamp(max=vocab_size - 1)
    targets = TopK(k=6)(case.p_NV[:, :vocab_size].log())
    for tail in (Renormalise(), Ghost(), Uniform()):
        choices = {"alpha": 0.6, "tail": tail}
        found = linear_distill_loss(
            case.hidden_ND, wide_VD, label_N, targets, vocab_size=vocab_size, bias_V=bias_V, **choices
        )
        wanted = linear_distill_loss(
            case.hidden_ND, wide_VD[:vocab_size], label_N, targets, bias_V=bias_V[:vocab_size], **choices
        )
        assert torch.equal(found.total, wanted.total)
        gradient, right = (torch.autograd.grad(parts.total, wide_VD)[0] for parts in (found, wanted))
        assert torch.equal(gradient, right)
        assert not gradient[vocab_size:].any()
        logit_NV = (case.hidden_ND @ wide_VD.T + bias_V).detach()
        reference = distill_loss(logit_NV, label_N, targets, vocab_size=vocab_size, **choices)
        assert torch.allclose(reference.total, wanted.total)


def test_dense_targets_are_top_v_targets_whatever_the_objective(problem: Any, tolerance: Any) -> None:
    case = problem()
    logit_NV = case.p_NV.clamp(min=1e-6).log().float()
    full, top = Full()(logit_NV), TopK(k=29)(logit_NV)
    for loss, tail, temperature in (values for case_ in ALLOWED if (values := case_.values)):
        if tail.kind == "as_sampled" or needs_all(tail, temperature):
            continue
        found, wanted = (
            outcome(case, targets, loss=loss, tail=tail, temperature=temperature, alpha=0.5) for targets in (full, top)
        )
        for a, b in zip(found, wanted, strict=True):
            close(a, b, 10 * tolerance.float32_gradient)  # targets are float32


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


# Under torch.compile


@pytest.mark.parametrize(("loss", "tail"), [(KLD(), Renormalise()), (JSD(), Ghost())], ids=lambda x: x.kind)
def test_the_loss_is_one_graph_and_neither_alpha_nor_the_choices_are_baked_in(
    problem: Any, tolerance: Any, loss: Any, tail: Any
) -> None:
    case = fp32_case(problem)

    def step(hidden_ND: Tensor, weight_VD: Tensor, alpha: Tensor, loss: Any, tail: Any) -> Tensor:
        parts = linear_distill_loss(
            hidden_ND.nan_to_num().tanh(), weight_VD, case.label_N, case.targets, alpha=alpha, loss=loss, tail=tail
        )
        return parts.total / parts.count

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    inputs = (case.hidden_ND, case.weight_VD)
    for alpha in (0.3, 0.8):
        with torch._dynamo.config.patch(error_on_recompile=alpha != 0.3):
            found = compiled(*inputs, torch.tensor(alpha), loss, tail)
        wanted = step(*inputs, torch.tensor(alpha), loss, tail)
        close(found, wanted, tolerance.float32_value)
        gradients = (torch.autograd.grad(total, inputs) for total in (found, wanted))
        for a, b in zip(*gradients, strict=True):
            close(a, b, tolerance.float32_gradient)
    other = compiled(*inputs, torch.tensor(0.8), NLL(), Zero())
    close(other, step(*inputs, torch.tensor(0.8), NLL(), Zero()), tolerance.float32_value)


# Through Triton (interpreted where there is no GPU; its own laws are in kernels/)


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {"tail": Ghost(), "loss": JSD()},
        {"tail": Uniform(), "loss": ReverseKLD()},
        {"temperature": NormKD()},
        {"temperature": Static(value=3.0, sides="both"), "loss": NLL()},
        {"loss": MSE(), "positions": TopStudentEntropy(), "row_len": ROW_LEN},
    ],
    ids=lambda parts: "-".join(getattr(part, "kind", "") for part in parts.values()) or "default",
)
def test_triton_and_torch_give_the_same(problem: Any, tolerance: Any, parts: dict[str, Any]) -> None:
    pytest.importorskip("triton")
    case = fp32_case(problem)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found, wanted = [], []
    for backend, outcomes in (("triton", found), ("torch", wanted)):
        inputs = [x.detach().to(device).requires_grad_() for x in (case.hidden_ND, case.weight_VD, case.bias_V)]
        result = linear_distill_loss(
            *inputs[:2], case.label_N.to(device), case.targets.to(device), bias_V=inputs[2], alpha=0.7, softcap=5.0,
            chunk_tokens=9, backend=backend, **parts,
        )  # fmt: skip
        outcomes += [result.total.cpu(), *(g.cpu() for g in torch.autograd.grad(result.total, inputs))]
    close(found[0], wanted[0], tolerance.float32_value)
    for a, b in zip(found[1:], wanted[1:], strict=True):
        close(a, b, tolerance.float32_gradient)


# Targets from elsewhere, losses from elsewhere


def test_what_stands_where_there_is_no_target_is_never_read(problem: Any) -> None:
    case = problem()
    absent_N = case.targets.length_N == 0
    names = ("log_rest_N", "entropy_N", "logit_std_N")
    nan = {name: getattr(case.targets, name).masked_fill(absent_N, float("nan")) for name in names}
    for parts in (
        {"tail": Ghost()},
        {"tail": Uniform()},
        {"temperature": NormKD()},
        {"loss": JSD(), "tail": ToLabel()},
    ):
        found = outcome(case, dataclasses.replace(case.targets, **nan), alpha=0.9, **parts)
        wanted = outcome(case, case.targets, alpha=0.9, **parts)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))


@pytest.mark.parametrize("chunk_tokens", [1, 24])
def test_an_id_may_be_masked_before_others(problem: Any, tolerance: Any, chunk_tokens: int) -> None:
    case = problem()
    ids_NK = case.targets.ids_NK.clone()
    ids_NK[7, 0] = -1
    targets = dataclasses.replace(case.targets, ids_NK=ids_NK)
    found = linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, targets, chunk_tokens=chunk_tokens)
    wanted = distill_loss(case.hidden_ND @ case.weight_VD.T, case.label_N, targets)
    close(found.total, wanted.total, tolerance.float64)


@pytest.mark.parametrize("tail", [Ghost(), ToLabel(), Uniform(), Decoupled()], ids=lambda tail: tail.kind)
def test_a_tail_that_needs_the_rest_refuses_targets_without_it(problem: Any, tail: Any) -> None:
    case = problem()
    bare = dataclasses.replace(case.targets, log_rest_N=None)
    with pytest.raises(RecipeError, match="needs log_rest_N"):
        linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, bare, tail=tail)


class Shared:
    """Autograd gives both of its numbers one and the same derivative, and the logits an expanded one."""

    kind = "shared"

    def reads(self, _tail: Any) -> tuple[str, ...]:
        return ("entropy",)

    def __call__(self, student: Any, _target: Any) -> Tensor:
        return student.lse_N + student.entropy_N - 0.01 * student.logit_NJ.sum(dim=1)


def test_derivatives_that_are_one_tensor_are_not_multiplied_twice(problem: Any, tolerance: Any) -> None:
    case = problem()
    choices: dict[str, Any] = {"loss": Shared(), "alpha": 0.5}
    wide = dataclasses.replace(
        case.targets, ids_NK=case.targets.ids_NK[:, :1], logprob_NK=case.targets.logprob_NK[:, :1]
    )
    case.weight_VD.requires_grad_()
    logit_NV = case.hidden_ND.nan_to_num() @ case.weight_VD.T
    fused = linear_distill_loss(case.hidden_ND.nan_to_num(), case.weight_VD, case.label_N, wide, **choices)
    reference = distill_loss(logit_NV, case.label_N, wide, **choices)
    found, wanted = (torch.autograd.grad(parts.total, case.weight_VD)[0] for parts in (fused, reference))
    close(found, wanted, tolerance.float64)


def test_what_cannot_be_read_together_is_refused(problem: Any) -> None:
    case = problem()
    with pytest.raises(RecipeError, match="nothing with ghost"):
        linear_distill_loss(
            case.hidden_ND,
            case.weight_VD,
            case.label_N,
            case.targets,
            loss=Shared(),
            tail=Ghost(),  # type: ignore[arg-type]
        )


@pytest.mark.parametrize("parts", [{}, {"loss": JSD(), "tail": Ghost()}], ids=str)
def test_inference_mode_gives_the_numbers(problem: Any, parts: dict[str, Any]) -> None:
    case = problem()
    wanted = linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, case.targets, **parts)
    with torch.inference_mode():
        found = linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, case.targets, **parts)
    assert torch.equal(found.total, wanted.total.detach())


@pytest.mark.parametrize("wrong", [-1, 29])
def test_a_label_that_is_no_id_is_refused(problem: Any, wrong: int) -> None:
    case = problem()
    label_N = case.label_N.clone()
    label_N[4] = wrong
    with pytest.raises(RecipeError, match=f"A label is {wrong}, and the student has 29 ids"):
        linear_distill_loss(case.hidden_ND, case.weight_VD, label_N)


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
        if func is torch.ops.predistill.linear_distill.default:
            with self:  # look inside
                return head._linear_distill(*args)
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


# Refusals


def test_a_teacher_of_another_vocabulary_is_refused() -> None:
    targets = TopK(k=5)(torch.zeros(2, 40))
    targets = dataclasses.replace(targets, ids_NK=targets.ids_NK + 30)
    with pytest.raises(RecipeError, match=r"token id 34.* 32 ids.*tokenizer"):
        linear_distill_loss(torch.zeros(2, 4), torch.zeros(32, 4), torch.zeros(2, dtype=torch.int64), targets)


def test_ids_named_twice_are_refused(problem: Any) -> None:
    case = problem()
    ids_NK = case.targets.ids_NK.clone()
    ids_NK[:, 1] = ids_NK[:, 0]
    targets = dataclasses.replace(case.targets, ids_NK=ids_NK)
    with pytest.raises(RecipeError, match=r"twice at position .* targets\.unique\(\)"):
        linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, targets)


def test_a_weight_that_is_not_all_here_is_refused(problem: Any) -> None:
    case = problem()
    with pytest.raises(RecipeError, match="ZeRO-3"):
        linear_distill_loss(case.hidden_ND, torch.empty(0), case.label_N)
    sharded = torch.nn.Parameter(torch.zeros(3, 5))
    sharded.full_tensor = lambda: None  # type: ignore[attr-defined]
    with pytest.raises(RecipeError, match=r"DTensor.*full_tensor"):
        linear_distill_loss(case.hidden_ND, sharded, case.label_N)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tail": AsSampled()}, "sampled targets only"),
        ({"tail": Ghost(), "temperature": Static(value=2.0)}, "tempered mass"),
        ({"temperature": StdScaled()}, r"set temperature\.reference"),
        ({"positions": DropLowTeacherEntropy()}, "pass whole rows and row_len"),
        ({"positions": TopStudentEntropy(), "row_len": 7}, "24 positions are no whole rows of 7"),
        ({"vocab_size": 30}, "vocab_size is 30"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
        ({"vocab_size": 20}, "token id 2.* 20 ids|label is 2.* 20 ids"),
        ({"backend": "cuda"}, 'it is "torch" or "triton"'),
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


def test_as_many_hidden_states_as_labels_are_asked_for(problem: Any) -> None:
    case = problem()
    with pytest.raises(RecipeError, match="23 hidden states for 24 labels"):
        linear_distill_loss(case.hidden_ND[1:], case.weight_VD, case.label_N)


def test_losses_of_ones_own_that_call_themselves_alike_are_not_confused(problem: Any) -> None:
    class Scaled:
        kind = "scaled"

        def __init__(self, factor: float) -> None:
            self.factor = factor

        def __repr__(self) -> str:
            return "Scaled()"

        def __call__(self, student: Any, target: Any) -> Tensor:
            return self.factor * KLD()(student, target)

    case = problem()
    one, three = (head._registered(Scaled(f), Static(), Renormalise(), All()) for f in (1.0, 3.0))
    assert one != three
    assert head._CHOICES[three].loss.factor == 3.0  # type: ignore[union-attr]
    one_kd, three_kd = (
        linear_distill_loss(case.hidden_ND, case.weight_VD, case.label_N, case.targets, loss=Scaled(f)).kd  # type: ignore[arg-type]
        for f in (1.0, 3.0)
    )
    assert torch.allclose(three_kd, 3 * one_kd)  # type: ignore[arg-type]


def test_one_target_too_many_is_refused(problem: Any) -> None:
    case = problem()
    with pytest.raises(RecipeError, match="24 targets for 22 labels"):
        linear_distill_loss(case.hidden_ND[:22], case.weight_VD, case.label_N[:22], case.targets)
