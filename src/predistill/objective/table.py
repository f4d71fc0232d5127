"""The table that opens docs/objective.md: every combination of loss, tail and temperature, its formula or its refusal.

`python -m predistill.objective.table` prints it; a test holds the document to it.
"""

from __future__ import annotations

from predistill.objective.combine import refusal
from predistill.objective.losses import KLD, MSE, NLL, Loss
from predistill.objective.tail import AsSampled, Ghost, Renormalise, Tail, ToLabel, Zero
from predistill.objective.temperature import Static, Temperature

__all__ = ["LOSSES", "TAILS", "TEMPERATURES", "objective_table"]

LOSSES: tuple[Loss, ...] = (NLL(), KLD(), MSE(space="probs"), MSE(space="logits"), MSE(space="logprobs"))
TAILS: tuple[Tail, ...] = (Renormalise(), Zero(), ToLabel(), Ghost(), AsSampled())
TEMPERATURES: tuple[Temperature, ...] = (Static(value=1.0), Static(value=2.0), Static(value=2.0, sides="both"))

_HEADINGS = ("loss", "tail", "tau = 1", "tau, sides: teacher", "tau, sides: both", "compares on")


def objective_table() -> str:
    """Markdown: a row for each loss and tail, a column for each temperature, and under it why some are refused."""
    reasons: list[str] = []
    rows = [_HEADINGS, ("---",) * len(_HEADINGS)]
    for loss in LOSSES:
        for tail in TAILS:
            cells = []
            for temperature in TEMPERATURES:
                reason = refusal(loss, tail, temperature)
                if reason is None:
                    cells.append(f"`{_formula(loss, tail, temperature)}`")
                    continue
                if reason not in reasons:
                    reasons.append(reason)
                cells.append(f"refused ({reasons.index(reason) + 1})")
            allowed = refusal(loss, tail, TEMPERATURES[0]) is None
            name = f"mse, space: {loss.space}" if isinstance(loss, MSE) else loss.kind
            rows.append((name, tail.kind, *cells, _support(loss, tail) if allowed else ""))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return table + "\n\n" + "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)) + "\n"


def _formula(loss: Loss, tail: Tail, temperature: Temperature) -> str:
    tempered = temperature.value != 1
    both = tempered and temperature.sides == "both"
    q, z, log_p = ("q_tau" if both else "q"), ("z / tau" if both else "z"), ("log p / tau" if tempered else "log p")
    if isinstance(tail, Renormalise):
        target = "t = p^(1/tau) / sum_S p^(1/tau)" if tempered else "t = p / P on S"
    elif isinstance(tail, ToLabel):
        target = "t = p on S, plus r at y"
    elif isinstance(tail, AsSampled):
        target = "t = w on S"
    else:
        target = "t = p on S"
    if isinstance(loss, MSE):
        if loss.space == "probs":
            return f"sum_V ({q} - t)^2, {target}"
        if loss.space == "logits":
            return f"mean_S (c({z}) - c({log_p}))^2"
        return f"mean_S (log {q} - log t)^2, {target}"
    ghost = isinstance(tail, Ghost)
    if isinstance(loss, NLL):
        value = f"-sum t log {q}" + (f" - r log {q}_out" if ghost else "")
    elif isinstance(tail, AsSampled):
        value = f"-sum t log {q} - H"
    else:
        value = f"sum t log(t / {q})" + (f" + r log(r / {q}_out)" if ghost else "")
    return (f"tau^2 ({value}), " if both else f"{value}, ") + target


def _support(loss: Loss, tail: Tail) -> str:
    if isinstance(loss, MSE):
        return "whole vocabulary" if loss.space == "probs" else "kept ids"
    return "kept ids and one bucket" if isinstance(tail, Ghost) else "whole vocabulary"


if __name__ == "__main__":
    print(objective_table(), end="")
