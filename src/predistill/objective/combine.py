"""Which choices go together: one rule, read by the recipe, by the losses and by the table in docs/objective.md."""

from __future__ import annotations

from predistill.errors import RecipeError
from predistill.objective.losses import MSE, Loss
from predistill.objective.tail import AsSampled, Renormalise, Tail, Zero
from predistill.objective.temperature import Temperature
from predistill.objective.truncate import Sampled, Truncation

__all__ = ["check_combination", "refusal", "refusal_of_targets"]


def check_combination(loss: Loss, tail: Tail, temperature: Temperature, truncation: Truncation | None = None) -> None:
    """Raise RecipeError with the reason and the nearest allowed choice unless the parts go together.

    truncation is how the targets were made; None where the targets themselves will tell.
    """
    reason = refusal(loss, tail, temperature)
    if reason is None and truncation is not None:
        reason = refusal_of_targets(tail, sampled=isinstance(truncation, Sampled))
    if reason is not None:
        raise RecipeError(reason)


def refusal(loss: Loss, tail: Tail, temperature: Temperature) -> str | None:
    """Why the three do not go together, in a sentence that names the nearest allowed choice; None when they do."""
    if isinstance(loss, MSE):
        if not isinstance(tail, Renormalise | Zero):
            nearest = "loss nll or kld" if isinstance(tail, AsSampled) else "tail renormalise or zero, or loss kld"
            return f"loss mse does not go with tail {tail.kind}: use {nearest}."
        if temperature.sides == "both" and temperature.value != 1:
            return "loss mse tempers the teacher only: use temperature sides teacher, or loss kld."
    if isinstance(tail, Renormalise) or temperature.value == 1:
        return None
    if isinstance(tail, AsSampled):
        return f"tail as_sampled goes with temperature 1 only, not {temperature.value:g}: set temperature value to 1."
    return (
        f"tail {tail.kind} at temperature {temperature.value:g} needs the tempered mass of what was not kept, which "
        "truncated targets do not hold: use tail renormalise, or set temperature value to 1."
    )


def refusal_of_targets(tail: Tail, *, sampled: bool) -> str | None:
    """Why the tail does not go with sampled (or truncated) targets; None when it does."""
    if sampled and not isinstance(tail, AsSampled):
        return f"tail {tail.kind} does not go with sampled targets: use tail as_sampled."
    if not sampled and isinstance(tail, AsSampled):
        return (
            "tail as_sampled goes with sampled targets only: use tail renormalise, or capture with truncation sampled."
        )
    return None
