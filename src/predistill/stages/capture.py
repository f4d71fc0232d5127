"""predistill capture: a teacher's distributions over every row of a corpus split, into a store; goes on where it was.

Any number of workers share the rows: processes, machines, ranks of torchrun, Ray tasks. The teacher always runs on the
same aligned group of rows at the same shape, so that whoever captures a row, at whatever moment, writes the same bytes.
"""

# R rows of a group  E entries of all positions
from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import distributed
from transformers import PreTrainedModel

from predistill.corpus import Corpus
from predistill.errors import RecipeError, StoreError, did_you_mean
from predistill.fingerprint import row_hash
from predistill.launch import Job, run_many
from predistill.objective import Full, Sampled, TopK, TopP, TopPK, Truncation
from predistill.runs import command_line
from predistill.stages.inputs import pick_device
from predistill.store import RowTargets, SharedWriter, Store, StoreComplete, StoreWriter, is_complete, rows_begun
from predistill.store.calibration import Calibration
from predistill.teachers.csr import csr_arrays
from predistill.teachers.facts import store_facts
from predistill.teachers.live import LiveTeacher
from predistill.teachers.load import DTYPES, load_teacher, sharded, teacher_facts

__all__ = ["capture", "truncation_from_flags"]

GROUP_TOKENS = 4096  # tokens of one forward pass of the teacher
MOST_SPANS = 4096  # a claim is a run of groups: so many of them, however large the corpus
SAMPLE_GROUPS = 4  # evenly spaced: their kept words decide the frequency ranks, their means are the self-test
Progress = Callable[[int, int], None]


