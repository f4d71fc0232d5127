"""`predistill store verify --teacher`: rows of a store computed again by the teacher that it names, and compared.

Checksums say that a store is what was written; this says that what was written is this teacher's. Whole aligned groups
run at the capture's shape, so that on the machine that captured them the records are equal to the bit.
"""

# R rows of a group  N positions  E entries
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.corpus import Corpus
from predistill.errors import RecipeError, StoreError
from predistill.fingerprint import file_sha256, row_hash
from predistill.stages.inputs import pick_device
from predistill.store import RowTargets, Store
from predistill.store.compare import kl_to_stored, logprob_differences
from predistill.store.streams import encode_row
from predistill.store.verbs.begun import sample_of
from predistill.teachers.csr import csr_arrays
from predistill.teachers.live import LiveTeacher
from predistill.teachers.load import DTYPES, load_teacher, teacher_facts
from predistill.teachers.stored import stored_truncation

__all__ = ["KL_BOUND", "in_words", "verify_teacher"]

KL_BOUND = {"fp32": 1e-3, "bf16": 1e-2, "fp16": 1e-2}  # nats; the grid's own is 5e-6, another device's rounding more
DRAWS_BOUND = 0.01  # of the positions of a sampled store: where rounding moves a draw to the next word
Progress = Callable[[int, int], None]
Rows = npt.NDArray[np.int64]


def verify_teacher(
    where: str | Path,
    *,
    teacher: str | Path,
    corpus: str | Path,
    rows: int = 64,
    dtype: str | None = None,
    split: str | None = None,
    seed: int | None = None,
    on_progress: Progress | None = None,
) -> dict[str, Any]:
    """Compare at least `rows` rows of a store with the teacher's: groups evenly spaced, or at random by `seed`.

    Refuses a teacher, tokenizer, corpus, split, masking rule or precision that is not the manifest's. Returns
    {"rows", "rows_equal": to the bit, "positions", "teacher_loss_nats", "stored_loss_nats", "mean_kept_mass",
    "kl_online_to_stored_nats", "max_logprob_difference", "positions_other_ids"}; what a sampled store does not have is
    absent. Raises `StoreError` when the KL is above the bound of its precision, or of a sampled store draws differ.
    """
    store = Store(where)
    split = split or str(store.manifest["corpus"].get("split", "train"))
    source = Corpus(corpus, split=split)
    dtype = dtype or str(store.manifest["teacher"].get("dtype", "fp32"))
    _check_made_by(store, source, teacher, dtype)
    model = load_teacher(teacher, vocab_size=source.vocab_size, device=pick_device(), dtype=DTYPES[dtype])
    end_id = source.end_id if source.document_mask else None
    found = _Compared(store)
    groups = _groups(store, rows=rows, seed=seed)
    with LiveTeacher(model, truncation=stored_truncation(store), vocab_size=source.vocab_size, end_id=end_id) as live:
        for number, group in enumerate(groups):
            ids_RT1, _ = source.rows(group)
            pieces = live.pieces(group, ids_RT1, csr_arrays)
            columns = {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}
            online = RowTargets(row_ids=group, positions=source.row_len, **columns)
            for i in np.flatnonzero(store.has(group)).tolist():
                found.add(online.row(i), row_hash(ids_RT1[i]))
            if on_progress is not None:
                on_progress(number + 1, len(groups))
    return found.report(dtype)


def in_words(facts: dict[str, Any]) -> str:
    """The comparison, for people."""
    lines = [f"Compared with the teacher: {facts['rows']:,} rows, {facts['rows_equal']:,} of them equal to the bit."]
    for name, words in (
        ("teacher_loss_nats", "the teacher's loss {:.4f} nats"),
        ("stored_loss_nats", "as stored {:.4f} nats"),
        ("mean_kept_mass", "mass that is kept {:.4f}"),
        ("kl_online_to_stored_nats", "KL of teacher and store {:.2e} nats"),
        ("max_logprob_difference", "largest difference of a log-probability {:.3f} nats"),
        ("positions_other_ids", "positions with other words {:,}"),
    ):
        if name in facts:
            lines.append("  " + words.format(facts[name]))
    return "\n".join(lines)


