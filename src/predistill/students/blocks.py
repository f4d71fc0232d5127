"""The transformer blocks of any Hugging Face model: found, so that sharding, checkpointing and compiling can be applied
from outside, block by block, to architectures that nobody here has heard of."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from transformers import PreTrainedModel

from predistill.errors import RecipeError

__all__ = ["blocks_of"]


def blocks_of(model: PreTrainedModel) -> list[torch.nn.Module]:
    """The blocks in the order of the model's modules: the members of the outermost module lists of its backbone.

    An encoder-decoder has two such lists; the experts of a block lie in a list inside it, or in none. A list of bare
    layers (Gemma 3n has one of projections) is no list of blocks. Raises RecipeError where there are no blocks.
    """
    backbone = model.base_model
    # A block that stands in two lists, or twice in one, is one block: who wraps it must do so once.
    found = {id(block): block for blocks in _outermost_lists(backbone) for block in blocks if any(block.children())}
    if not found:
        raise RecipeError(
            f"student: no list of blocks in {type(backbone).__name__}, so nothing to shard or checkpoint by. Take an "
            "architecture of Transformers that keeps its blocks in a torch.nn.ModuleList."
        )
    return list(found.values())


def _outermost_lists(module: torch.nn.Module) -> Iterator[torch.nn.ModuleList]:
    for child in module.children():
        if isinstance(child, torch.nn.ModuleList):
            yield child
        else:
            yield from _outermost_lists(child)
