"""What a model costs: its draft is counted by the definition, no end token stops a turn, memory is its own."""

# B prompts  P tokens of a prompt
from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import GenerationConfig, PreTrainedModel

from predistill.assets import teacher_path
from predistill.corpus import Corpus
from predistill.evaluation.footprint import DRAFT_TOKENS, MemoryPeak, measure_acceptance, time_generation
from predistill.students.build import build_student, load_model, student_config

NEW_TOKENS = 23
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def teacher() -> PreTrainedModel:
    return load_model(teacher_path(), device=CPU).eval()


@pytest.fixture(scope="module")
def students() -> dict[str, PreTrainedModel]:
    """The teacher again, one that often says the same, and one that knows nothing."""
    twin, near = (load_model(teacher_path(), device=CPU).eval() for _ in range(2))
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in near.parameters():
            parameter += 0.1 * parameter.std() * torch.randn(parameter.shape, generator=random)
    config = student_config("nano-xs", vocab_size=2048, row_len=256, end_id=0)
    return {"twin": twin, "near": near, "far": build_student(config, seed=0, device=CPU).eval()}


@pytest.fixture
def prompt_BP(corpus: Path) -> torch.Tensor:
    return torch.from_numpy(Corpus(corpus, split="held_out").rows(range(2))[0][:, :20])


@torch.inference_mode()
def likeliest(model: PreTrainedModel, ids: list[int]) -> int:
    return int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())


def drafted(teacher: PreTrainedModel, student: PreTrainedModel, prompt: list[int]) -> tuple[list[int], int, int, int]:
    """Draft and verify, word by word and without a cache: the text, rounds, proposed and accepted tokens."""
    ids, end = list(prompt), len(prompt) + NEW_TOKENS
    rounds = proposed = accepted = 0
    while len(ids) < end:
        draft: list[int] = []
        for _ in range(min(DRAFT_TOKENS, end - len(ids) - 1)):
            draft.append(likeliest(student, ids + draft))
        rounds, proposed = rounds + 1, proposed + len(draft)
        for token in draft:
            if token != likeliest(teacher, ids):
                break
            ids, accepted = [*ids, token], accepted + 1
        ids.append(likeliest(teacher, ids))
    return ids[len(prompt) :], rounds, proposed, accepted


@pytest.mark.parametrize("name", ["twin", "near", "far"])
def test_with_a_draft_a_teacher_writes_what_it_writes_alone_and_the_counts_are_those_of_drafting_word_by_word(
    name: str, teacher: PreTrainedModel, students: dict[str, PreTrainedModel], prompt_BP: torch.Tensor
) -> None:
    found = measure_acceptance(teacher, students[name], prompt_BP[:1], new_tokens=NEW_TOKENS)
    text, rounds, proposed, accepted = drafted(teacher, students[name], prompt_BP[0].tolist())
    assert (found.tokens, found.rounds, found.proposed, found.accepted) == (len(text), rounds, proposed, accepted)
    assert found.equal == found.prompts == 1
    assert found.accepted + found.rounds == NEW_TOKENS
    assert 0 < accepted < proposed or name != "near"


def test_a_teacher_accepts_all_of_its_own_words(
    teacher: PreTrainedModel, students: dict[str, PreTrainedModel], prompt_BP: torch.Tensor
) -> None:
    record = measure_acceptance(teacher, students["twin"], prompt_BP, new_tokens=NEW_TOKENS).record()
    assert record["rate"] == 1.0
    assert record["tokens_per_round"] == NEW_TOKENS / math.ceil(NEW_TOKENS / (DRAFT_TOKENS + 1))


def test_what_is_accepted_of_a_prompt_is_the_same_in_any_company(
    teacher: PreTrainedModel, students: dict[str, PreTrainedModel], prompt_BP: torch.Tensor
) -> None:
    def counts(prompt_BP: torch.Tensor) -> torch.Tensor:
        found = measure_acceptance(teacher, students["near"], prompt_BP, new_tokens=NEW_TOKENS)
        return torch.tensor([found.tokens, found.rounds, found.proposed, found.accepted])

    assert torch.equal(counts(prompt_BP), sum((counts(prompt_BP[i : i + 1]) for i in range(2)), torch.zeros(4).long()))


def test_one_new_token_proposes_nothing(
    teacher: PreTrainedModel, students: dict[str, PreTrainedModel], prompt_BP: torch.Tensor
) -> None:
    record = measure_acceptance(teacher, students["near"], prompt_BP, new_tokens=1).record()
    assert (record["proposed"], record["accepted"], record["rate"]) == (0, 0, None)


def test_neither_an_end_token_nor_what_a_model_s_files_ask_of_sampling_changes_a_turn(
    teacher: PreTrainedModel, students: dict[str, PreTrainedModel], prompt_BP: torch.Tensor
) -> None:
    _, *counts = drafted(teacher, students["near"], prompt_BP[0].tolist())
    before = teacher.generation_config
    asked = GenerationConfig(eos_token_id=list(range(2048)), repetition_penalty=9.0, do_sample=True, pad_token_id=0)
    teacher.generation_config = asked
    try:
        timing = time_generation(teacher, prompt_BP, new_tokens=NEW_TOKENS)  # which sees to it that all are written
        found = measure_acceptance(teacher, students["near"], prompt_BP[:1], new_tokens=NEW_TOKENS)
        assert teacher.generation_config is asked
    finally:
        teacher.generation_config = before
    assert [found.rounds, found.proposed, found.accepted] == counts
    assert timing.first_token_seconds > 0
    assert timing.decode_seconds > 0
    assert not teacher._forward_hooks
    assert not teacher._forward_pre_hooks


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells a process's peak anew")
def test_the_peak_is_the_weights_and_what_a_turn_takes_beside_them(
    teacher: PreTrainedModel, prompt_BP: torch.Tensor
) -> None:
    weight_bytes, extra_bytes = 4 * sum(parameter.numel() for parameter in teacher.parameters()), 96 << 20

    def taking(_model: object, _args: object, _out: object) -> None:
        torch.ones(extra_bytes, dtype=torch.uint8)

    time_generation(teacher, prompt_BP[:, :1], new_tokens=2)
    peak = MemoryPeak(teacher)
    time_generation(teacher, prompt_BP, new_tokens=2)
    plain_bytes = peak.bytes
    assert plain_bytes is not None
    assert weight_bytes <= plain_bytes < weight_bytes + extra_bytes // 2
    peak = MemoryPeak(teacher)
    hook = teacher.register_forward_hook(taking)
    time_generation(teacher, prompt_BP, new_tokens=2)
    hook.remove()
    assert peak.bytes is not None
    assert peak.bytes == pytest.approx(plain_bytes + extra_bytes, rel=0.1)
