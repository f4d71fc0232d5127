"""The paper's axes, a file each: what is kept of the teacher, its temperature, tail, loss, where and how much."""

from __future__ import annotations

from predistill.objective.combine import check_combination
from predistill.objective.head import linear_distill_loss
from predistill.objective.losses import JSD, KLD, MSE, NLL, Loss, ReverseKLD
from predistill.objective.narrower import check_narrower
from predistill.objective.positions import All, DropLowTeacherEntropy, Positions, TopStudentEntropy
from predistill.objective.reference import distill_loss
from predistill.objective.schedules import WSD, Constant, Cosine, Linear, Period, Schedule
from predistill.objective.tail import AsSampled, Decoupled, Ghost, Renormalise, Tail, ToLabel, Uniform, Zero
from predistill.objective.targets import SparseTargets, concatenate
from predistill.objective.temperature import WTTM, EntropyScaled, NormKD, Static, StdScaled, Temperature
from predistill.objective.term import LossParts
from predistill.objective.truncate import Full, Sampled, TopK, TopP, TopPK, Truncation

__all__ = [
    "JSD",
    "KLD",
    "MSE",
    "NLL",
    "WSD",
    "WTTM",
    "All",
    "AsSampled",
    "Constant",
    "Cosine",
    "Decoupled",
    "DropLowTeacherEntropy",
    "EntropyScaled",
    "Full",
    "Ghost",
    "Linear",
    "Loss",
    "LossParts",
    "NormKD",
    "Period",
    "Positions",
    "Renormalise",
    "ReverseKLD",
    "Sampled",
    "Schedule",
    "SparseTargets",
    "Static",
    "StdScaled",
    "Tail",
    "Temperature",
    "ToLabel",
    "TopK",
    "TopP",
    "TopPK",
    "TopStudentEntropy",
    "Truncation",
    "Uniform",
    "Zero",
    "check_combination",
    "check_narrower",
    "concatenate",
    "distill_loss",
    "linear_distill_loss",
]