def _check_made_by(store: Store, corpus: Corpus, teacher: str | Path, dtype: str) -> None:
    """`StoreError` or `RecipeError` unless store, corpus and teacher name each other."""
    made, facts = store.manifest, teacher_facts(teacher)
    if "sha256" not in made["teacher"]:
        raise StoreError(
            f"{store.path}: a training run wrote it ({made['teacher'].get('name')}), with weights that changed from "
            "step to step, so that no teacher can compute its rows again. Without --teacher its checksums are verified."
        )
    if dtype not in DTYPES:
        raise RecipeError(f'--dtype is "{dtype}". One of {", ".join(DTYPES)}.')
    tokenizer = made["tokenizer"]
    for what, theirs, ours, do in (
        ("document mask", made["corpus"]["document_mask"], corpus.document_mask, "Name the corpus it was made over."),
        ("tokenizer", tokenizer["sha256"], file_sha256(corpus.tokenizer_path), "Name the corpus it was made over."),
        ("vocabulary", tokenizer["vocab_size"], corpus.vocab_size, "Name the corpus it was made over."),
        ("split", made["corpus"]["split"], corpus.split, "Name that split."),
        ("corpus fingerprint", made["corpus"]["fingerprint"], corpus.fingerprint, "Name the corpus it was made over."),
        ("number of rows", len(store), len(corpus), "Name the corpus it was made over."),
        (
            "teacher",
            ", ".join(made["teacher"]["sha256"]),
            ", ".join(facts["sha256"]),
            "Name the teacher it was made by.",
        ),
        ("precision", made["teacher"]["dtype"], dtype, "Leave --dtype out: the store's own is taken."),
    ):
        if theirs != ours:
            raise StoreError(f"{store.path}: its {what} is {theirs}, and here it is {ours}. {do}")


def _groups(store: Store, *, rows: int, seed: int | None) -> list[Rows]:
    """Whole groups, as the capture ran them, that together hold at least so many rows of the store."""
    if rows < 1:
        raise RecipeError(f"--rows {rows}: give how many rows to compare, 1 or more.")
    size = int(store.manifest.get("capture", {}).get("group_rows", 1))
    numbers = np.unique(store.present() // size)
    count = min(len(numbers), -(-rows // size))
    if seed is None:
        chosen = sample_of(numbers, count)
    else:
        chosen = np.sort(np.random.default_rng(seed).permutation(numbers)[:count])
    return [np.arange(number * size, min((number + 1) * size, len(store))) for number in chosen.tolist()]


class _Compared:
    """Sums over compared rows."""

    def __init__(self, store: Store) -> None:
        self._store, self._sampled = store, store.manifest["kind"] == "sampled"
        self._rank_of_V = np.empty(len(store.permutation), np.uint32)
        self._rank_of_V[store.permutation] = np.arange(len(store.permutation), dtype=np.uint32)
        self._rows = self._equal = self._other = 0
        self._kl = self._online_loss = self._stored_loss = self._kept = self._furthest = 0.0

    def add(self, online: RowTargets, token_hash: int) -> None:
        """One row; its record is read and checked."""
        row = int(online.row_ids[0])
        stored = self._store.rows([row], [token_hash])
        packed = encode_row(online, token_hash=token_hash, rank_of_V=self._rank_of_V, grids=self._store.grids)
        self._rows += 1
        self._equal += packed == self._store.records([row])[0]
        furthest, other = logprob_differences(online, stored)
        self._furthest, self._other = max(self._furthest, furthest), self._other + other
        if not self._sampled:
            self._kl += kl_to_stored(online, stored)
        if online.log_rest_N is not None:
            self._kept += float(-np.expm1(online.log_rest_N.astype(np.float64)).mean())
        if online.label_logprob_N is not None and stored.label_logprob_N is not None:
            self._online_loss -= float(online.label_logprob_N.mean(dtype=np.float64))
            self._stored_loss -= float(stored.label_logprob_N.mean(dtype=np.float64))

    def report(self, dtype: str) -> dict[str, Any]:
        """Means; StoreError where the store is not that teacher's."""
        positions = self._rows * int(self._store.manifest["row_len"])
        facts: dict[str, Any] = {"rows": self._rows, "rows_equal": self._equal, "positions": positions}
        if "label" in self._store.manifest["streams"]:
            facts["teacher_loss_nats"] = self._online_loss / self._rows
            facts["stored_loss_nats"] = self._stored_loss / self._rows
        if not self._sampled:
            facts["mean_kept_mass"] = self._kept / self._rows
            facts["kl_online_to_stored_nats"] = self._kl / self._rows
        facts |= {"max_logprob_difference": self._furthest, "positions_other_ids": self._other}
        if self._sampled and self._other > DRAWS_BOUND * positions:
            raise StoreError(
                f"{self._store.path}: at {self._other:,} of {positions:,} positions the teacher's draws are not those "
                "that are stored, so that the store is not this teacher's. Capture it again."
            )
        if not self._sampled and not facts["kl_online_to_stored_nats"] <= KL_BOUND[dtype]:
            raise StoreError(
                f"{self._store.path}: over {self._rows:,} rows the teacher is {facts['kl_online_to_stored_nats']:.3g} "
                f"nats away from what is stored, and {KL_BOUND[dtype]:g} is the most that {dtype} explains: the store "
                "is not this teacher's. Capture it again."
            )
        return facts
