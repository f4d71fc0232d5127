"""Teacher distributions as a language model makes them (a Zipf law under noise), kept or sampled, row by row."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from predistill.store import RowTargets, StoreWriter

VOCABULARY = 1024
PERMUTATION = np.random.default_rng(7).permutation(VOCABULARY)  # rank -> id: the Zipf law is over ranks
TRUNCATED: dict[str, Any] = {
    "teacher": {"name": "made"},
    "corpus": {"fingerprint": "f00d"},
    "truncation": {"kind": "top_p_k", "p": 0.95, "k": 100},
}
SAMPLED: dict[str, Any] = {
    "teacher": {"name": "made"},
    "corpus": {"fingerprint": "f00d"},
    "sampling": {"kind": "sampled", "draws": 50},
}


def full_logprob(row: int, *, positions: int, noise: float = 3.0) -> np.ndarray:
    """float64 [positions, ranks] log-probabilities of the whole vocabulary."""
    rng = np.random.default_rng([11, row])
    logit = -1.1 * np.log(np.arange(1, VOCABULARY + 1)) + noise * rng.normal(size=(positions, VOCABULARY))
    return logit - np.log(np.exp(logit).sum(axis=1, keepdims=True))


def truncated_row(row: int, *, positions: int = 32, p: float = 0.95, k: int = 100, extras: bool = True) -> RowTargets:
    """Top-p-k of one row, straight from the definition; every seventh position has no target."""
    logprob = full_logprob(row, positions=positions)
    order = np.argsort(-logprob, axis=1, kind="stable")
    ordered = np.take_along_axis(logprob, order, axis=1)
    before = np.exp(ordered).cumsum(axis=1) - np.exp(ordered)
    kept = (before < p) & (np.arange(VOCABULARY) < k) & (np.arange(positions) % 7 != 3)[:, None]
    rest = np.where(kept, 0.0, np.exp(ordered)).sum(axis=1)
    optional = {}
    if extras:
        optional = {
            "label_logprob_N": logprob[:, 5].astype(np.float32),
            "entropy_N": -(np.exp(logprob) * logprob).sum(axis=1).astype(np.float32),
            "logit_std_N": logprob.std(axis=1).astype(np.float32),
        }
    return RowTargets(
        row_ids=np.array([row]),
        positions=positions,
        length_N=kept.sum(axis=1).astype(np.int32),
        ids_E=PERMUTATION[order[kept]].astype(np.int32),
        logprob_E=ordered[kept].astype(np.float32),
        log_rest_N=np.log(rest, where=rest > 0, out=np.full(positions, -np.inf)).astype(np.float32),
        **optional,
    )


def sampled_row(row: int, *, positions: int = 32, draws: int = 50, tau: float | None = None) -> RowTargets:
    """`draws` of one row with repetition, from p^(1/tau) where tau is given; ids in a random order."""
    rng = np.random.default_rng([13, row])
    logprob = full_logprob(row, positions=positions)
    power = logprob / (tau or 1.0)
    normaliser = np.log(np.exp(power).sum(axis=1))
    counts = rng.multinomial(draws, np.exp(power - normaliser[:, None]))
    lengths, ranks, kept = [], [], []
    for position in range(positions):
        hit = rng.permutation(np.flatnonzero(counts[position]))
        lengths.append(len(hit))
        ranks.append(hit)
        kept.append(counts[position, hit])
    position_E = np.repeat(np.arange(positions), lengths)
    rank_E = np.concatenate(ranks)
    return RowTargets(
        row_ids=np.array([row]),
        positions=positions,
        length_N=np.array(lengths, np.int32),
        ids_E=PERMUTATION[rank_E].astype(np.int32),
        count_E=np.concatenate(kept).astype(np.int32),
        logprob_E=None if tau is None else logprob[position_E, rank_E].astype(np.float32),
        normaliser_N=None if tau is None else normaliser.astype(np.float32),
    )


def token_hash(row: int) -> int:
    """Stands for `fingerprint.row_hash`; above 2^63 for some rows, as real ones are."""
    return (row * 0x9E3779B97F4A7C15 + 1) % 2**64


def write_store(
    path: Path,
    *,
    rows: int,
    facts: dict[str, Any] = TRUNCATED,
    shard_bytes: int = 20_000,
    order: np.ndarray | None = None,
) -> Path:
    """A sealed store of so many made rows in several shards, written in the given order of rows."""
    make = sampled_row if "sampling" in facts else truncated_row
    with StoreWriter(path, manifest=facts, permutation=PERMUTATION, shard_bytes=shard_bytes) as writer:
        for row in np.arange(rows) if order is None else order:
            if row not in writer:
                writer.write(int(row), token_hash(int(row)), make(int(row)))
        writer.seal({"teacher_ce": 1.25, "kl": 5e-06}, rows_expected=rows)
    return path


def all_bytes(path: Path) -> dict[str, bytes]:
    """Every file of a store, by name."""
    return {str(file.relative_to(path)): file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()}
