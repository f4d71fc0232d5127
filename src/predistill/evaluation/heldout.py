"""Held-out text: loss, bits a byte, calibration, and the distance to a teacher over its whole vocabulary."""

# B rows of a batch  T position  N = B*T  D width  V vocabulary
from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from predistill.corpus import Corpus
from predistill.evaluation.breakdown import Losses, by_frequency, by_mass, by_position
from predistill.evaluation.calibration import (
    calibration_error,
    calibration_noise,
    expected_calibration_error,
    reliability,
)
from predistill.objective.checks import IGNORED
from predistill.students.forward import Head, head_of, hidden_states
from predistill.training.student import Student
from predistill.world import World

__all__ = ["Heldout", "Said", "heldout_in_training", "measure_heldout"]

CHUNK_POSITIONS = 1024  # logits of so many positions at once: [1024, V] float32 is 600 MB at V = 151,936
CHUNK_TOKENS = 1 << 22  # of the train split, whose ids are counted

Floats = npt.NDArray[np.float32]


@dataclass
class Said:
    """What one model said of the held-out labels: a few numbers a position, in parts as they came."""

    loss: list[Floats] = field(default_factory=list)
    confidence: list[Floats] = field(default_factory=list)
    correct: list[npt.NDArray[np.bool_]] = field(default_factory=list)
    entropy: list[Floats] = field(default_factory=list)  # empty where nobody asks for it

    def count(self, logprob_NV: torch.Tensor, label_N: torch.Tensor) -> torch.Tensor:
        """Take in positions; the likeliest id of each."""
        best_N = logprob_NV.argmax(dim=-1)
        self.loss.append(-logprob_NV.gather(1, label_N[:, None])[:, 0].cpu().numpy())
        self.confidence.append(logprob_NV.amax(dim=-1).exp().cpu().numpy())
        self.correct.append((best_N == label_N).cpu().numpy())
        return best_N

    @property
    def tokens(self) -> int:
        """How many positions."""
        return sum(map(len, self.loss))

    @property
    def loss_sum(self) -> float:
        """Nats."""
        return float(sum(part.sum(dtype=np.float64) for part in self.loss))


