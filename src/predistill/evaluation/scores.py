"""Results of tasks as records: what was right, row by row, and which records may be compared."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["comparable", "cut_words", "headline_scores", "marked"]

ALIKE = ("rows", "version", "shots", "headline")


def marked(scores: npt.NDArray[np.float64]) -> str:
    """One character a row, 1 where it is right: what a record keeps of the headline metric."""
    return "".join("1" if score else "0" for score in scores)


def headline_scores(result: Mapping[str, Any]) -> npt.NDArray[np.float64]:
    """The headline metric of each row of a record, 0 or 1."""
    return np.frombuffer(result["correct"].encode(), np.uint8).astype(np.float64) - ord("0")


def comparable(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    """Whether two records are of the same rows, asked in the same words."""
    return all(ours[key] == theirs[key] for key in ALIKE)


def cut_words(cut: Mapping[str, tuple[int, int]], context: int) -> str:
    """A sentence on prompts that did not fit: of each task how many, of how many."""
    counts = ", ".join(f"{name} {some:,} of {all_:,}" for name, (some, all_) in cut.items())
    return f"Prompts that were longer than the context of {context:,} tokens, and lost their beginning: {counts}."
