"""Is this architecture one that our forward pass knows whole? Eight words tell: our logits and our loss beside its own.

Transformers 5.23 has causal models with a logit multiplier of their own name, a z-loss, a router loss of another form,
and some that look ahead or that no mask stops. Trained all the same, a student would be another model than the one that
its exported configuration promises.
"""

# B batch  T position  N positions  V vocabulary
from __future__ import annotations

import inspect
from typing import Any

import torch
from transformers import PreTrainedModel

from predistill.errors import RecipeError
from predistill.students.forward import head_of, hidden_states, run

__all__ = ["check_student"]

LOUD = 1e3  # a new model's logits are near 0, where no softcap shows: hidden states are made so much longer
TOLERANCE = 1e-4  # relative for logits and hidden states; nats for the loss, of which a router's part is 1e-3 and more


@torch.no_grad()
def check_student(model: PreTrainedModel, *, end_id: int | None) -> None:
    """Raises RecipeError where the model's own logits or loss are not what its hidden states, `head_of` and its router
    loss make, where it looks ahead, and with `end_id` given where documents cannot be kept apart.

    A few forward passes over eight words, in evaluation mode; draws no random numbers, leaves the model as it was.
    """
    name, training = type(model).__name__, model.training
    if model.base_model is model:
        raise RecipeError(
            f"student: {name} has no backbone apart from its head, so predistill cannot train it. Take another "
            "architecture."
        )
    model.eval()
    input_1T = torch.arange(8, device=model.device)[None] % model.get_output_embeddings().weight.shape[0]
    _check_head(model, input_1T)
    _check_loss(model, input_1T)
    changed_1T = input_1T.clone()
    changed_1T[0, -1] = input_1T[0, 0]
    if not _same(*(hidden_states(model, ids, end_id=None)[:, :-1] for ids in (input_1T, changed_1T))):
        raise RecipeError(
            f"student: {name}, as configured, sees the words it is to predict. Set is_decoder in its configuration, or "
            "take a causal architecture."
        )
    if end_id is not None:
        _check_documents(model, input_1T, end_id=end_id)
    model.train(training)


def _check_head(model: PreTrainedModel, input_1T: torch.Tensor) -> None:
    head = head_of(model)
    hidden_ND = hidden_states(model, input_1T, end_id=None)[0]
    with head.module.register_forward_pre_hook(lambda _, args: (args[0] * LOUD,)):
        ours_NV, theirs_NV = head.logits(hidden_ND), model(input_ids=input_1T, use_cache=False).logits[0].float()
    if not _same(ours_NV, theirs_NV):
        raise RecipeError(
            f"student: {type(model).__name__} makes its logits in a way that predistill does not know (beyond a bias, "
            "a scale and a softcap). Please report it; until then take another architecture."
        )


def _check_loss(model: PreTrainedModel, input_1T: torch.Tensor) -> None:
    router = run(model, input_1T, end_id=None).router
    takes = "output_router_logits" in inspect.signature(model.forward).parameters
    asked: dict[str, Any] = {"output_router_logits": router is not None} if takes else {}
    theirs = model(input_ids=input_1T, labels=input_1T, use_cache=False, **asked)
    ours = torch.nn.functional.cross_entropy(theirs.logits[0, :-1].float(), input_1T[0, 1:])
    differs = float(theirs.loss - ours) - (0.0 if router is None else float(router))
    if abs(differs) > TOLERANCE:
        raise RecipeError(
            f"student: the own loss of {type(model).__name__} differs by {differs:.2g} nats from the next-word and "
            "load-balancing loss that predistill would train it with (a z-loss, another router loss, labels that are "
            "not shifted). Set the coefficient to 0 in its configuration, or take another architecture."
        )


def _check_documents(model: PreTrainedModel, input_1T: torch.Tensor, *, end_id: int) -> None:
    """What stands in the first document must not show in the second. Old architectures read a mask in ways of their
    own, or not at all."""
    rows = []
    for shift in (0, 1):
        row_1T = input_1T.roll(shift)
        row_1T[row_1T == end_id] = (end_id + 1) % 8
        row_1T[0, 4:] = input_1T[0, 4:]
        row_1T[0, 4] = end_id
        rows.append(row_1T)
    failed: Exception | None = None
    try:
        apart = _same(*(hidden_states(model, row_1T, end_id=end_id)[:, 4:] for row_1T in rows))
    except (AssertionError, IndexError, RuntimeError, TypeError, ValueError) as error:
        apart, failed = False, error
    if not apart:
        why = f" ({str(failed).strip().splitlines()[0]})" if failed is not None and str(failed).strip() else ""
        raise RecipeError(
            f"student: {type(model).__name__} takes no mask that keeps documents apart{why}. Prepare the corpus "
            "without --document-mask, or take another architecture."
        ) from failed


def _same(first: torch.Tensor, second: torch.Tensor) -> bool:
    return torch.allclose(first, second, rtol=TOLERANCE, atol=TOLERANCE * float(second.abs().max()))
