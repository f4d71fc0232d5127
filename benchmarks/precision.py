"""How exact the gradients are: bfloat16 hidden states and output layer, against float64 on the same numbers.

    PREDISTILL_PEERS=FOLDER python benchmarks/precision.py            FOLDER: see peers.py

Writes benchmarks/results/precision.json (on a GPU: precision-cuda.json): the relative error |g - g64| / |g64| in per
cent of dh and dW, for CE and for two KDs of a top-50 teacher, at a student whose KL from its teacher is about .15, and
at one about .01, where the gradient is the difference of two numbers that are nearly the same. Rounding the exact
gradient to bfloat16 costs `rounding` already; ours should stay within `target`.

Peers of logits get what a user's bfloat16 model gives them. A CPU emulates bfloat16 products at 1/300 of the speed, so
there the logits are the float32 product of the same numbers, rounded to bfloat16, and autograd rounds their gradient
likewise; fused peers are asked on a GPU only. Dense teachers are float32: their rounding is not the loss's.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from peers import PEERS, Absent, Peer, Problem, dense_kl, made_problem, shared_logsumexp
from record import write_record
from torch import Tensor

from predistill.objective import Ghost, Renormalise, linear_distill_loss

SHAPE = {"tokens": 512, "width": 512, "vocabulary": 32_000, "kept": 50}
NOISE = {"KL .15": 0.30**0.5, "KL .01": 0.02**0.5}  # its variance is twice the KL
TARGET_PERCENT = 0.35
LOSSES = ("lm", "kld renormalise", "kld ghost")
# Where a row of loss.py mixes KD with CE, here it is KD alone.
ASKED = [peer for peer in PEERS if peer.same in LOSSES and (peer.alpha == 1 or peer.same == "lm")]
ASKED += [dense_kl(1.0), shared_logsumexp(1.0)]

Grads = tuple[Tensor, Tensor]


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    cuda = torch.cuda.is_available()
    tables: dict[str, Any] = {loss: {} for loss in LOSSES}
    worst, teachers = 0.0, {}
    for label, noise in NOISE.items():
        problem = made_problem(
            **SHAPE, noise=noise, dtype=torch.bfloat16, dense_dtype=torch.float32, device="cuda" if cuda else "cpu"
        )
        teachers[label] = problem.facts
        for loss in LOSSES:
            if loss == "lm" and label != "KL .15":
                continue  # CE does not know the teacher
            for name, row in rows_of(loss, problem).items():
                tables[loss].setdefault(name, {})["CE" if loss == "lm" else label] = row
                if name == "ours":
                    worst = max(worst, *row.values())
    content = {
        "command": "python benchmarks/precision.py",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "logits_of_peers": "bfloat16 product" if cuda else "float32 product rounded to bfloat16",
        **SHAPE,
        "teachers": teachers,
        "unit": "per cent",
        "target": TARGET_PERCENT,
        "worst_of_ours": worst,
        "within_target": worst <= TARGET_PERCENT,
        "versions": versions(),
        "tables": tables,
    }
    write_record("precision-cuda" if cuda else "precision", content)


def rows_of(loss: str, problem: Problem) -> dict[str, Any]:
    """Ours, what rounding alone costs, then the peers."""
    exact = gradients(lambda hidden_ND, weight_VD: exact_loss(loss, hidden_ND, weight_VD, problem), problem, wide=True)
    rounded = tuple(grad.to(torch.bfloat16) for grad in exact)
    rows: dict[str, Any] = {"ours": errors(gradients(ours(loss, problem), problem), exact)}
    rows["rounding"] = errors((rounded[0], rounded[1]), exact)
    for peer in ASKED:
        if peer.same == loss:
            print(f"{loss}: {peer.name}", file=sys.stderr)
            rows[peer.name] = row_of_peer(peer, problem, exact)
    return rows


def row_of_peer(peer: Peer, problem: Problem, exact: Grads) -> dict[str, Any] | str:
    if peer.fused and not problem.hidden_ND.is_cuda:
        return "not asked: a CPU emulates its bfloat16 products"
    try:
        call = peer.prepared(problem)
    except Absent as absent:
        return f"absent: {absent}"
    try:
        if peer.fused:
            return errors(gradients(lambda _hidden_ND, _weight_VD: call(), problem), exact)
        return errors(gradients(lambda hidden_ND, weight_VD: call(logits_of(hidden_ND, weight_VD)), problem), exact)
    except Exception as error:  # the other peers go on
        return f"failed: {type(error).__name__}: {str(error).splitlines()[:1]}"


def ours(loss: str, problem: Problem) -> Callable[[Tensor, Tensor], Tensor]:
    targets = None if loss == "lm" else problem.targets
    tail = Ghost() if loss == "kld ghost" else Renormalise()
    return lambda hidden_ND, weight_VD: (
        linear_distill_loss(hidden_ND, weight_VD, problem.label_N, targets, tail=tail).total
    )


def exact_loss(loss: str, hidden_ND: Tensor, weight_VD: Tensor, problem: Problem) -> Tensor:
    """By definition, in the dtype of the operands."""
    logprob_NV = (hidden_ND @ weight_VD.t()).log_softmax(dim=1)
    if loss == "lm":
        return F.nll_loss(logprob_NV, problem.label_N, reduction="sum")
    student_NK, teacher_NK = logprob_NV.gather(1, problem.ids_NK), problem.logprob_NK.to(hidden_ND.dtype)
    if loss == "kld renormalise":
        teacher_NK = teacher_NK.log_softmax(dim=1)
        return (teacher_NK.exp() * (teacher_NK - student_NK)).sum()
    assert problem.targets.log_rest_N is not None
    rest_N = problem.targets.log_rest_N.to(hidden_ND.dtype)
    outside_N = logprob_NV.scatter(1, problem.ids_NK, -torch.inf).logsumexp(dim=1)
    return (teacher_NK.exp() * (teacher_NK - student_NK)).sum() + (rest_N.exp() * (rest_N - outside_N)).sum()


def logits_of(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """bfloat16 logits."""
    if hidden_ND.is_cuda:
        return F.linear(hidden_ND, weight_VD)
    return F.linear(hidden_ND.float(), weight_VD.float()).to(torch.bfloat16)


def gradients(loss: Callable[[Tensor, Tensor], Tensor], problem: Problem, *, wide: bool = False) -> Grads:
    """(dh, dW)"""
    operands = problem.hidden_ND, problem.weight_VD
    if wide:
        operands = operands[0].detach().double().requires_grad_(), operands[1].detach().double().requires_grad_()
    hidden_grad_ND, weight_grad_VD = torch.autograd.grad(loss(*operands), operands)
    return hidden_grad_ND, weight_grad_VD


def errors(grads: Grads, exact: Grads) -> dict[str, float]:
    """In per cent."""
    return {
        name: float(f"{100 * float((grad.double() - true).norm() / true.norm()):.3g}")
        for name, grad, true in zip(("dh", "dW"), grads, exact, strict=True)
    }


def versions() -> dict[str, str]:
    found = {}
    for peer in ASKED:
        try:
            found[peer.name] = peer.origin.version
        except ImportError:
            continue
    return found


if __name__ == "__main__":
    main()
