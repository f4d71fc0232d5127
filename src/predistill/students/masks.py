"""Which earlier tokens a token may see where not all of them are its past: those of its own document or its own branch,
and of those only what the layer's own window or chunk lets it see. A mask that is given to a backbone replaces the one
it would make itself, so that a sliding window that is not in it would be silently gone."""

# B batch  T position
from __future__ import annotations

import torch
from transformers import PreTrainedModel

from predistill.errors import RecipeError

__all__ = ["document_mask", "layer_masks", "masks_of_layers"]

KINDS = ("full_attention", "sliding_attention", "chunked_attention")


def document_mask(input_BT: torch.Tensor, *, end_id: int) -> torch.Tensor:
    """Boolean [B, 1, T, T], True = may attend: causal, within one document. The end token opens the next document."""
    document_BT = (input_BT == end_id).cumsum(dim=1)
    same_BTT = document_BT[:, :, None] == document_BT[:, None, :]
    return same_BTT.tril()[:, None]


def layer_masks(
    model: PreTrainedModel, input_BT: torch.Tensor, *, end_id: int
) -> torch.Tensor | dict[str, torch.Tensor]:
    """What `model`'s backbone takes as attention_mask to keep documents apart: one mask, or one a kind of layer.

    Raises RecipeError for a model that no mask can keep from looking back.
    """
    within = document_mask(input_BT, end_id=end_id)
    first_BT = within[:, 0].int().argmax(dim=2)  # of the document in the row
    return masks_of_layers(model, within, torch.arange(within.shape[-1], device=within.device) - first_BT)


def masks_of_layers(
    model: PreTrainedModel, within: torch.Tensor, place_BT: torch.Tensor
) -> torch.Tensor | dict[str, torch.Tensor]:
    """As `layer_masks`, for any past: `within` [B, 1, T, T] is True where a token belongs to another's past (or is it),
    `place_BT` is how many tokens that past has."""
    config = model.config.get_text_config()
    kinds = getattr(config, "layer_types", None)
    _refuse(model, kinds or ())
    if kinds is not None:
        return {kind: _seen(model, within, place_BT, kind) for kind in dict.fromkeys(kinds)}
    for kind, size in (("sliding_attention", "sliding_window"), ("chunked_attention", "attention_chunk_size")):
        if getattr(config, size, None) is not None:  # then so are all layers
            return _seen(model, within, place_BT, kind)
    return _seen(model, within, place_BT, "full_attention")


def _seen(model: PreTrainedModel, within: torch.Tensor, place_BT: torch.Tensor, kind: str) -> torch.Tensor:
    """`within` as layers of `kind` see it, in the form that the model's attention reads."""
    config = model.config.get_text_config()
    if kind == "sliding_attention":
        ago_BTT = place_BT[:, :, None] - place_BT[:, None, :]
        within = within & (ago_BTT < int(config.sliding_window))[:, None]
    elif kind == "chunked_attention":  # chunks are counted from the first token
        chunk_BT = place_BT // int(config.attention_chunk_size)
        within = within & (chunk_BT[:, :, None] == chunk_BT[:, None, :])[:, None]
    if config._attn_implementation == "eager":  # adds the mask to its scores
        return torch.zeros_like(within, dtype=model.dtype).masked_fill(~within, torch.finfo(model.dtype).min)
    return within


def _refuse(model: PreTrainedModel, kinds: tuple[str, ...] | list[str]) -> None:
    how = model.config.get_text_config()._attn_implementation
    odd = [kind for kind in kinds if kind not in KINDS]
    if model._is_stateful or odd:
        what = f"layers of {', '.join(dict.fromkeys(odd))}" if odd else "a state"
        raise RecipeError(
            f"student or teacher: {type(model).__name__} has {what} that no mask keeps from carrying one document into "
            "the next. Prepare the corpus without --document-mask, or take a model of attention layers alone."
        )
    if how not in ("eager", "sdpa"):
        raise RecipeError(
            f"student or teacher: {type(model).__name__} uses the attention {how!r}, which takes no mask that keeps "
            "documents apart. Prepare the corpus without --document-mask, or take attention sdpa."
        )
