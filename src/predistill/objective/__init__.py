"""The paper's axes, a file each: what is kept of the teacher, its temperature, tail, loss, where and how much."""

from __future__ import annotations

from predistill.objective.combine import check_combination
from predistill.objective.head import linear_distill_loss
from predistill.objective.losses import KLD, MSE, NLL, Loss
from predistill.objective.narrower import check_narrower
from predistill.objective.positions import All, Positions
from predistill.objective.reference import distill_loss
from predistill.objective.schedules import WSD, Constant, Cosine, Linear, Period, Schedule
from predistill.objective.tail import AsSampled, Ghost, Renormalise, Tail, ToLabel, Zero
from predistill.objective.targets import SparseTargets
from predistill.objective.temperature import Static, Temperature
from predistill.objective.term import LossParts
from predistill.objective.truncate import Sampled, TopK, TopP, TopPK, Truncation

__all__ = [
    "KLD",
    "MSE",
    "NLL",
    "WSD",
    "All",
    "AsSampled",
    "Constant",
    "Cosine",
    "Ghost",
    "Linear",
    "Loss",
    "LossParts",
    "Period",
    "Positions",
    "Renormalise",
    "Sampled",
    "Schedule",
    "SparseTargets",
    "Static",
    "Tail",
    "Temperature",
    "ToLabel",
    "TopK",
    "TopP",
    "TopPK",
    "Truncation",
    "Zero",
    "check_combination",
    "check_narrower",
    "distill_loss",
    "linear_distill_loss",
]