@dataclass
class Heldout:
    """What a student, and perhaps a teacher beside it, said of the held-out rows of one corpus."""

    row_len: int
    student: Said
    teacher: Said | None
    rows: int = 0
    agreed: int = 0
    kl: list[Floats] = field(default_factory=list)
    reverse_kl: list[Floats] = field(default_factory=list)
    position: list[npt.NDArray[np.int64]] = field(default_factory=list)  # in the row
    frequency: list[npt.NDArray[np.int64]] = field(default_factory=list)  # of the label's id in the train split

    @property
    def tokens(self) -> int:
        """How many labels counted."""
        return self.student.tokens

    def count(self, logprob_NV: torch.Tensor, taught_NV: torch.Tensor | None, label_N: torch.Tensor) -> None:
        """Take in positions: log-probabilities of the student and of the teacher."""
        best_N, prob_NV = self.student.count(logprob_NV, label_N), logprob_NV.exp()
        self.student.entropy.append(_expected(prob_NV, logprob_NV, sign=-1))
        if self.teacher is None or taught_NV is None:
            return
        taught_best_N, target_NV = self.teacher.count(taught_NV, label_N), taught_NV.exp()
        self.teacher.entropy.append(_expected(target_NV, taught_NV, sign=-1))
        self.agreed += int((taught_best_N == best_N).sum())
        ratio_NV = taught_NV - logprob_NV
        self.kl.append(_expected(target_NV, ratio_NV))
        self.reverse_kl.append(_expected(prob_NV, ratio_NV, sign=-1))

    def record(self, *, bytes_per_token: float | None, teacher: str | None) -> dict[str, object]:
        """The measures by name; docs/formats.md says what each is.

        There has to be a position.
        """
        confidence_N = np.concatenate(self.student.confidence)
        bins = reliability(confidence_N, np.concatenate(self.student.correct))
        loss, entropy = self.student.loss_sum / self.tokens, _mean(self.student.entropy)
        losses = self._losses()
        return {
            "rows": self.rows,
            "tokens": self.tokens,
            "loss_nats": loss,
            "bits_per_byte": None if bytes_per_token is None else loss / math.log(2) / bytes_per_token,
            "accuracy": float(np.concatenate(self.student.correct).mean()),
            "ece": calibration_error(bins),
            "ece_noise": calibration_noise(confidence_N),
            "entropy_nats": entropy,
            "reliability": [asdict(part) for part in bins],
            "by_position": by_position(np.concatenate(self.position), losses, row_len=self.row_len),
            "by_frequency": by_frequency(np.concatenate(self.frequency), losses),
            "by_teacher_entropy": None
            if self.teacher is None
            else by_mass(np.concatenate(self.teacher.entropy), losses),
            "teacher": None if self.teacher is None else {"name": teacher, **self._distance(self.teacher, entropy)},
        }

    def _distance(self, teacher: Said, entropy_nats: float) -> dict[str, float]:
        taught_entropy_nats = _mean(teacher.entropy)
        return {
            "kl_nats": _mean(self.kl),
            "agreement": self.agreed / self.tokens,
            "loss_nats": teacher.loss_sum / self.tokens,
            "reverse_kl_nats": _mean(self.reverse_kl),
            "entropy_nats": taught_entropy_nats,
            "entropy_gap_nats": entropy_nats - taught_entropy_nats,
            "ece": expected_calibration_error(np.concatenate(teacher.confidence), np.concatenate(teacher.correct)),
        }

    def _losses(self) -> Losses:
        student_N = np.concatenate(self.student.loss)
        if self.teacher is None:
            return Losses(student_N)
        return Losses(student_N, np.concatenate(self.teacher.loss), np.concatenate(self.kl))


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
    frequency_V = _train_counts(corpus)
    result = Heldout(corpus.row_len, Said(), None if teacher is None else Said())
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
            logprob_NV, taught_NV = _logprob(head_of(model), hidden_ND[part], corpus.vocab_size), None
            if teacher is not None and taught_ND is not None:
                taught_NV = _logprob(head_of(teacher), taught_ND[part], corpus.vocab_size)
            result.count(logprob_NV, taught_NV, label_N[part])
        result.position.append(counted_N.nonzero()[:, 0].cpu().numpy() % corpus.row_len)
        result.frequency.append(frequency_V[label_N.cpu().numpy()])
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
    said = Said()

    def use(head: Head, hidden_BTD: torch.Tensor, _router: torch.Tensor | None) -> tuple[()]:
        for hidden_ND, label_N in zip(
            hidden_BTD.flatten(0, 1).split(CHUNK_POSITIONS), label_BT.flatten().split(CHUNK_POSITIONS), strict=True
        ):
            counted_N = label_N != IGNORED
            said.count(_logprob(head, hidden_ND[counted_N], corpus.vocab_size), label_N[counted_N])
        return ()

    student.eval()
    for start in range(0, len(mine), batch_rows):
        part = mine[start : start + batch_rows]
        ids_BT1, label_BT = _rows(corpus, np.minimum(part, rows - 1), student.device)
        label_BT[torch.from_numpy(part >= rows)] = IGNORED
        student(ids_BT1[:, :-1], use)
    student.train()
    sums = torch.tensor([said.loss_sum, said.tokens], dtype=torch.float64, device=world.device)
    loss, tokens = world.sum_(sums).tolist()
    if not tokens:
        return {}
    parts = world.collect((said.confidence, said.correct))
    calibration = None
    if world.first:
        confidence, correct = ([array for part in parts for array in part[i]] for i in (0, 1))
        calibration = expected_calibration_error(np.concatenate(confidence), np.concatenate(correct))
    return {"loss_nats": loss / tokens, "ece": world.share(calibration)}


def _logprob(head: Head, hidden_ND: torch.Tensor, vocab_size: int) -> torch.Tensor:
    return head.logits(hidden_ND)[:, :vocab_size].log_softmax(dim=-1)


def _expected(prob_NV: torch.Tensor, value_NV: torch.Tensor, *, sign: int = 1) -> Floats:
    """The mean of `value_NV` under `prob_NV`, times `sign`."""
    mean_N: Floats = (prob_NV * value_NV).sum(dim=-1).mul_(sign).cpu().numpy()
    return mean_N


def _mean(parts: list[Floats]) -> float:
    return float(np.concatenate(parts).mean(dtype=np.float64))


def _train_counts(corpus: Corpus) -> npt.NDArray[np.int64]:
    """How often each id stands in the train split, int64 [V]."""
    train, count_V = Corpus(corpus.path), np.zeros(corpus.vocab_size, dtype=np.int64)
    tokens = train.split_stats["tokens"]
    for start in range(0, tokens, CHUNK_TOKENS):
        ids = train.stream(start, min(start + CHUNK_TOKENS, tokens))
        count_V += np.bincount(ids, minlength=corpus.vocab_size)
    return count_V


def _rows(corpus: Corpus, rows: npt.NDArray[np.int64], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [n, T + 1], and the labels [n, T] that count, IGNORED elsewhere."""
    ids, counted = corpus.rows(rows)
    label_BT = torch.from_numpy(ids[:, 1:].copy())
    if counted is not None:
        label_BT[~torch.from_numpy(counted)] = IGNORED
    return torch.from_numpy(ids).to(device), label_BT.to(device)
