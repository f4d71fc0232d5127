"""The micro-batches that training takes: rows and their targets, in the order that (seed, step) decides."""

# B rows of a micro-batch  T position
from __future__ import annotations

import io
import time
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from predistill.corpus import mixture_rows
from predistill.files import write_atomic
from predistill.objective import SparseTargets, concatenate
from predistill.recipe import Recipe
from predistill.stages.inputs import Inputs
from predistill.stages.teaching import teachers_of
from predistill.teachers.prefetch import Part, Prefetcher, Source, default_workers
from predistill.teachers.stored import StoredTeacher
from predistill.training.step import MicroBatch
from predistill.world import World

__all__ = ["Batches"]

STEPS_AT_ONCE = 16  # whose rows are drawn together


class _Piece(NamedTuple):
    """Rows of one corpus, to be read for a micro-batch; whether they end it, and whether that ends the step."""

    source: int
    rows: npt.NDArray[np.int64]
    ends_batch: bool
    ends_step: bool


class Batches:
    """The micro-batches of a step that are this process's part: a function of (seed, step) and of how many processes
    there are, read ahead of the step that needs them.

    `stall_seconds`: what the steps have waited for them. `with` ends the processes that read.
    """

    def __init__(self, recipe: Recipe, inputs: Inputs, world: World) -> None:
        self._recipe, self._inputs, self._world = recipe, inputs, world
        self.objective = inputs.objective(recipe)
        self.stall_seconds, self._live_seconds = 0.0, 0.0
        self._teachers = teachers_of(recipe, inputs, world.device)
        stored = [teacher if isinstance(teacher, StoredTeacher) else None for teacher in self._teachers]
        computing = torch.get_num_threads() if world.device.type == "cpu" else 1
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
        """Labels seen after so many steps, by all processes."""
        return steps * self._inputs.batch_rows * self._inputs.corpora[0].row_len

    def window(self, step: int) -> Iterator[MicroBatch]:
        """This process's rows of one optimizer step, `micro_batch_rows` at a time. Steps may be asked for in any order;
        those that follow one another are read ahead."""
        if self._next_step != step:
            following = range(step, max(self._recipe.steps, step + 1))
            self._parts = self._ahead.parts(piece for each in following for piece in self._pieces(each))
        self._next_step = None  # until all of this one is taken
        last = False
        while not last:
            began, computed = time.perf_counter(), self._live_seconds
            pieces = [next(self._parts)]
            while not pieces[-1][0].ends_batch:
                pieces.append(next(self._parts))
            ids_BT1 = torch.cat([torch.from_numpy(part.ids) for _, part in pieces]).to(self._world.device)
            label_BT = torch.cat([_labels(part) for _, part in pieces]).to(self._world.device)
            targets = _together([(self._targets(piece, part), part) for piece, part in pieces])
            self.stall_seconds += time.perf_counter() - began - (self._live_seconds - computed)
            yield MicroBatch(ids_BT1, label_BT, targets, np.concatenate([piece.rows for piece, _ in pieces]))
            last = pieces[-1][0].ends_step
        self._next_step = step + 1

    def rows(self, step: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
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

    def keep(self, step: int, folder: Path) -> Path:
        """Write the whole batch of a step (from 1) to `folder`: each row's corpus, its number there, its tokens."""
        corpus_of, rows = self.rows(step - 1)
        ids = [self._inputs.corpora[c].rows([row])[0][0] for c, row in zip(corpus_of, rows, strict=True)]
        content = io.BytesIO()
        np.savez_compressed(content, corpus=corpus_of, row=rows, ids=np.stack(ids))
        folder.mkdir(exist_ok=True)
        path = folder / f"step-{step:08d}.npz"
        write_atomic(path, content.getvalue())
        return path

    def _pieces(self, step: int) -> Iterator[_Piece]:
        """Micro-batches are rows in their order, whatever their corpus: every process has as many of the same size."""
        corpus_of, rows = (part[self._world.slice_of(len(part))] for part in self.rows(step))
        size = self._recipe.micro_batch_rows
        for start in range(0, len(rows), size):
            those, of = rows[start : start + size], corpus_of[start : start + size]
            sources = np.unique(of)
            for source in sources:
                ends = bool(source == sources[-1])
                yield _Piece(int(source), those[of == source], ends, ends and start + size >= len(rows))

    def _targets(self, piece: _Piece, part: Part) -> SparseTargets | None:
        """What the corpus's teacher says of these rows; None where it has none."""
        teacher = self._teachers[piece.source] if self._teachers else None
        if teacher is None or isinstance(teacher, StoredTeacher):
            return None if teacher is None or part.targets is None else teacher.finish(piece.rows, part.targets)
        began = time.perf_counter()
        targets = teacher.targets(piece.rows, part.ids)
        self._live_seconds += time.perf_counter() - began
        return targets


def _labels(part: Part) -> torch.Tensor:
    """[n, T]; -100 where the corpus does not count them."""
    label_BT = torch.from_numpy(part.ids[:, 1:].copy())
    if part.counted is not None:
        label_BT[~torch.from_numpy(part.counted.astype(np.bool_))] = -100
    return label_BT


def _together(found: list[tuple[SparseTargets | None, Part]]) -> SparseTargets | None:
    """The targets of a micro-batch; rows of a corpus without a teacher have none."""
    taught = next((targets for targets, _ in found if targets is not None), None)
    if taught is None or len(found) == 1:
        return taught
    return concatenate([taught.absent(part.ids[:, 1:].size) if targets is None else targets for targets, part in found])
