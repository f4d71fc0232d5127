"""Held-out text: loss, bits a byte, calibration, and the distance to a teacher over its whole vocabulary."""

# B rows of a batch  T position  N = B*T  D width  V vocabulary
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from predistill.corpus import Corpus
from predistill.evaluation.calibration import expected_calibration_error
from predistill.objective.checks import IGNORED
from predistill.students.forward import Head, head_of, hidden_states
from predistill.training.student import Student
from predistill.world import World

__all__ = ["Heldout", "heldout_in_training", "measure_heldout"]

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

    def count(self, logprob_NV: torch.Tensor, label_N: torch.Tensor) -> torch.Tensor:
        """Take in positions; the likeliest id of each."""
        best_N = logprob_NV.argmax(dim=-1)
        self.tokens += len(label_N)
        self.loss_sum -= float(logprob_NV.gather(1, label_N[:, None]).double().sum())
        self.confidence.append(logprob_NV.amax(dim=-1).exp().cpu().numpy())
        self.correct.append((best_N == label_N).cpu().numpy())
        return best_N

    def record(self, *, bytes_per_token: float | None, teacher: str | None) -> dict[str, object]:
        """Nats a token, bits a byte, accuracy, ECE; and KL(teacher || student), agreement, the teacher's loss."""
        tokens = max(self.tokens, 1)
        confidence, correct = np.concatenate(self.confidence), np.concatenate(self.correct)
        loss = self.loss_sum / tokens
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "loss_nats": loss,
            "bits_per_byte": None if bytes_per_token is None else loss / math.log(2) / bytes_per_token,
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
    for begin in range(0, total, batch_rows):
        rows_B = np.arange(begin, min(begin + batch_rows, total))
        ids_BT1, label_BT = _rows(corpus, rows_B, model.device)
        counted_N = label_BT.flatten() != IGNORED
        label_N = label_BT.flatten()[counted_N]
        hidden_ND = hidden_states(model, ids_BT1[:, :-1], end_id=end_id).flatten(0, 1)[counted_N]
        taught_ND = None
        if teacher is not None:
            taught_ND = hidden_states(teacher, ids_BT1[:, :-1], end_id=end_id).flatten(0, 1)[counted_N]
        for start in range(0, len(label_N), CHUNK_POSITIONS):
            part = slice(start, start + CHUNK_POSITIONS)
            logprob_NV = _logprob(head, hidden_ND[part], corpus.vocab_size)
            best_N = result.count(logprob_NV, label_N[part])
            if teacher is not None and taught_ND is not None:
                target_NV = _logprob(head_of(teacher), taught_ND[part], corpus.vocab_size)
                result.kl_sum += float((target_NV.exp() * (target_NV - logprob_NV)).double().sum())
                result.teacher_loss_sum -= float(target_NV.gather(1, label_N[part, None]).double().sum())
                result.agreed += int((target_NV.argmax(dim=-1) == best_N).sum())
        result.rows += len(ids_BT1)
        if on_progress is not None:
            on_progress(result.rows, total)
    return result


@torch.no_grad()
def heldout_in_training(
    student: Student, corpus: Corpus, *, rows: int, world: World, batch_rows: int = 16
) -> dict[str, float]:
    """loss_nats and ece over the first `rows` rows of a split: the cheap measure, for a cadence in training.

    Every process takes its share of the rows, and all get the same answer.
    """
    rows = min(rows, len(corpus))
    if not rows:
        return {}
    mine = np.arange(world.rank, -(-rows // world.size) * world.size, world.size)  # as many on every process
    result = Heldout()

    def use(head: Head, hidden_BTD: torch.Tensor, _router: torch.Tensor | None) -> tuple[()]:
        for hidden_ND, label_N in zip(
            hidden_BTD.flatten(0, 1).split(CHUNK_POSITIONS), label_BT.flatten().split(CHUNK_POSITIONS), strict=True
        ):
            counted_N = label_N != IGNORED
            result.count(_logprob(head, hidden_ND[counted_N], corpus.vocab_size), label_N[counted_N])
        return ()

    student.eval()
    for start in range(0, len(mine), batch_rows):
        part = mine[start : start + batch_rows]
        ids_BT1, label_BT = _rows(corpus, np.minimum(part, rows - 1), student.device)
        label_BT[torch.from_numpy(part >= rows)] = IGNORED
        student(ids_BT1[:, :-1], use)
    student.train()
    sums = torch.tensor([result.loss_sum, result.tokens], dtype=torch.float64, device=world.device)
    loss, tokens = world.sum_(sums).tolist()
    if not tokens:
        return {}
    parts = world.collect((result.confidence, result.correct))
    calibration = None
    if world.first:
        confidence, correct = ([array for part in parts for array in part[i]] for i in (0, 1))
        calibration = expected_calibration_error(np.concatenate(confidence), np.concatenate(correct))
    return {"loss_nats": loss / tokens, "ece": world.share(calibration)}


def _logprob(head: Head, hidden_ND: torch.Tensor, vocab_size: int) -> torch.Tensor:
    return head.logits(hidden_ND)[:, :vocab_size].log_softmax(dim=-1)


def _rows(corpus: Corpus, rows: npt.NDArray[np.int64], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [n, T + 1], and the labels [n, T] that count, IGNORED elsewhere."""
    ids, counted = corpus.rows(rows)
    label_BT = torch.from_numpy(ids[:, 1:].copy())
    if counted is not None:
        label_BT[~torch.from_numpy(counted)] = IGNORED
    return torch.from_numpy(ids).to(device), label_BT.to(device)
