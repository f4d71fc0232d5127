"""A teacher at hand: its targets for any rows, from one forward pass. What capture stores, and what needs no store."""

# R rows  T position  N = R*T  D width  V vocabulary  K kept entries
from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed
from transformers import PreTrainedModel

from predistill.objective import SparseTargets, Truncation, concatenate
from predistill.students.forward import head_of, hidden_states
from predistill.teachers.load import sharded
from predistill.teachers.pieces import SAMPLING_SEED, Pieces

__all__ = ["SAMPLING_SEED", "LiveTeacher"]

In = TypeVar("In")
Out = TypeVar("Out")


class LiveTeacher:
    """A model cut by a truncation. It owns no gradient and no optimizer state.

    Of a tensor-parallel model every rank makes one. Rank 0 asks for targets; the others `follow`, and run what it runs
    until it closes (`with` does that, also when rank 0 fails).
    """

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
        self._model, self._head, self._end_id = model, head_of(model), end_id
        self._pieces = Pieces(truncation, vocab_size, tau)
        self._sharded = sharded(model)
        # The head, the cut and the packing of a piece are small: one thread each, side by side, beats all threads on
        # one after the other. An accelerator wants one piece at a time; so does a head that others take part in.
        threads = torch.get_num_threads() if model.device.type == "cpu" and self._head.plain else 1
        self._workers = ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,))

    def __enter__(self) -> LiveTeacher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def targets(self, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64]) -> SparseTargets:
        """Targets [n*T, K] of corpus rows `rows`, whose token ids are `ids` [n, T + 1]; draws are a row's own.

        Raises TeacherError where the teacher's logits are no distribution.
        """
        return concatenate(self.pieces(rows, ids, lambda targets: targets))

    @torch.inference_mode()
    def pieces(
        self, rows: npt.NDArray[np.int64], ids: npt.NDArray[np.int64], use: Callable[[SparseTargets], Out]
    ) -> list[Out]:
        """`use` of the targets, in order, some positions of a row at a time, so that [N, V] is never whole."""
        ids_RT1 = torch.from_numpy(ids).to(self._model.device)
        if self._sharded:
            self._send(ids_RT1)
        run = _all_of if self._sharded else self.map
        return self._pieces.each(
            self._head, self._hidden(ids_RT1), rows=rows, label_RT=ids_RT1[:, 1:], use=use, run=run
        )

    def map(self, work: Callable[[In], Out], items: list[In]) -> list[Out]:
        """`work` over `items` on the teacher's own threads."""
        return list(self._workers.map(work, items))

    @torch.inference_mode()
    def follow(self) -> None:
        """On every rank but 0: take part in what rank 0 asks for; returns when rank 0 has closed its teacher."""
        assert self._sharded
        while (ids_RT1 := self._received()) is not None:
            hidden_RTD = self._hidden(ids_RT1)
            for i, part in self._pieces.places(*hidden_RTD.shape[:2]):
                self._head.logits(hidden_RTD[i, part])

    def close(self) -> None:
        """End the threads, and let the other ranks go. A teacher that is closed gives no more targets."""
        if self._sharded and distributed.get_rank() == 0:
            self._sharded = False
            self._send(torch.empty((0, 0), dtype=torch.int64, device=self._model.device))
        self._workers.shutdown()

    def _hidden(self, ids_RT1: torch.Tensor) -> torch.Tensor:
        return hidden_states(self._model, ids_RT1[:, :-1], end_id=self._end_id)

    def _send(self, ids_RT1: torch.Tensor) -> None:
        """To the other ranks: the shape, then the ids; no rows is the end."""
        distributed.broadcast(torch.tensor(ids_RT1.shape, device=ids_RT1.device), src=0)
        if len(ids_RT1):
            distributed.broadcast(ids_RT1.contiguous(), src=0)

    def _received(self) -> torch.Tensor | None:
        shape = torch.zeros(2, dtype=torch.int64, device=self._model.device)
        distributed.broadcast(shape, src=0)
        if not shape[0]:
            return None
        ids_RT1 = torch.empty(shape.tolist(), dtype=torch.int64, device=shape.device)
        distributed.broadcast(ids_RT1, src=0)
        return ids_RT1


def _all_of(work: Callable[[In], Out], items: list[In]) -> list[Out]:
    """`work` over every item, also after one has failed: the other ranks take part in all of them."""
    done: list[Out] = []
    failures: list[Exception] = []
    for item in items:
        try:
            done.append(work(item))
        except Exception as failure:
            failures.append(failure)
    if failures:
        raise failures[0]
    return done
