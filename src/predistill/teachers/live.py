"""A teacher at hand: its targets for any rows, from one forward pass. What capture stores, and what needs no store."""

# R rows  T position  N = R*T  D width  V vocabulary  K kept entries
from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from predistill.objective import Sampled, SparseTargets, Truncation, concatenate
from predistill.students.forward import head_of, hidden_states

__all__ = ["SAMPLING_SEED", "LiveTeacher"]

CHUNK_LOGITS = 1 << 25  # float32 logits held at once: 128 MiB
SAMPLING_SEED = 0
In = TypeVar("In")
Out = TypeVar("Out")


class LiveTeacher:
    """A model cut by a truncation. It owns no gradient and no optimizer state."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        truncation: Truncation,
        vocab_size: int,
        end_id: int | None = None,
        tau: float | None = None,
    ) -> None:
        """`vocab_size`: columns beyond the tokenizer's are cut off. `end_id`: given when attention stays within
        documents. `tau`: a temperature whose log-sum-exp is wanted beside the truncated targets."""
        self._model, self._truncation, self._vocab_size = model, truncation, vocab_size
        self._head, self._end_id, self._tau = head_of(model), end_id, tau
        # The head, the cut and the packing of a piece are small: one thread each, side by side, beats all threads on
        # one after the other. An accelerator wants one piece at a time.
        threads = torch.get_num_threads() if model.device.type == "cpu" else 1
        self._workers = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def targets(self, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> SparseTargets:
        """Targets [n*T, K] of corpus rows `rows`, whose token ids are `ids` [n, T + 1]; draws are a row's own."""
        return concatenate(self.pieces(rows, ids, lambda targets: targets))

    @torch.inference_mode()
    def pieces(
        self, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], use: Callable[[SparseTargets], Out]
    ) -> list[Out]:
        """`use` of the targets, in order, some positions of a row at a time, so that [N, V] is never whole."""
        ids_RT1 = torch.from_numpy(ids).to(self._model.device)
        hidden_RTD = hidden_states(self._model, ids_RT1[:, :-1], end_id=self._end_id)
        row_len, size = hidden_RTD.shape[1], max(1, CHUNK_LOGITS // self._vocab_size)

        @torch.inference_mode()
        def piece(place: tuple[int, int]) -> Out:
            i, start = place
            part = slice(start, start + size)
            return use(self._cut(int(rows[i]), start, hidden_RTD[i, part], ids_RT1[i, 1:][part]))

        return self.map(piece, [(i, start) for i in range(len(rows)) for start in range(0, row_len, size)])

    def map(self, work: Callable[[In], Out], items: list[In]) -> list[Out]:
        """`work` over `items` on the teacher's own threads."""
        return list(self._workers.map(work, items))

    def _cut(self, row: int, start: int, hidden_ND: torch.Tensor, label_N: torch.Tensor) -> SparseTargets:
        logit_NV = self._head.logits(hidden_ND)[:, : self._vocab_size]
        if isinstance(self._truncation, Sampled):
            return self._truncation(logit_NV, label_N, generator=_generator(row, start, logit_NV.device))
        return self._truncation(logit_NV, label_N, tau=self._tau)


def _generator(row: int, position: int, device: torch.device) -> torch.Generator:
    """One stream of random numbers a row (and a piece of it): draws do not depend on the batch."""
    seed = np.random.SeedSequence([SAMPLING_SEED, row, position]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(seed >> np.uint64(1)))
