"""From a model's last hidden states to targets, some positions of a row at a time, so that [N, V] is never whole.

What the teacher at hand and the log of a training run share: the same cut, the same draws.
"""

# R rows  T position  N positions of a piece  D width  V vocabulary
from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from predistill.objective import Sampled, SparseTargets, Truncation
from predistill.students.forward import Head

__all__ = ["SAMPLING_SEED", "Pieces"]

CHUNK_LOGITS = 1 << 25  # float32 logits held at once: 128 MiB
SAMPLING_SEED = 0
Place = tuple[int, slice]
Out = TypeVar("Out")


@dataclass(frozen=True)
class Pieces:
    """How a distribution is cut. `vocab_size`: columns beyond the tokenizer's are cut off. `tau`: a temperature whose
    log-sum-exp is wanted beside truncated targets."""

    truncation: Truncation
    vocab_size: int
    tau: float | None = None

    def places(self, rows: int, row_len: int) -> list[Place]:
        """The pieces of so many rows: row and positions, in order; the same for every batch that a row is in."""
        size = max(1, CHUNK_LOGITS // self.vocab_size)
        return [(i, slice(start, start + size)) for i in range(rows) for start in range(0, row_len, size)]

    @torch.inference_mode()
    def each(
        self,
        head: Head,
        hidden_RTD: torch.Tensor,
        *,
        rows: npt.NDArray[np.int64],
        label_RT: torch.Tensor,
        use: Callable[[SparseTargets], Out],
        run: Callable[[Callable[[Place], Out], list[Place]], Iterable[Out]] = map,
    ) -> list[Out]:
        """`use` of the targets of every piece, in order. `run(work, places)` does the work, itself or by its threads.

        Raises TeacherError where the logits are no distribution.
        """

        @torch.inference_mode()  # a thread has its own
        def work(place: Place) -> Out:
            i, part = place
            logit_NV = head.logits(hidden_RTD[i, part])[:, : self.vocab_size]
            label_N = label_RT[i, part].to(logit_NV.device)
            return use(self._cut(int(rows[i]), part.start, logit_NV, label_N))

        return list(run(work, self.places(len(rows), hidden_RTD.shape[1])))

    def _cut(self, row: int, start: int, logit_NV: torch.Tensor, label_N: torch.Tensor) -> SparseTargets:
        if isinstance(self.truncation, Sampled):
            return self.truncation(logit_NV, label_N, generator=_generator(row, start, logit_NV.device))
        return self.truncation(logit_NV, label_N, tau=self.tau)


def _generator(row: int, position: int, device: torch.device) -> torch.Generator:
    """One stream of random numbers a row (and a piece of it): draws do not depend on the batch."""
    seed = np.random.SeedSequence([SAMPLING_SEED, row, position]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed >> np.uint64(1)))
