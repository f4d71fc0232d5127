"""Held-out text: loss, bits a byte, calibration, and the distance to a teacher over its whole vocabulary."""

# B rows of a batch  T position  N = B*T  D width  V vocabulary
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from predistill.corpus import Corpus
from predistill.evaluation.calibration import expected_calibration_error
from predistill.students.forward import Head, head_of, hidden_states

__all__ = ["Heldout", "heldout_loss", "measure_heldout"]

CHUNK_POSITIONS = 1024  # logits of so many positions at once: [1024, V] float32 is 600 MB at V = 151,936


@dataclass
class Heldout:
    """Sums over held-out positions, and what they say."""

    rows: int = 0
    tokens: int = 0
    loss_sum: float = 0.0
    kl_sum: float = 0.0
    teacher_loss_sum: float = 0.0
    agreed: int = 0
    confidence: list[npt.NDArray[np.float32]] = field(default_factory=list)
    correct: list[npt.NDArray[np.bool_]] = field(default_factory=list)

    def record(self, *, bytes_per_token: float, teacher: str | None) -> dict[str, object]:
        """Nats a token, bits a byte, accuracy, ECE; and KL(teacher || student), agreement, the teacher's loss."""
        tokens = max(self.tokens, 1)
        confidence, correct = np.concatenate(self.confidence), np.concatenate(self.correct)
        loss = self.loss_sum / tokens
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "loss_nats": loss,
            "bits_per_byte": loss / math.log(2) / bytes_per_token,
            "accuracy": float(correct.mean()),
            "ece": expected_calibration_error(confidence, correct),
            "teacher": None
            if teacher is None
            else {
                "name": teacher,
                "kl_nats": self.kl_sum / tokens,
                "agreement": self.agreed / tokens,
                "loss_nats": self.teacher_loss_sum / tokens,
            },
        }


@torch.inference_mode()
def measure_heldout(
    model: PreTrainedModel,
    corpus: Corpus,
    *,
    teacher: PreTrainedModel | None,
    rows: int | None = None,
    batch_rows: int = 16,
    on_progress: Callable[[int, int], None] | None = None,
) -> Heldout:
    """Run `model` (and `teacher`) over the first `rows` rows of a split (None: all); `on_progress(rows done, rows)`."""
    total = len(corpus) if rows is None else min(rows, len(corpus))
    end_id = corpus.end_id if corpus.document_mask else None
    head, result = head_of(model), Heldout()
    for ids_BT1 in _batches(corpus, total, batch_rows, model.device):
        label_N = ids_BT1[:, 1:].flatten()
        hidden_ND = hidden_states(model, ids_BT1[:, :-1], end_id=end_id).flatten(0, 1)
        taught_ND = None
        if teacher is not None:
            taught_ND = hidden_states(teacher, ids_BT1[:, :-1], end_id=end_id).flatten(0, 1)
        for start in range(0, len(label_N), CHUNK_POSITIONS):
            part = slice(start, start + CHUNK_POSITIONS)
            logprob_NV = _logprob(head, hidden_ND[part], corpus.vocab_size)
            best_N = logprob_NV.argmax(dim=-1)
            result.loss_sum -= float(logprob_NV.gather(1, label_N[part, None]).double().sum())
            result.confidence.append(logprob_NV.amax(dim=-1).exp().cpu().numpy())
            result.correct.append((best_N == label_N[part]).cpu().numpy())
            if teacher is not None and taught_ND is not None:
                target_NV = _logprob(head_of(teacher), taught_ND[part], corpus.vocab_size)
                result.kl_sum += float((target_NV.exp() * (target_NV - logprob_NV)).double().sum())
                result.teacher_loss_sum -= float(target_NV.gather(1, label_N[part, None]).double().sum())
                result.agreed += int((target_NV.argmax(dim=-1) == best_N).sum())
        result.rows += len(ids_BT1)
        result.tokens += len(label_N)
        if on_progress is not None:
            on_progress(result.rows, total)
    return result


@torch.inference_mode()
def heldout_loss(model: PreTrainedModel, corpus: Corpus, *, rows: int, batch_rows: int = 16) -> float:
    """Nats a token over the first `rows` rows of a split: the cheap measure, for a cadence in training."""
    end_id = corpus.end_id if corpus.document_mask else None
    head, total, tokens = head_of(model), 0.0, 0
    for ids_BT1 in _batches(corpus, min(rows, len(corpus)), batch_rows, model.device):
        label_N = ids_BT1[:, 1:].flatten()
        hidden_ND = hidden_states(model, ids_BT1[:, :-1], end_id=end_id).flatten(0, 1)
        for hidden_part, label_part in zip(
            hidden_ND.split(CHUNK_POSITIONS), label_N.split(CHUNK_POSITIONS), strict=True
        ):
            logit_NV = head.logits(hidden_part)[:, : corpus.vocab_size]
            total += float(torch.nn.functional.cross_entropy(logit_NV, label_part, reduction="sum").double())
        tokens += len(label_N)
    return total / max(tokens, 1)


def _logprob(head: Head, hidden_ND: torch.Tensor, vocab_size: int) -> torch.Tensor:
    return head.logits(hidden_ND)[:, :vocab_size].log_softmax(dim=-1)


def _batches(corpus: Corpus, rows: int, batch_rows: int, device: torch.device) -> Iterator[torch.Tensor]:
    for start in range(0, rows, batch_rows):
        ids, _ = corpus.rows(np.arange(start, min(start + batch_rows, rows)))
        yield torch.from_numpy(ids).to(device)
