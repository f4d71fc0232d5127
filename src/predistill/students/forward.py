"""One way to run any causal model here: backbone to hidden states, then its head as numbers that a fused loss can use.

The head is taken apart because the loss and the capture never want [N, V] at once. What a model does between its last
matrix product and its logits (a softcap, a scale) is part of the head, and must not be lost.

Two uses, two ways: the fused loss multiplies by the head's weight; who wants logits alone calls the head's own module,
which may be sharded over ranks, offloaded or quantised, and then its weight is not what it multiplies by.
"""

# B batch  T position  D width  V vocabulary
from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from predistill.students.masks import layer_masks, masks_of_layers
from predistill.students.router import balances, router_loss

__all__ = ["Head", "Hidden", "branch_states", "head_of", "hidden_states", "run"]


@dataclass(frozen=True)
class Head:
    """The output head: logits = softcap(logit_scale * (hidden @ weight_VD.T + bias_V)), softcap(z) = c tanh(z / c)."""

    module: torch.nn.Module
    logit_scale: float
    softcap: float | None

    @property
    def weight_VD(self) -> torch.Tensor:
        """What the module multiplies by, where `plain`."""
        return self.module.weight  # type: ignore[return-value]  # a module may hold anything

    @property
    def bias_V(self) -> torch.Tensor | None:
        """What the module adds, where `plain`."""
        bias_V: torch.Tensor | None = getattr(self.module, "bias", None)
        return bias_V

    @property
    def plain(self) -> bool:
        """Whether nobody stands between the module and its weight: tensor parallelism and accelerate put a forward of
        their own on the instance, quantisers another class in its place."""
        return type(self.module) is torch.nn.Linear and "forward" not in vars(self.module)

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Float32 logits [N, V], without a gradient; call it a chunk of positions at a time.

        One chunk is what it takes: scale and softcap work in place.
        """
        with torch.no_grad():
            if self.plain:  # a norm may have widened them under autocast
                hidden_ND = hidden_ND.to(self.weight_VD.dtype)
            logit_NV: torch.Tensor = self.module(hidden_ND).float()
            if self.logit_scale != 1.0:
                logit_NV.mul_(self.logit_scale)
            if self.softcap is not None:
                logit_NV.div_(self.softcap).tanh_().mul_(self.softcap)
        return logit_NV


def head_of(model: PreTrainedModel) -> Head:
    """The head of a Hugging Face causal model: Cohere multiplies by logit_scale and Falcon-H1 by lm_head_multiplier,
    Granite divides by logits_scaling; Gemma caps at final_logit_softcapping, and two others by other names. Most do
    none of it; `check_student` tells who does something else."""
    config = model.config.get_text_config()
    scale = 1.0 / float(getattr(config, "logits_scaling", None) or 1.0)
    for name in ("logit_scale", "lm_head_multiplier"):
        scale *= float(getattr(config, name, None) or 1.0)
    names = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")
    softcap = next((float(found) for name in names if (found := getattr(config, name, None)) is not None), None)
    return Head(model.get_output_embeddings(), scale, softcap)


@dataclass(frozen=True)
class Hidden:
    """What a backbone gives the loss: its last hidden states [B, T, D], and where the architecture has one its router
    loss, a mean over positions, with its coefficient."""

    hidden_BTD: torch.Tensor
    router: torch.Tensor | None


def run(model: PreTrainedModel, input_BT: torch.Tensor, *, end_id: int | None) -> Hidden:
    """`hidden_states`, and the router loss beside them: what a training step needs.

    The two share a graph: under activation checkpointing call backward once, on their sum.
    """
    if not balances(model):
        return Hidden(hidden_states(model, input_BT, end_id=end_id), None)
    mask = None if end_id is None else layer_masks(model, input_BT, end_id=end_id)
    backbone = model.base_model
    output = backbone(input_ids=input_BT, attention_mask=mask, use_cache=False, output_router_logits=True)
    return Hidden(output.last_hidden_state, router_loss(model, output.router_logits))


def hidden_states(model: PreTrainedModel, input_BT: torch.Tensor, *, end_id: int | None) -> torch.Tensor:
    """Last hidden states [B, T, D] of `input_BT`; with `end_id` given, a token sees its own document only."""
    mask = None if end_id is None else layer_masks(model, input_BT, end_id=end_id)
    backbone = model.base_model
    hidden_BTD: torch.Tensor = backbone(input_ids=input_BT, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden_BTD


def branch_states(
    model: PreTrainedModel, input_BT: torch.Tensor, within: torch.Tensor, place_BT: torch.Tensor
) -> torch.Tensor:
    """Last hidden states [B, T, D] where a row is a tree: several continuations of one beginning, which is run once.

    `within` [B, 1, T, T]: True where a token belongs to another's past, or is it; `place_BT`: how many tokens that past
    has. Raises RecipeError for a model that no mask can keep from looking back.
    """
    mask = masks_of_layers(model, within, place_BT)
    backbone = model.base_model
    hidden_BTD: torch.Tensor = backbone(
        input_ids=input_BT, attention_mask=mask, position_ids=place_BT, use_cache=False
    ).last_hidden_state
    return hidden_BTD
