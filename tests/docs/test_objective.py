"""The example of docs/objective.md, run as it stands: a loss of one's own needs its value only."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from predistill.objective import TopK, linear_distill_loss

DOCUMENT = Path(__file__).parents[2] / "docs" / "objective.md"


def test_the_loss_of_ones_own_has_the_gradient_of_its_definition() -> None:
    generator = torch.Generator().manual_seed(1)
    hidden_ND = torch.randn(15, 6, generator=generator, requires_grad=True)
    weight_VD = torch.randn(40, 6, generator=generator, requires_grad=True)
    label_N, targets = torch.arange(15), TopK(k=5)(2 * torch.randn(15, 40, generator=generator))
    given: dict[str, Any] = {
        "torch": torch, "linear_distill_loss": linear_distill_loss, "hidden_ND": hidden_ND, "weight_VD": weight_VD,
        "label_N": label_N, "targets": targets,
    }  # fmt: skip
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)
    exec(compile(code, str(DOCUMENT), "exec"), given)

    assert targets.ids_NK is not None
    assert targets.logprob_NK is not None
    logit_NV = hidden_ND @ weight_VD.T
    t_NV = torch.zeros(15, 40).scatter(1, targets.ids_NK, targets.logprob_NK.softmax(dim=1))
    hellinger_N = 1 - (t_NV * logit_NV.softmax(dim=1) + 1e-30).sqrt().sum(dim=1)
    lm_N = torch.nn.functional.cross_entropy(logit_NV, label_N, reduction="none")
    wanted = (0.1 * lm_N + 0.9 * hellinger_N).sum()
    assert torch.allclose(given["parts"].total, wanted)
    found, right = (torch.autograd.grad(total, (hidden_ND, weight_VD)) for total in (given["parts"].total, wanted))
    for gradient, definition in zip(found, right, strict=True):
        assert (gradient - definition).norm() < 2e-5 * definition.norm()
