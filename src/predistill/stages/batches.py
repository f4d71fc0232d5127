"""The micro-batches that training takes: rows and their targets, in the order that (seed, step) decides."""

# B rows of a micro-batch  T position
from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from predistill.corpus import mixture_rows
from predistill.recipe import Recipe
from predistill.stages.inputs import Inputs
from predistill.stages.teaching import teachers_of
from predistill.teachers.prefetch import Part, Prefetcher, Source, default_workers
from predistill.teachers.stored import StoredTeacher
from predistill.training.step import MicroBatch

__all__ = ["Batches"]

STEPS_AT_ONCE = 16  # whose rows are drawn together


class _Piece(NamedTuple):
    """A micro-batch to be read: rows of one corpus, and whether it is the last of its step."""

    source: int
    rows: npt.NDArray[np.int64]
    last: bool


class Batches:
    """The micro-batches of a step: a function of (seed, step) alone, read ahead of the step that needs them.

    `stall_seconds`: what the steps have waited for them. `with` ends the processes that read.
    """

    def __init__(self, recipe: Recipe, inputs: Inputs, device: torch.device) -> None:
        self._recipe, self._inputs, self._device = recipe, inputs, device
        first = inputs.corpora[0]
        self.objective = inputs.objective(recipe)
        self.end_id = first.end_id if first.document_mask else None
        self.autocast = torch.autocast(device.type, torch.bfloat16, enabled=recipe.precision == "bf16")
        self.stall_seconds = 0.0
        self._teachers = teachers_of(recipe, inputs, device)
        stored = [teacher if isinstance(teacher, StoredTeacher) else None for teacher in self._teachers]
        computing = torch.get_num_threads() if device.type == "cpu" else 1
        workers = default_workers(computing) if recipe.readers is None else recipe.readers
        self._ahead = Prefetcher(
            [
                Source(str(corpus.path), *(() if teacher is None else (teacher.path, teacher.reading)))
                for corpus, teacher in zip_longest(inputs.corpora, stored)
            ],
            workers=workers if any(stored) else 0,  # the text alone is read in no time
        )
        self._drawn: tuple[int, npt.NDArray[np.int64], npt.NDArray[np.int64]] | None = None
        self._next_step: int | None = None
        self._parts: Iterator[tuple[_Piece, Part]] = iter(())

    def __enter__(self) -> Batches:
        return self

    def __exit__(self, *failure: object) -> None:
        self._ahead.close()

    @property
    def reader_cpu_seconds(self) -> float:
        """CPU time of the processes that read ahead."""
        return self._ahead.cpu_seconds

    def tokens(self, steps: int) -> int:
        """Labels seen after so many steps."""
        return steps * self._inputs.batch_rows * self._inputs.corpora[0].row_len

    def window(self, step: int) -> Iterator[MicroBatch]:
        """The rows of one optimizer step, `micro_batch_rows` at a time, corpus by corpus. Steps may be asked for in any
        order; those that follow one another are read ahead."""
        if self._next_step != step:
            following = range(step, max(self._recipe.steps, step + 1))
            self._parts = self._ahead.parts(piece for each in following for piece in self._pieces(each))
        self._next_step = None  # until all of this one is taken
        last = False
        while not last:
            began = time.perf_counter()
            piece, part = next(self._parts)
            label_BT = torch.from_numpy(part.ids[:, 1:].copy())
            if part.counted is not None:
                label_BT[~torch.from_numpy(part.counted.astype(np.bool_))] = -100
            ids_BT1, label_BT = torch.from_numpy(part.ids).to(self._device), label_BT.to(self._device)
            teacher = self._teachers[piece.source] if self._teachers else None
            targets = None
            if isinstance(teacher, StoredTeacher):
                assert part.targets is not None
                targets = teacher.finish(piece.rows, part.targets)
            self.stall_seconds += time.perf_counter() - began
            if teacher is not None and targets is None:
                targets = teacher.targets(piece.rows, part.ids)
            yield MicroBatch(ids_BT1, label_BT, targets, piece.rows)
            last = piece.last
        self._next_step = step + 1

    def _pieces(self, step: int) -> Iterator[_Piece]:
        corpus_of, rows = self._rows(step)
        size = self._recipe.micro_batch_rows
        pieces = [
            (source, mine[start : start + size])
            for source in range(len(self._inputs.corpora))
            for mine in (rows[corpus_of == source],)
            for start in range(0, len(mine), size)
        ]
        for i, (source, mine) in enumerate(pieces):
            yield _Piece(source, mine, last=i == len(pieces) - 1)

    def _rows(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """(corpus of each, row of each) of a step, drawn some steps at a time: the stream goes on from one to the next,
        and drawing one by one took a percent of a small step."""
        block, place = divmod(step, STEPS_AT_ONCE)
        if self._drawn is None or self._drawn[0] != block:
            corpus_of, rows = mixture_rows(
                seed=self._recipe.seed,
                step=block,
                batch_rows=self._inputs.batch_rows * STEPS_AT_ONCE,
                corpus_rows=[len(corpus) for corpus in self._inputs.corpora],
                weights=[entry.weight for entry in self._recipe.corpus],
            )
            self._drawn = block, corpus_of, rows
        _, corpus_of, rows = self._drawn
        mine = slice(place * self._inputs.batch_rows, (place + 1) * self._inputs.batch_rows)
        return corpus_of[mine], rows[mine]
