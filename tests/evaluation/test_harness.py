"""Our scores are lm-eval's own to the digit: its task definitions, its model class, the same rows of the real files."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lm_eval.models.huggingface import HFLM
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from predistill.assets import teacher_path
from predistill.evaluation.answers import Answers, quiet
from predistill.evaluation.harness import measure_task
from predistill.evaluation.rows import Asked, asked_rows
from predistill.evaluation.scores import headline_scores
from predistill.evaluation.suites import Task, chosen_tasks
from predistill.students.build import load_model, load_tokenizer
from tests.evaluation.theirs import their_scores

DATA = Path(os.environ.get("PREDISTILL_DATA", Path(__file__).parents[3] / "shared" / "data"))
CPU = torch.device("cpu")
ROWS = {
    "hellaswag": 24, "winogrande": 24, "piqa": 24, "mmlu:5": 8, "mmlu": 6, "kbqa": 24, "ceval": 6, "gsm8k:2": 8,
    "arc_easy": 24, "boolq": 16, "openbookqa": 24, "lambada": 16, "blimp": 24,
}  # fmt: skip

needs_data = pytest.mark.skipif(not (DATA / "eval").is_dir(), reason="no $PREDISTILL_DATA with task files")


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    """The embedded teacher, which may read further than it learned to: or prompts with examples would be cut to one."""
    loaded = load_model(teacher_path(), device=CPU).eval()
    loaded.config.max_position_embeddings = 1024
    return loaded


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return load_tokenizer(teacher_path())


@pytest.fixture(scope="module")
def answers(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Answers:
    return Answers(model, tokenizer)


@pytest.fixture(scope="module")
def theirs(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> HFLM:
    with quiet():
        return HFLM(pretrained=model, backend="causal", tokenizer=tokenizer, batch_size=8)


def asked_of(words: str, limit: int) -> tuple[Task, Asked]:
    (task,) = chosen_tasks(words)
    return task, asked_rows(task, data=DATA, limit=limit)


def shown_in(task: Task, asked: Asked) -> list[dict[str, Any]]:
    """The examples, each with its group."""
    group = {} if task.rows.group is None else task.rows.group
    return [row | ({group: key} if group else {}) for key, rows in asked.shots.items() for row in rows]


def same_scores(words: str, answers: Answers, theirs: HFLM, *, rows: int) -> None:
    task, asked = asked_of(words, rows)
    ours = measure_task(answers, task, asked)
    wanted = their_scores(theirs, task.name, asked.rows, shots=task.shots, shown=shown_in(task, asked))
    assert set(ours["metrics"]) <= set(wanted)  # of letters a normalised accuracy is the plain one, and we leave it out
    for name, metric in ours["metrics"].items():
        assert metric["value"] == pytest.approx(wanted[name], rel=1e-6)
    assert ours["n"] == rows


@needs_data
@pytest.mark.data
@pytest.mark.parametrize(
    "words", [pytest.param(words, marks=pytest.mark.slow if "gsm8k" in words else ()) for words in ROWS]
)
def test_scores_are_those_of_lm_evals_own_task(words: str, answers: Answers, theirs: HFLM) -> None:
    same_scores(words, answers, theirs, rows=ROWS[words])


@needs_data
@pytest.mark.data
def test_examples_show_one_of_several_accepted_answers(answers: Answers) -> None:
    task, asked = asked_of("kbqa:2", 1)  # lm-eval's own task cannot show any
    (first, second), (row,) = asked.shots[None], asked.rows
    turns = [f"Question: {shown['question']}\nAnswer: {shown['answers'][0]}\n\n" for shown in (first, second)]
    assert measure_task(answers, task, asked)["example"]["prompt"] == (
        f"{turns[0]}{turns[1]}Question: {row['question']}\nAnswer:"
    )


@pytest.mark.slow
@needs_data
@pytest.mark.data
@pytest.mark.skipif("PREDISTILL_GGUF" not in os.environ, reason="$PREDISTILL_GGUF names no .gguf file")
def test_scores_of_a_real_model_are_those_of_lm_evals_own_tasks() -> None:
    path = Path(os.environ["PREDISTILL_GGUF"])
    large, words = load_model(path, device=CPU).eval(), load_tokenizer(path)
    with quiet():
        theirs = HFLM(pretrained=large, backend="causal", tokenizer=words, batch_size=8)
    for task in ("hellaswag", "winogrande", "piqa", "arc_easy", "lambada", "boolq", "mmlu:5"):
        same_scores(task, Answers(large, words), theirs, rows=100)


@torch.no_grad()
def said(model: PreTrainedModel, ids: list[int], scored: int) -> float:
    """Log-probability of the last `scored` ids, in float64."""
    logprob_TV = model(input_ids=torch.tensor(ids[:-1])[None]).logits[0].double().log_softmax(dim=-1)
    return sum(float(logprob_TV[i - 1, ids[i]]) for i in range(len(ids) - scored, len(ids)))


@needs_data
@pytest.mark.data
def test_a_student_of_ours_is_asked_as_it_was_trained(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    task, asked = asked_of("arc_easy", 5)
    opened = Answers(model, tokenizer, opens_with=0)
    result = measure_task(opened, task, asked)
    assert result["opens_with"] == "<|endoftext|>"
    best = []
    for row in asked.rows:
        prompt = tokenizer.encode(f"Question: {row['question']}\nAnswer:")
        lengths = [len(choice) for choice in row["choices"]]
        scores = []
        for choice in row["choices"]:
            whole = tokenizer.encode(f"Question: {row['question']}\nAnswer: {choice}")
            scores.append(said(model, [0, *whole], len(whole) - len(prompt)))
        best.append(int(np.argmax(np.array(scores) / lengths) == row["answer"]))
        if row is asked.rows[0]:
            assert result["example"]["scores"] == pytest.approx(scores, abs=1e-3)
            assert result["example"]["prompt"] == f"Question: {row['question']}\nAnswer:"
    assert headline_scores(result).tolist() == best


@needs_data
@pytest.mark.data
def test_a_sentence_without_a_prompt_is_scored_after_the_token_that_opens_it(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    task, asked = asked_of("blimp", 1)
    result = measure_task(Answers(model, tokenizer, opens_with=0), task, asked)
    wanted = [
        said(model, [0, *ids], len(ids)) for ids in map(tokenizer.encode, (f" {c}" for c in asked.rows[0]["choices"]))
    ]
    assert result["example"]["scores"] == pytest.approx(wanted, abs=1e-3)


@needs_data
@pytest.mark.data
def test_prompts_that_lose_their_beginning_are_counted_once_a_row(tokenizer: PreTrainedTokenizerBase) -> None:
    short = load_model(teacher_path(), device=CPU).eval()
    task, asked = asked_of("boolq", 12)
    result = measure_task(Answers(short, tokenizer, opens_with=0), task, asked)
    prompts = [f"{row['passage']}\nQuestion: {row['question']}?\nAnswer:" for row in asked.rows]
    lengths = [1 + max(len(tokenizer.encode(f"{prompt} {word}")) for word in ("no", "yes")) for prompt in prompts]
    assert 0 < result["cut"] == sum(length > 256 + 1 for length in lengths) < 12
    assert result["context"] == 256


@needs_data
@pytest.mark.data
def test_a_record_says_what_was_asked_and_how_sure_it_is(answers: Answers) -> None:
    task, asked = asked_of("lambada", 8)
    told: list[float] = []
    result = measure_task(answers, task, asked, on_progress=told.append)
    assert told == sorted(told)
    assert told[-1] == 1.0
    scores = headline_scores(result)
    assert result["metrics"]["acc"]["value"] == scores.mean()
    assert result["metrics"]["acc"]["stderr"] == pytest.approx(scores.std(ddof=1) / 8**0.5)
    texts = [(row["context"], row["context"] + row["target"]) for row in asked.rows]
    pairs = [(answers.tokenizer.encode(context), answers.tokenizer.encode(whole)) for context, whole in texts]
    nats = np.array([-said(answers.model, whole, len(whole) - len(context)) for context, whole in pairs])
    perplexity = float(np.exp(nats.mean()))
    assert result["metrics"]["perplexity"]["value"] == pytest.approx(perplexity, rel=1e-4)
    assert result["metrics"]["perplexity"]["stderr"] == pytest.approx(perplexity * nats.std(ddof=1) / 8**0.5, rel=1e-3)
    assert (result["n"], result["of"], result["shots"], result["cut"]) == (8, 5153, 0, 0)
    assert [file["name"] for file in result["files"]] == ["lambada_openai.test.jsonl.zst"]
    assert result["opens_with"] is None
