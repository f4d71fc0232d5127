"""What a model costs to use: the time of a prompt and of each new token, the memory that takes, and what the model
spares a larger one as its draft. All of it through the model's own `generate`, greedily, with a cache."""

# B prompts  P tokens of a prompt
from __future__ import annotations

import ctypes
import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig, PreTrainedModel

__all__ = ["Acceptance", "MemoryPeak", "Timing", "measure_acceptance", "time_generation"]

DRAFT_TOKENS = 5  # that the student proposes at once


@dataclass(frozen=True)
class Timing:
    """Seconds until the logits of the first new token are there, and seconds of all the others."""

    first_token_seconds: float
    decode_seconds: float


@dataclass
class Acceptance:
    """Sums over prompts: what a draft proposed and its teacher accepted, and what the same text took both ways.

    `rounds`: passes of the teacher; each writes what it accepts and one token of its own. `equal`: prompts of which
    both ways wrote the same text. Greedily they differ only where the rounding of a sum decides between two words.
    """

    prompts: int = 0
    equal: int = 0
    tokens: int = 0
    rounds: int = 0
    proposed: int = 0
    accepted: int = 0
    teacher_seconds: float = 0.0
    assisted_seconds: float = 0.0

    def record(self) -> dict[str, Any]:
        """The share of proposed tokens that is accepted (None where none was proposed), and tokens a second."""
        return {
            "rate": self.accepted / self.proposed if self.proposed else None,
            "proposed": self.proposed,
            "accepted": self.accepted,
            "draft_tokens": DRAFT_TOKENS,
            "tokens_per_round": self.tokens / self.rounds,
            "prompts": self.prompts,
            "equal": self.equal,
            "teacher_tokens_per_second": self.tokens / self.teacher_seconds,
            "assisted_tokens_per_second": self.tokens / self.assisted_seconds,
        }


class MemoryPeak:
    """The most memory that a model takes from now on: weights, cache and activations, without Python and its libraries.

    On CUDA what torch has allocated. On a CPU the bytes of the weights, and by how much the resident memory of this
    process grows; so let the process do nothing else, and write a token or two with the model before.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._device = model.device
        self._weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
        self._before: int | None = None
        gc.collect()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            for parameter in model.parameters():  # a weight that is mapped from its file is resident once it is read
                parameter.sum()
        with suppress(AttributeError, OSError, TypeError):  # another C library
            ctypes.CDLL(None).malloc_trim(0)  # what loading has left free would hide that memory grows
        with suppress(OSError):  # another system
            Path("/proc/self/clear_refs").write_text("5")  # the peak is the present
            self._before = _status_bytes("VmHWM")

    @property
    def process_bytes(self) -> int | None:
        """Resident memory of the whole process at its peak, libraries and all; not what is on an accelerator."""
        return None if self._before is None else _status_bytes("VmHWM")

    @property
    def bytes(self) -> int | None:
        """Bytes; None where the system does not tell."""
        if self._device.type == "cuda":
            return torch.cuda.max_memory_allocated(self._device)
        peak = _status_bytes("VmHWM")
        return None if peak is None or self._before is None else self._weight_bytes + max(0, peak - self._before)


def time_generation(model: PreTrainedModel, prompt_BP: torch.Tensor, *, new_tokens: int) -> Timing:
    """Write `new_tokens` (at least 2) after each prompt of a batch; no end token stops it."""
    first: list[float] = []

    def note(*_call: Any) -> None:
        if not first:
            _finish(model)
            first.append(time.perf_counter())

    hook = model.register_forward_hook(note)
    try:
        start = _now(model)
        written_BN = _write(model, prompt_BP, new_tokens)
        end = _now(model)
    finally:
        hook.remove()
    assert written_BN.shape[1] == new_tokens
    return Timing(first[0] - start, end - first[0])


def measure_acceptance(
    teacher: PreTrainedModel, student: PreTrainedModel, prompt_BP: torch.Tensor, *, new_tokens: int
) -> Acceptance:
    """Let `teacher` write after each prompt, alone and with `student` as its draft (arXiv 2211.17192, greedy).

    Both have the same words. A round: the student proposes `DRAFT_TOKENS` tokens (fewer where less text is left), the
    teacher runs them at once and accepts those that it would have written itself, up to the first that it would not.
    An uncounted turn comes first; then each way goes first every other time.
    """
    result = Acceptance()
    for number, prompt_P in enumerate([prompt_BP[0], *prompt_BP]):
        lengths: list[int] = []
        alone_N, assisted_N, seconds = prompt_P, prompt_P, {}
        for assisted in (False, True) if number % 2 else (True, False):
            start = _now(teacher)
            if assisted:
                with _passes(teacher, lengths):
                    assisted_N = _write(teacher, prompt_P[None], new_tokens, draft=student)[0]
            else:
                alone_N = _write(teacher, prompt_P[None], new_tokens)[0]
            seconds[assisted] = _now(teacher) - start
        if number == 0:
            continue
        result.prompts += 1
        result.equal += int(torch.equal(alone_N, assisted_N))
        result.tokens += len(assisted_N)
        result.rounds += len(lengths)
        # A pass takes the proposed tokens after the one before them; the first pass takes them after the whole prompt.
        result.proposed += sum(lengths) - (len(prompt_P) - 1) - len(lengths)
        result.accepted += len(assisted_N) - len(lengths)
        result.teacher_seconds += seconds[False]
        result.assisted_seconds += seconds[True]
    return result


@torch.inference_mode()
def _write(
    model: PreTrainedModel, prompt_BP: torch.Tensor, new_tokens: int, *, draft: PreTrainedModel | None = None
) -> torch.Tensor:
    """The new tokens [B, new_tokens]."""
    with _plainly(model), _plainly(draft):
        written: torch.Tensor = model.generate(  # type: ignore[operator]  # Transformers mixes it in
            prompt_BP, do_sample=False, max_new_tokens=new_tokens, assistant_model=draft
        )
    return written[:, prompt_BP.shape[1] :]


@contextmanager
def _plainly(model: PreTrainedModel | None) -> Iterator[None]:
    """Without what a model's files ask of sampling, penalties and end tokens; as a draft, of as many proposals each
    time: Transformers' own rule changes their number with the student's confidence, and with what is installed."""
    if model is None:
        yield
        return
    before = model.generation_config
    model.generation_config = GenerationConfig(
        num_assistant_tokens=DRAFT_TOKENS, num_assistant_tokens_schedule="constant", assistant_confidence_threshold=0.0
    )
    try:
        yield
    finally:
        model.generation_config = before


@contextmanager
def _passes(model: PreTrainedModel, lengths: list[int]) -> Iterator[None]:
    """Note how many tokens each pass of the model takes in."""

    def note(_model: Any, _args: Any, given: dict[str, Any]) -> None:
        lengths.append(given["input_ids"].shape[1])

    hook = model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield
    finally:
        hook.remove()


def _now(model: PreTrainedModel) -> float:
    _finish(model)
    return time.perf_counter()


def _finish(model: PreTrainedModel) -> None:
    """Wait for the device."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


def _status_bytes(name: str) -> int | None:
    """A line of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    return None
