"""What a mixture of experts adds to its loss so that no expert starves: Switch's load balancing (arXiv 2101.03961,
equations 4 to 6), over the layers together, as Mixtral, Qwen, OLMoE, gpt-oss, Granite and others have it."""

# N positions of a micro-batch  E experts  K experts a position is sent to
from __future__ import annotations

from collections.abc import Sequence

import torch
from transformers import PreTrainedModel

__all__ = ["balances", "router_loss"]


def balances(model: PreTrainedModel) -> bool:
    """Whether the model, as configured, has a router loss. One without (dense; or balanced by a bias on its gates, as
    DeepSeek's are) has none to add; for a form that is not Switch's see `check_student`."""
    return _coefficient(model) > 0.0


def router_loss(model: PreTrainedModel, router_logits: Sequence[torch.Tensor]) -> torch.Tensor | None:
    """coefficient * E * sum over experts of f_e * P_e, a scalar with a gradient; None where a model does not balance,
    or has no mixture layer after all.

    f_e is how many of the K choices of a position fell on expert e, P_e its probability, both means over positions and
    layers. `router_logits`: one [N, E] a mixture layer, as the backbone gives them. Every position counts: our rows
    have no padding. A mean, not a sum: who sums losses over positions multiplies by their number.
    """
    if not balances(model) or not router_logits:
        return None
    experts: int = model.num_experts  # type: ignore[assignment]  # a module's attribute may be anything
    k: int = model.num_experts_per_tok  # type: ignore[assignment]
    device = router_logits[0].device  # layers may lie on several
    chosen_E = torch.zeros(experts, device=device)
    prob_E = torch.zeros(experts, device=device)
    for logit_NE in router_logits:
        prob_NE = logit_NE.reshape(-1, experts).float().softmax(dim=1)
        ids_NK = prob_NE.topk(k, dim=1).indices
        chosen_E = chosen_E + torch.zeros_like(prob_NE).scatter_(1, ids_NK, 1.0).mean(dim=0).to(device)
        prob_E = prob_E + prob_NE.mean(dim=0).to(device)
    layers = len(router_logits)
    return _coefficient(model) * experts * (chosen_E / layers * (prob_E / layers)).sum()


def _coefficient(model: PreTrainedModel) -> float:
    """The causal model copies it from its configuration if it adds such a loss; a configuration may have one unused
    (Llama 4). JetMoE calls it otherwise. A model without experts after all (Granite's hybrids) has no loss either."""
    found = getattr(model, "router_aux_loss_coef", getattr(model, "aux_loss_coef", None))
    return float(found or 0.0) if getattr(model, "num_experts", None) else 0.0
