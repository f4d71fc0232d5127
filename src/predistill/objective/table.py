"""The table that opens docs/objective.md: every combination of loss, tail and temperature, its value or its refusal.

`python -m predistill.objective.table` prints it; a test holds the document to it.
"""

from __future__ import annotations

from predistill.objective.combine import needs_all, refusal
from predistill.objective.losses import JSD, KLD, MSE, NLL, Loss, ReverseKLD
from predistill.objective.tail import AsSampled, Decoupled, Ghost, Renormalise, Tail, ToLabel, Uniform, Zero
from predistill.objective.temperature import WTTM, EntropyScaled, NormKD, Static, StdScaled, Temperature

__all__ = ["LOSSES", "TAILS", "TEMPERATURES", "objective_table"]

LOSSES: tuple[Loss, ...] = (
    NLL(),
    KLD(),
    ReverseKLD(),
    JSD(),
    MSE(space="probs"),
    MSE(space="logits"),
    MSE(space="logprobs"),
)
TAILS: tuple[Tail, ...] = (Renormalise(), Ghost(), ToLabel(), Uniform(), Zero(), Decoupled(), AsSampled())
TEMPERATURES: dict[str, Temperature] = {
    "static 1": Static(value=1.0),
    "static tau": Static(value=2.0),
    "static tau, both": Static(value=2.0, sides="both"),
    "norm_kd": NormKD(),
    "wttm": WTTM(value=2.0),
    "std": StdScaled(reference=1.0),
    "entropy": EntropyScaled(reference=1.0),
}

_TARGETS = {
    "renormalise": "t = p / P on S",
    "ghost": "t = p on S",
    "to_label": "t = p on S, plus r at y",
    "uniform": "t = p on S, r / (V - K) elsewhere",
    "zero": "t = p on S",
    "decoupled": "t = p on S",
    "as_sampled": "t = w on S",
}


def objective_table() -> str:
    """Markdown: a row for each loss and tail, a column for each temperature, and under it why some are refused."""
    reasons: list[str] = []
    headings = ("loss", "tail", "value", "compares on", *TEMPERATURES)
    rows = [headings, ("---",) * len(headings)]
    for loss in LOSSES:
        for tail in TAILS:
            cells = []
            for temperature in TEMPERATURES.values():
                reason = refusal(loss, tail, temperature)
                if reason is None:
                    cells.append(_condition(tail, temperature))
                    continue
                if reason not in reasons:
                    reasons.append(reason)
                cells.append(f"no ({reasons.index(reason) + 1})")
            allowed = refusal(loss, tail, Static()) is None
            name = f"mse, space: {loss.space}" if isinstance(loss, MSE) else loss.kind
            shown = (f"`{_value(loss, tail)}`, {_TARGETS[tail.kind]}", _support(loss, tail)) if allowed else ("", "")
            rows.append((name, tail.kind, *shown, *cells))
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return table + "\n\n" + "\n".join(f"{number}. {reason}" for number, reason in enumerate(reasons, start=1)) + "\n"


def _condition(tail: Tail, temperature: Temperature) -> str:
    if not needs_all(tail, temperature):
        return "yes"
    return "lse or full" if isinstance(temperature, Static | WTTM) else "full"


def _value(loss: Loss, tail: Tail) -> str:
    ghost, inside = isinstance(tail, Ghost), isinstance(tail, Renormalise)
    if isinstance(loss, MSE):
        return {
            "probs": "sum_V (q - t)^2",
            "logits": "mean_S (c(z) - c(log p))^2",
            "logprobs": "mean_S (log q - log t)^2",
        }[loss.space]
    if isinstance(loss, ReverseKLD):
        if inside:
            return "sum_S q_S log(q_S / t)"
        return "sum_S q log(q / t) + q_out log(q_out / r)" if ghost else "sum_V q log(q / t)"
    if isinstance(loss, JSD):
        value = "b KL(t, m) + (1 - b) KL(q, m), m = b t + (1 - b) q"
        return f"{value}, r and q_out one bucket" if ghost else value
    if isinstance(loss, NLL):
        return "-sum t log q - r log q_out" if ghost else "-sum t log q"
    if isinstance(tail, Decoupled):
        return "KL((P, r), (Q, q_out)) + P KL_S(softmax(log p / tail.tau), softmax(z / tail.tau))"
    if isinstance(tail, AsSampled):
        return "-sum t log q - H"
    return "sum t log(t / q) + r log(r / q_out)" if ghost else "sum t log(t / q)"


def _support(loss: Loss, tail: Tail) -> str:
    if isinstance(tail, Ghost | Decoupled):
        return "kept ids and one bucket"
    if isinstance(loss, MSE):
        return "whole vocabulary" if loss.space == "probs" else "kept ids"
    return "kept ids" if isinstance(loss, ReverseKLD) and isinstance(tail, Renormalise) else "whole vocabulary"


if __name__ == "__main__":
    print(objective_table(), end="")
