"""A training run writes its own distributions, from the forward pass of the step: targets of a model in the making.

What the paper calls online logits (arXiv 2410.16215): another student learns from what this one knew at the time. The
store is partial, holding the rows of a slice of the schedule, each as it was first seen there. It grows with the run's
checkpoints: at each its shard is closed, and a run that goes on from a checkpoint drops the shards written after it.
"""

# B rows of a micro-batch  T position  D width
from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from predistill.corpus import Corpus
from predistill.errors import StoreError
from predistill.fingerprint import row_hash
from predistill.objective import Truncation
from predistill.store import RowTargets, Store, StoreWriter, is_complete, read_permutation
from predistill.students.forward import Head
from predistill.teachers.csr import csr_arrays
from predistill.teachers.facts import store_facts
from predistill.teachers.pieces import Pieces
from predistill.world import World

__all__ = ["TargetLog", "check_free", "log_facts"]


class TargetLog:
    """The store that a run writes; `state` goes into its checkpoints. A context manager."""

    def __init__(
        self,
        out: str,
        *,
        corpus: Corpus,
        truncation: Truncation,
        steps: range,
        rows: int | None,
        facts: dict[str, Any],
        state: dict[str, Any] | None,
        world: World,
    ) -> None:
        """Go on with store `out` where `state` (of the checkpoint; None: from nothing) says.

        `steps`: from 0, whose rows are written, at most `rows` of them. `facts`: `log_facts` of the run, equal when it
        goes on. Every process of the run has a log, and the first one writes for all. Raises StoreError
        where another run has begun or finished `out`, and where it holds less than the checkpoint counts.
        """
        self._out, self._corpus, self._steps, self._world = out, corpus, steps, world
        self._limit = len(corpus) if rows is None else min(rows, len(corpus))
        self._pieces = Pieces(truncation, corpus.vocab_size)
        self._facts = facts
        self._kept = state or {"shards": 0, "rows": 0, "sums": {}}
        self._sums: dict[str, float] = dict(self._kept["sums"])
        self._rows = int(self._kept["rows"])
        self._writer: StoreWriter | None = None
        self._sealed = is_complete(out)
        if self._sealed:
            _check_same(out, facts)
        elif world.first and (permutation := read_permutation(out)) is not None:
            self._writer = self._opened(permutation)
        found = 0 if self._writer is None else len(self._writer.done_rows)
        if world.first and not self._sealed and found != self._rows > 0:
            self.close()
            raise StoreError(
                f"{out}: holds {found:,} of the {self._rows:,} rows that the run's checkpoint counts. Put the store "
                "back, or start the run anew with --overwrite."
            )

    def __enter__(self) -> TargetLog:
        return self

    def __exit__(self, *failure: object) -> None:
        self.close()

    def wants(self, step: int) -> bool:
        """Whether rows of this step (from 0) are to be written."""
        return not self._sealed and step in self._steps and self._rows < self._limit

    def add(self, rows: npt.NDArray[np.int64], ids_BT1: torch.Tensor, *, head: Head, hidden_BTD: torch.Tensor) -> None:
        """Write corpus rows `rows`, of tokens `ids_BT1`, whose last hidden states are `hidden_BTD`; what is there
        already stays as it is."""
        first = sorted({int(row): i for i, row in reversed(list(enumerate(rows)))}.values())  # a row twice: its first
        if self._world.size == 1:  # of one process what is known already need not be made
            first = self._new(rows, first)
        targets = self._targets(rows[first], ids_BT1[first], head, hidden_BTD[first]) if first else []
        hashes = [row_hash(ids_BT1[i].cpu().numpy()) for i in first]
        found = [part for parts in self._world.collect(list(zip(hashes, targets, strict=True))) for part in parts]
        if found and self._writer is None:
            counts = sum(np.bincount(row.ids_E, minlength=self._corpus.vocab_size) for _, row in found)
            self._writer = self._opened(np.argsort(-np.asarray(counts), kind="stable"))
        for row_hash_, row_targets in found:
            row = int(row_targets.row_ids[0])
            if self._writer is not None and row not in self._writer and self._rows < self._limit:
                self._writer.write(row, row_hash_, row_targets)
                self._count(row_targets)
        self._rows = self._world.share(self._rows)

    def _new(self, rows: npt.NDArray[np.int64], places: list[int]) -> list[int]:
        new = [i for i in places if self._writer is None or int(rows[i]) not in self._writer]
        return new[: self._limit - self._rows]

    def state(self) -> dict[str, Any]:
        """On the first process: make what was written durable; what a checkpoint has to keep of it."""
        if self._writer is not None:
            self._writer.flush()
            self._kept = {"shards": self._writer.shards, "rows": self._rows, "sums": dict(self._sums)}
        return self._kept

    def seal(self) -> None:
        """Finish the store; one that is finished is left alone."""
        if self._writer is not None:
            self._writer.seal(self._self_test(), rows_expected=len(self._corpus), partial=True)
            self._writer, self._sealed = None, True

    def close(self) -> None:
        """Let go of the store."""
        if self._writer is not None:
            self._writer.close()

    def _targets(
        self, rows: npt.NDArray[np.int64], ids_BT1: torch.Tensor, head: Head, hidden_BTD: torch.Tensor
    ) -> list[RowTargets]:
        """Row by row, in the store's form."""
        cut = self._pieces.each(head, hidden_BTD, rows=rows, label_RT=ids_BT1[:, 1:], use=csr_arrays)
        each = len(cut) // len(rows)
        found = []
        for i, row in enumerate(rows):
            parts = cut[i * each : (i + 1) * each]
            columns = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            found.append(RowTargets(row_ids=np.array([row]), positions=hidden_BTD.shape[1], **columns))
        return found

    def _opened(self, permutation: npt.NDArray[Any]) -> StoreWriter:
        return StoreWriter(
            self._out, manifest=self._facts, permutation=permutation, keep_shards=int(self._kept["shards"])
        )

    def _count(self, targets: RowTargets) -> None:
        """Sums over positions, for the self-test; they go through the checkpoints, so that a run that was stopped has
        the same."""
        self._rows += 1
        columns = {
            "teacher_loss_nats": None if targets.label_logprob_N is None else -targets.label_logprob_N,
            "mean_entropy_nats": targets.entropy_N,
            "mean_logit_std": targets.logit_std_N,
            "mean_entries": targets.length_N,
            "mean_kept_mass": None if targets.log_rest_N is None else 1.0 - np.exp(targets.log_rest_N),
        }
        for name, values in columns.items():
            if values is not None:
                self._sums[name] = self._sums.get(name, 0.0) + float(values.sum(dtype=np.float64))

    def _self_test(self) -> dict[str, float | int]:
        positions = self._rows * self._corpus.row_len
        return {"sample_rows": self._rows} | {name: total / positions for name, total in self._sums.items()}


def log_facts(corpus: Corpus, truncation: Truncation, *, made_by: dict[str, Any]) -> dict[str, Any]:
    """What the manifest says of the store; `made_by` names the run. Machine and versions are in the run's own records:
    it may go on elsewhere."""
    capture = {"forward_pass": "the training step's own, before its update"}
    return store_facts(corpus, truncation, teacher=made_by, capture=capture)


def check_free(out: str, facts: dict[str, Any]) -> None:
    """Raises StoreError where another run or capture has begun or finished store `out`."""
    if is_complete(out):
        _check_same(out, facts)
    elif (permutation := read_permutation(out)) is not None:
        StoreWriter(out, manifest=facts, permutation=permutation).close()


def _check_same(out: str, facts: dict[str, Any]) -> None:
    found = Store(out).manifest
    for key, wanted in facts.items():
        if found.get(key) != wanted:
            raise StoreError(
                f"{out}: this store is complete, and another run or capture made it ({key} is {found.get(key)}, this "
                f"run's would be {wanted}). Name another log_targets.out."
            )
