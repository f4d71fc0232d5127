"""In-context copying: random words once, then the same words again; what a model says the second time.

Distillation is known to hurt it (arXiv 2509.01649), and held-out loss hardly shows it. Nothing but the sequence itself
tells its words, so that a model which does not look back is at chance at best.
"""

# B sequences of a batch  T position  N = B*T  D width  V vocabulary
from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from predistill.corpus import Corpus
from predistill.evaluation.heldout import CHUNK_POSITIONS, Said
from predistill.students.forward import head_of, hidden_states

__all__ = ["copied_sequences", "copy_lengths", "measure_copying"]

SHORTEST = 8
SEQUENCES = 64
SEED = 0
BATCH_POSITIONS = 4096


@torch.inference_mode()
def measure_copying(model: PreTrainedModel, corpus: Corpus, *, sequences: int = SEQUENCES) -> dict[str, Any]:
    """Nats a word of the first copy and of the second, and the share of the second that the likeliest word gets right,
    by length; in the corpus' words, as far as its rows and the model's context reach.

    The second copy counts from its second word: nothing announces its first.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None) or corpus.row_len
    lengths = []
    for length in copy_lengths(min(corpus.row_len, context)):
        ids = copied_sequences(length, count=sequences, vocab_size=corpus.vocab_size, end_id=corpus.end_id)
        batch = max(1, BATCH_POSITIONS // ids.shape[1])
        parts = [
            _said(model, ids[start : start + batch], vocab_size=corpus.vocab_size)
            for start in range(0, sequences, batch)
        ]
        loss_BT, right_BT = (np.concatenate([part[i] for part in parts]).astype(np.float64) for i in (0, 1))
        lengths.append(
            {
                "length": length,
                "sequences": sequences,
                "first_loss_nats": float(loss_BT[:, :length].mean()),
                "loss_nats": float(loss_BT[:, length + 1 :].mean()),
                "accuracy": float(right_BT[:, length + 1 :].mean()),
            }
        )
    return {"vocab_size": corpus.vocab_size, "chance_nats": math.log(corpus.vocab_size), "lengths": lengths}


def copy_lengths(row_len: int) -> list[int]:
    """8, 16, 32, ... as long as both copies fit a row."""
    return [SHORTEST << power for power in range(max(0, (row_len // (2 * SHORTEST)).bit_length()))]


def copied_sequences(length: int, *, count: int, vocab_size: int, end_id: int) -> npt.NDArray[np.int64]:
    """[count, 1 + 2 * length]: the end token, which opens a document, then the same random words twice.

    Words are uniform over the vocabulary without the end token. The same for everyone of this vocabulary.
    """
    word = np.random.default_rng([SEED, length]).integers(0, vocab_size - 1, size=(count, length))
    word += word >= end_id
    return np.concatenate([np.full((count, 1), end_id), word, word], axis=1)


def _said(
    model: PreTrainedModel, ids_BT1: npt.NDArray[np.int64], *, vocab_size: int
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.bool_]]:
    """Nats of every label [B, T], and whether it was the likeliest word."""
    said, input_BT = Said(), torch.from_numpy(ids_BT1[:, :-1]).to(model.device)
    label_N = torch.from_numpy(ids_BT1[:, 1:].flatten()).to(model.device)
    hidden_ND = hidden_states(model, input_BT, end_id=None).flatten(0, 1)  # one document: nothing to mask
    for part_ND, part_N in zip(hidden_ND.split(CHUNK_POSITIONS), label_N.split(CHUNK_POSITIONS), strict=True):
        said.count(head_of(model).logits(part_ND)[:, :vocab_size].log_softmax(dim=-1), part_N)
    return np.concatenate(said.loss).reshape(input_BT.shape), np.concatenate(said.correct).reshape(input_BT.shape)
