"""What a single call of the loss is refused for: its numbers, its labels, its ids, a weight that is not all here.

N positions  V vocabulary  D width
"""

from __future__ import annotations

import torch
from torch import Tensor

from predistill.errors import RecipeError
from predistill.objective.targets import SparseTargets

__all__ = ["IGNORED", "check_ids", "check_labels", "check_weight", "checked_alpha", "checked_vocabulary"]

IGNORED = -100  # the field's label for "not counted"
CHECKED = 16  # positions of a call that are looked at for ids named twice


def checked_alpha(alpha: float | Tensor) -> float:
    """alpha as a number. RecipeError unless it is a share."""
    share = float(alpha)
    if not 0 <= share <= 1:
        raise RecipeError(f"alpha is {share:g}; it is the share of the distillation loss and lies between 0 and 1.")
    return share


def checked_vocabulary(vocab_size: int | None, rows: int) -> int:
    """How many of the head's rows are words. RecipeError for more than there are."""
    if vocab_size is None:
        return rows
    if not 0 < vocab_size <= rows:
        raise RecipeError(f"vocab_size is {vocab_size}, and the head has {rows} rows.")
    return vocab_size


def check_labels(label_N: Tensor, vocabulary: int) -> None:
    """Raise RecipeError for counted labels that are no ids; on an accelerator they would end the process."""
    if not len(label_N):
        return
    low, high = torch.stack(label_N.aminmax()).tolist()
    if low < 0 or high >= vocabulary:
        wrong = low if low < 0 else high
        raise RecipeError(
            f"A label is {wrong}, and the student has {vocabulary} ids. Labels that do not count are {IGNORED}."
        )


def check_ids(targets: SparseTargets, vocabulary: int) -> None:
    """Raise RecipeError for ids that the student has not, and for what is seen of ids named twice."""
    highest = targets.columns_NK.shape[1] - 1
    if targets.ids_NK is not None:
        highest = int(targets.ids_NK.max()) if targets.ids_NK.numel() else -1
    if highest >= vocabulary:
        raise RecipeError(
            f"The targets name token id {highest}, and the student has {vocabulary} ids. "
            "Teacher and student must share a tokenizer."
        )
    if targets.ids_NK is None or not targets.ids_NK.numel():
        return
    # Sorting all would cost more than the loss; who names ids twice does it everywhere.
    every = max(1, len(targets) // CHECKED)
    ids_MK = targets.ids_NK[::every].sort(dim=1).values
    twice_MK = (ids_MK[:, 1:] == ids_MK[:, :-1]) & (ids_MK[:, 1:] >= 0)
    if bool(twice_MK.any()):
        place = int(twice_MK.any(dim=1).nonzero()[0])
        raise RecipeError(
            f"The targets name token id {int(ids_MK[place, 1:][twice_MK[place]][0])} twice at position "
            f"{place * every}. Put equal ids together with targets.unique()."
        )


def check_weight(weight_VD: Tensor) -> None:
    """Raise RecipeError for a weight that a sharded training keeps elsewhere."""
    if hasattr(weight_VD, "full_tensor"):
        raise RecipeError(
            "The head's weight is sharded (a DTensor). Call the loss inside the wrapped module's forward, where FSDP "
            "has gathered it, or pass weight.full_tensor()."
        )
    if not weight_VD.numel():
        raise RecipeError(
            "The head's weight is empty here: ZeRO-3 keeps it elsewhere. Gather it around the loss "
            "(deepspeed.zero.GatheredParameters)."
        )
