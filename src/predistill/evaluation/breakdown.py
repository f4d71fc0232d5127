"""Where the loss is: means over parts of the held-out positions, cut at given edges or into equal numbers."""

# N positions  n positions of one part
from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

__all__ = ["Losses", "by_frequency", "by_mass", "by_position", "equal_parts"]

Floats = npt.NDArray[np.floating]
Ints = npt.NDArray[np.integer]
Part = dict[str, float | int | None]


@dataclass(frozen=True)
class Losses:
    """Nats at N positions: the student's loss, and with a teacher the teacher's and KL(teacher || student)."""

    student_N: Floats
    teacher_N: Floats | None = None
    kl_N: Floats | None = None

    def mean(self, chosen: npt.NDArray[np.bool_] | npt.NDArray[np.intp]) -> Part:
        """How many positions `chosen` are, and their means."""
        return {
            "tokens": len(self.student_N[chosen]),
            "loss_nats": _mean(self.student_N[chosen]),
            "teacher_loss_nats": None if self.teacher_N is None else _mean(self.teacher_N[chosen]),
            "kl_nats": None if self.kl_N is None else _mean(self.kl_N[chosen]),
        }


def by_position(position_N: Ints, losses: Losses, *, row_len: int) -> list[Part]:
    """Positions in the row, counted from 0: 0, 1, 2 and 3, 4 to 7, ...; `from` is inclusive, `to` exclusive."""
    return _between([0, *_powers(2, below=row_len), row_len], position_N, losses)


def by_frequency(count_N: Ints, losses: Losses) -> list[Part]:
    """How often the label's id occurs in the train split: 0, 1 to 9, 10 to 99, ... times; edges as in `by_position`."""
    last = 10 ** len(str(count_N.max(initial=0)))
    return _between([0, *_powers(10, below=last), last], count_N, losses)


def by_mass(key_N: Floats, losses: Losses, *, bins: int = 10) -> list[Part]:
    """As many positions in every part, in the order of `key_N`; `from` and `to` are the lowest and the highest key."""
    return [
        {"from": float(key_N[part_n[0]]), "to": float(key_N[part_n[-1]]), **losses.mean(part_n)}
        for part_n in equal_parts(key_N, bins)
    ]


def equal_parts(key_N: Floats, count: int) -> list[npt.NDArray[np.intp]]:
    """Indices in the order of `key_N`, ties as they stand, cut into `count` parts of equal size, the first ones longer
    by one where it does not divide; empty parts are left out."""
    return [part_n for part_n in np.array_split(np.argsort(key_N, kind="stable"), count) if len(part_n)]


def _powers(base: int, *, below: int) -> Iterator[int]:
    power = 1
    while power < below:
        yield power
        power *= base


def _between(edges: Sequence[int], key_N: Ints, losses: Losses) -> list[Part]:
    """The parts between neighbouring edges that hold any position."""
    parts: list[Part] = []
    for low, high in pairwise(edges):
        chosen_N = (low <= key_N) & (key_N < high)
        if chosen_N.any():
            parts.append({"from": low, "to": high, **losses.mean(chosen_N)})
    return parts


def _mean(value_n: Floats) -> float:
    return float(value_n.mean(dtype=np.float64))
