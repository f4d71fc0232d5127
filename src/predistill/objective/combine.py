"""Which choices go together: one rule, read by the recipe, by the losses and by the table in docs/objective.md."""

from __future__ import annotations

from predistill.errors import RecipeError
from predistill.objective.losses import JSD, KLD, MSE, NLL, Loss, ReverseKLD
from predistill.objective.positions import Positions
from predistill.objective.tail import AsSampled, Decoupled, Ghost, Renormalise, Tail, ToLabel, Uniform, Zero
from predistill.objective.targets import SparseTargets
from predistill.objective.temperature import WTTM, NormKD, Static, Temperature
from predistill.objective.truncate import Full, Sampled, Truncation

__all__ = ["check_combination", "check_targets", "refusal"]

_TAILS: dict[type, tuple[type, ...]] = {
    NLL: (Renormalise, Ghost, ToLabel, Uniform, Zero, AsSampled),
    KLD: (Renormalise, Ghost, ToLabel, Uniform, Zero, Decoupled, AsSampled),
    ReverseKLD: (Renormalise, Ghost, Uniform),
    JSD: (Renormalise, Zero, ToLabel, Ghost),
    MSE: (Renormalise, Zero),
}


def check_combination(
    loss: Loss,
    tail: Tail,
    temperature: Temperature,
    truncation: Truncation | None = None,
    *,
    taus: tuple[float, ...] | None = None,
) -> None:
    """Raise RecipeError with the reason and the nearest allowed choice unless the parts go together.

    truncation is how the targets were made, taus the temperatures whose log-sum-exp they hold; None where the targets
    themselves will tell.
    """
    reason = refusal(loss, tail, temperature)
    if reason is None and truncation is not None:
        reason = _refusal_of_sampling(tail, sampled=isinstance(truncation, Sampled))
        known = taus is not None or not isinstance(temperature, Static | WTTM)  # no log-sum-exp fits the scaled kinds
        if reason is None and known and needs_all(tail, temperature) and not isinstance(truncation, Full):
            reason = _refusal_of_tempering(tail, temperature, taus=taus or ())
    if reason is not None:
        raise RecipeError(reason)


def check_targets(
    targets: SparseTargets, *, loss: Loss, tail: Tail, temperature: Temperature, positions: Positions
) -> None:
    """Raise RecipeError unless the targets hold what the parts need of them."""
    reason = _refusal_of_sampling(tail, sampled=targets.sampled)
    if reason is None and needs_all(tail, temperature) and not targets.whole:
        reason = _refusal_of_tempering(tail, temperature, taus=() if targets.tau is None else (targets.tau,))
    if reason is None and targets.weight_NK is None and targets.logprob_NK is None:
        reason = "The targets have neither log-probabilities nor weights: give logprob_NK."
    if reason is None and targets.tau is not None and targets.lse_tau_N is None:
        reason = f"The targets name a temperature, {targets.tau:g}, and hold no lse_tau_N: give both or neither."
    rest = isinstance(tail, Ghost | ToLabel | Uniform | Decoupled) and not needs_all(tail, temperature)
    if reason is None and rest and targets.log_rest_N is None and not targets.whole:
        reason = (
            f"tail {tail.kind} needs log_rest_N, the mass that was not kept, and the targets have none: "
            "give it, or use tail renormalise."
        )
    for choice in (temperature, positions):
        missing = [name for name in choice.needs if getattr(targets, name) is None]
        if reason is None and missing:
            reason = f"{choice.kind} needs {missing[0]} of the targets; they have none (StoredTeacher: see needs)."
    if reason is None and isinstance(loss, KLD) and targets.sampled and targets.entropy_N is None:
        reason = (
            "loss kld needs the teacher's entropy, and these sampled targets have none. "
            "Use loss nll: its gradient is the same."
        )
    if reason is not None:
        raise RecipeError(reason)


def refusal(loss: Loss, tail: Tail, temperature: Temperature) -> str | None:
    """Why the three do not go together, in a sentence that names the nearest allowed choice; None when they do.

    A loss that is not one of ours goes with every tail, and with the temperatures that say nothing of the loss.
    """
    allowed = _TAILS.get(type(loss))
    if allowed is not None and not isinstance(tail, allowed):
        if isinstance(tail, Decoupled):
            return "tail decoupled goes with loss kld only: use loss kld, or tail ghost."
        if isinstance(tail, AsSampled):
            return "tail as_sampled goes with loss nll and kld only: use one of those."
        return f"loss {loss.kind} does not go with tail {tail.kind}: use tail {_nearest(allowed)}, or loss kld."
    if isinstance(temperature, Static) and temperature.value == 1:
        return None
    if isinstance(loss, MSE):
        if not isinstance(temperature, Static):
            return "loss mse goes with temperature static only: use static, or loss kld."
        if temperature.sides == "both":
            return "loss mse tempers the teacher only: use temperature sides teacher, or loss kld."
    if isinstance(tail, AsSampled):
        return "tail as_sampled goes with temperature static 1 only: use static with value 1."
    if isinstance(tail, Decoupled):
        return "tail decoupled goes with temperature static 1 only: set its own tail.tau."
    if isinstance(temperature, NormKD | WTTM) and not isinstance(loss, KLD):
        return f"temperature {temperature.kind} goes with loss kld only: use loss kld, or temperature static."
    return None


def needs_all(tail: Tail, temperature: Temperature) -> bool:
    """Whether the tempered mass of what was not kept is needed, which truncated targets do not hold by themselves."""
    unit = isinstance(temperature, Static) and temperature.value == 1
    return not unit and not isinstance(tail, Renormalise | AsSampled | Decoupled)


def _refusal_of_tempering(tail: Tail, temperature: Temperature, *, taus: tuple[float, ...]) -> str | None:
    if isinstance(temperature, Static | WTTM):
        if temperature.value in taus:
            return None
        found = f"one at {', '.join(f'{tau:g}' for tau in taus)}" if taus else "none"
        return (
            f"tail {tail.kind} at temperature {temperature.value:g} needs the tempered mass of what was not kept, that "
            f"is, targets with a log-sum-exp at that temperature (these have {found}): use tail renormalise, set "
            "temperature value to 1, use truncation full, or capture with --lse-tau."
        )
    return (
        f"tail {tail.kind} with temperature {temperature.kind} needs the tempered mass of what was not kept at every "
        "position: use tail renormalise, or truncation full."
    )


def _refusal_of_sampling(tail: Tail, *, sampled: bool) -> str | None:
    if sampled and not isinstance(tail, AsSampled):
        return f"tail {tail.kind} does not go with sampled targets: use tail as_sampled."
    if not sampled and isinstance(tail, AsSampled):
        return (
            "tail as_sampled goes with sampled targets only: use tail renormalise, or capture with truncation sampled."
        )
    return None


def _nearest(allowed: tuple[type, ...]) -> str:
    names = [tail.kind for tail in allowed if tail is not AsSampled]  # type: ignore[attr-defined]
    return f"{', '.join(names[:-1])} or {names[-1]}"