def capture(
    teacher: str | Path,
    *,
    corpus: str | Path,
    out: str | Path,
    truncation: Truncation,
    split: str = "train",
    lse_tau: float | None = None,
    dtype: str = "fp32",
    device_map: str | None = None,
    tensor_parallel: bool = False,
    workers: int = 1,
    launcher: str = "local",
    threads: int | None = None,
    on_progress: Progress | None = None,
) -> Store:
    """Write the teacher's targets for every row of `split` to store `out`; a sealed store of the same is left alone.

    `out` is a directory or a URL that fsspec writes to. `lse_tau` keeps the log-sum-exp at that temperature too, which
    tempered tails other than renormalise need of a truncated teacher. `dtype` is the teacher's precision: fp32, bf16
    or fp16; `device_map` and `tensor_parallel` as in `load_teacher`. Called again elsewhere, it joins; `workers` above
    1 starts so many by `launcher` (local or ray), of `threads` each. `on_progress(rows begun, rows)` is called now and
    then.

    Raises StoreError when `out` was begun with other settings, TeacherError when the teacher does not fit the corpus.
    """
    if dtype not in DTYPES:
        raise RecipeError(f'--dtype is "{dtype}"{did_you_mean(dtype, DTYPES) or "."} One of {", ".join(DTYPES)}.')
    if isinstance(truncation, Full):
        raise RecipeError("truncation is full, and a store keeps a part of every distribution: use top_p_k or sampled.")
    if lse_tau is not None and (isinstance(truncation, Sampled) or not lse_tau > 0):
        raise RecipeError("--lse-tau is a temperature above 0, of a truncated store: leave it out, or --draws.")
    if workers > 1 and tensor_parallel:
        raise RecipeError("--workers starts whole teachers, --tensor-parallel splits one over torchrun: take one.")
    if workers > 1:
        threads = threads or max(1, torch.get_num_threads() // workers)
    elif threads is not None:
        torch.set_num_threads(threads)
    source = Corpus(corpus, split=split)
    threads = threads or torch.get_num_threads()
    job = _Job(teacher, source, truncation, lse_tau, dtype, device_map, tensor_parallel, threads)
    if is_complete(out):
        return _finished(Store(out), job.facts())
    if workers > 1:
        settings: dict[str, Any] = {
            "teacher": teacher,
            "corpus": corpus,
            "out": out,
            "truncation": truncation,
            "split": split,
        }
        settings |= {"lse_tau": lse_tau, "dtype": dtype, "device_map": device_map, "threads": threads}
        _launched(settings, workers=workers, launcher=launcher, rows=len(source), on_progress=on_progress)
    else:
        _worked(job, out, on_progress)
        if tensor_parallel:
            distributed.barrier()
            distributed.destroy_process_group()
    return Store(out)


def truncation_from_flags(
    *, top_p: float | None, top_k: int | None, draws: int | None, proposal_temperature: float | None = None
) -> Truncation:
    """The command line's choice; nothing chosen is the paper's top-p .95 then top-k 100."""
    if draws is not None:
        if top_p is not None or top_k is not None:
            raise RecipeError("--draws stands alone: leave --top-p and --top-k out, or leave --draws out.")
        return Sampled(draws=draws, proposal_temperature=proposal_temperature or 1.0)
    if proposal_temperature is not None:
        raise RecipeError("--proposal-temperature is that of random draws: say how many with --draws.")
    if top_p is None:
        return TopPK(p=0.95, k=100) if top_k is None else TopK(k=top_k)
    return TopP(p=top_p) if top_k is None else TopPK(p=top_p, k=top_k)


def group_rows(row_len: int) -> int:
    """Rows of one aligned group: the teacher's batch."""
    return max(1, GROUP_TOKENS // row_len)


def span_rows(rows: int, row_len: int) -> int:
    """Rows that a worker claims at once: a run of whole groups."""
    groups = -(-rows // group_rows(row_len))
    return group_rows(row_len) * -(-groups // MOST_SPANS)


@dataclass(frozen=True)
class _Job:
    """What is captured, and how."""

    teacher: str | Path
    corpus: Corpus
    truncation: Truncation
    lse_tau: float | None
    dtype: str
    device_map: str | None
    tensor_parallel: bool
    threads: int

    def facts(self) -> dict[str, Any]:
        """The static part of the manifest: what must not change while a store grows, and what training checks."""
        spread = (
            {"tensor_parallel": distributed.get_world_size()}
            if self.tensor_parallel and distributed.is_initialized()
            else {}
        )
        engine = {"name": "transformers", "version": version("transformers"), "torch": torch.__version__}
        return store_facts(
            self.corpus,
            self.truncation,
            teacher={**teacher_facts(self.teacher), "dtype": self.dtype, "engine": engine},
            capture={
                "group_rows": group_rows(self.corpus.row_len),
                "threads": self.threads,
                "device": pick_device().type,
                **spread,
            },
            lse_tau=self.lse_tau,
        )

    def load(self) -> PreTrainedModel:
        """The teacher."""
        return load_teacher(
            self.teacher,
            vocab_size=self.corpus.vocab_size,
            device=pick_device(),
            dtype=DTYPES[self.dtype],
            device_map=self.device_map,
            tensor_parallel=self.tensor_parallel,
        )


def _worked(job: _Job, out: str | Path, on_progress: Progress | None) -> None:
    """One worker's share of the rows; returns when the store is sealed."""
    source = job.corpus
    with _Teaching(job) as teaching:
        if teaching.follows:
            teaching.follow()
            return
        calibration = Calibration.of(out, teaching.sample, vocabulary=source.vocab_size)
        try:
            shared = SharedWriter(
                out,
                rows=len(source),
                span_rows=span_rows(len(source), source.row_len),
                self_test=calibration.self_test,
                manifest=job.facts(),
                permutation=calibration.permutation,
            )
        except StoreComplete:  # by another worker, just now
            return
        with shared, _cost(shared.writer) as cost:
            for rows in shared.spans():
                for group in np.unique(rows // teaching.group_rows):
                    for record in teaching.records(int(group), rows, shared.writer):
                        shared.append(record)
                        cost["tokens"] += source.row_len
                    if on_progress is not None:
                        on_progress(shared.rows_begun, len(source))


def _launched(
    settings: dict[str, Any], *, workers: int, launcher: str, rows: int, on_progress: Progress | None
) -> None:
    """Workers elsewhere; returns when the store is sealed, whatever became of some of them."""
    out, corpus = settings["out"], Corpus(settings["corpus"], split=settings["split"])

    def on_wait() -> None:
        if on_progress is not None:
            on_progress(rows_begun(out, rows=rows, span_rows=span_rows(rows, corpus.row_len)), rows)

    failed = run_many(launcher, Job(_work, settings, times=workers, threads=settings["threads"], on_wait=on_wait))
    if not is_complete(out):
        raise failed[0] if failed else StoreError(f"{out}: the workers were stopped. Run it again to go on.")


def _work(**settings: Any) -> None:
    """What a launched worker runs."""
    torch.set_num_threads(settings["threads"])
    capture(**settings)


class _Teaching:
    """A teacher over the aligned row groups of a split."""

    def __init__(self, job: _Job) -> None:
        model, corpus = job.load(), job.corpus
        self._corpus, self.group_rows = corpus, group_rows(corpus.row_len)
        self._teacher = LiveTeacher(
            model,
            truncation=job.truncation,
            vocab_size=corpus.vocab_size,
            end_id=corpus.end_id if corpus.document_mask else None,
            tau=job.lse_tau,
        )
        self.follows = sharded(model) and distributed.get_rank() > 0
        self._kept: dict[int, RowTargets] = {}
        self.follow = self._teacher.follow

    def __enter__(self) -> _Teaching:
        return self

    def __exit__(self, *failure: object) -> None:
        self._teacher.close()

    def sample(self) -> list[RowTargets]:
        """The targets of some groups, evenly spaced; they are kept until their turn comes."""
        last = (len(self._corpus) - 1) // self.group_rows
        for group in sorted({int(i) for i in np.linspace(0, last, SAMPLE_GROUPS)}):
            self._kept[group] = self._targets(self._rows(group))
        return list(self._kept.values())

    def records(self, group: int, wanted: npt.NDArray[np.int64], writer: StoreWriter) -> list[bytes]:
        """The packed records of those of a group's rows that are wanted, in order."""
        rows = self._rows(group)
        targets = self._kept.pop(group, None) or self._targets(rows)
        ids, _ = self._corpus.rows(rows)
        chosen = np.flatnonzero(np.isin(rows, wanted)).tolist()
        return self._teacher.map(lambda i: writer.packed(int(rows[i]), row_hash(ids[i]), targets.row(i)), chosen)

    def _rows(self, group: int) -> npt.NDArray[np.int64]:
        return np.arange(group * self.group_rows, min((group + 1) * self.group_rows, len(self._corpus)))

    def _targets(self, rows: npt.NDArray[np.int64]) -> RowTargets:
        pieces = self._teacher.pieces(rows, self._corpus.rows(rows)[0], csr_arrays)
        columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
        return RowTargets(row_ids=rows, positions=self._corpus.row_len, **columns)


def _finished(store: Store, facts: dict[str, Any]) -> Store:
    """The sealed store, if it is the one that was asked for; threads and versions may differ."""
    for key in ("tokenizer", "corpus", "truncation", "sampling", "lse_tau"):
        if store.manifest.get(key) != facts.get(key):
            raise StoreError(
                f"{store.path}: this store is complete and was made with another {key} ({store.manifest.get(key)}, "
                f"asked for {facts.get(key)}). Name another --out."
            )
    if store.manifest["teacher"]["sha256"] != facts["teacher"]["sha256"]:
        raise StoreError(f"{store.path}: this store is complete and was made by another teacher. Name another --out.")
    return store


@contextmanager
def _cost(writer: StoreWriter) -> Iterator[dict[str, Any]]:
    """What this process spends, added to what the part has cost before; `tokens` is for the caller to count."""
    started, cost = (time.perf_counter(), time.process_time()), {"tokens": 0}
    try:
        yield cost
    finally:
        spent = {"seconds": time.perf_counter() - started[0], "cpu_seconds": time.process_time() - started[1]}
        with suppress(StoreError):  # of a full disk, say: what went wrong before it is what matters
            writer.add_cost(command_line(), {**cost, **spent})
