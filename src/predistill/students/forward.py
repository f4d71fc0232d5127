"""One way to run any causal model here: backbone to hidden states, then its head as numbers that a fused loss can use.

The head is taken apart because the loss and the capture never want [N, V] at once. What a model does between its last
matrix product and its logits (a softcap, a scale) is part of the head, and must not be lost.
"""

# B batch  T position  D width  V vocabulary
from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

__all__ = ["Head", "document_mask", "head_of", "hidden_states"]


@dataclass(frozen=True)
class Head:
    """The output head: logits = softcap(logit_scale * (hidden @ weight_VD.T + bias_V)), softcap(z) = c tanh(z / c)."""

    weight_VD: torch.Tensor
    bias_V: torch.Tensor | None
    logit_scale: float
    softcap: float | None

    def logits(self, hidden_ND: torch.Tensor) -> torch.Tensor:
        """Float32 logits [N, V]; call it a chunk of positions at a time."""
        logit_NV = torch.nn.functional.linear(hidden_ND, self.weight_VD, self.bias_V).float()
        if self.logit_scale != 1.0:
            logit_NV *= self.logit_scale
        if self.softcap is not None:
            logit_NV = self.softcap * torch.tanh(logit_NV / self.softcap)
        return logit_NV


def head_of(model: PreTrainedModel) -> Head:
    """The head of a Hugging Face causal model: Cohere multiplies by logit_scale, Granite divides by logits_scaling,
    Gemma 2 caps at final_logit_softcapping; most do none of it."""
    linear = model.get_output_embeddings()
    config = model.config.get_text_config()
    scale = float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)
    softcap = getattr(config, "final_logit_softcapping", None)
    return Head(linear.weight, getattr(linear, "bias", None), scale, None if softcap is None else float(softcap))


def hidden_states(model: PreTrainedModel, input_BT: torch.Tensor, *, end_id: int | None) -> torch.Tensor:
    """Last hidden states [B, T, D] of `input_BT`; with `end_id` given, a token sees its own document only."""
    mask = None if end_id is None else document_mask(input_BT, end_id=end_id)
    backbone = model.base_model
    hidden_BTD: torch.Tensor = backbone(input_ids=input_BT, attention_mask=mask, use_cache=False).last_hidden_state
    return hidden_BTD


def document_mask(input_BT: torch.Tensor, *, end_id: int) -> torch.Tensor:
    """Boolean [B, 1, T, T], True = may attend: causal, within one document. The end token opens the next document."""
    document_BT = (input_BT == end_id).cumsum(dim=1)
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    return same_BTT.tril()[:, None]
