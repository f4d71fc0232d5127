"""The examples of docs/loops.md, run as they stand: two loops, one student."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from predistill.corpus import Corpus
from predistill.students.build import build_student, student_config

DOCUMENT = Path(__file__).parents[2] / "docs" / "loops.md"
ROWS, STEPS = 4, 3


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), flags=re.DOTALL)


def student(corpus: Path) -> Any:
    facts = Corpus(corpus)
    config = student_config("nano-xs", vocab_size=facts.vocab_size, row_len=facts.row_len, end_id=facts.end_id)
    return build_student(config, seed=3, device=torch.device("cpu"))


@pytest.mark.filterwarnings("ignore:'pin_memory' argument")
def test_both_loops_train_the_same_student(corpus: Path, store: Path, tmp_path: Path) -> None:
    plain, trainer = examples()
    trained = []
    for code in (plain, trainer):
        given = {
            "CORPUS": corpus, "STORE": store, "OUT": tmp_path / "out", "STEPS": STEPS, "ROWS": ROWS,
            "student": student(corpus),
        }  # fmt: skip
        exec(compile(code, str(DOCUMENT), "exec"), given)
        trained.append(given.get("model", given["student"]).state_dict())
    before = student(corpus).state_dict()
    for name, weight in trained[0].items():
        assert torch.allclose(weight, trained[1][name], rtol=1e-5, atol=1e-7), name
    assert any((weight - before[name]).abs().max() > 1e-4 for name, weight in trained[0].items())
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert torch.equal(again.get_input_embeddings().weight, trained[1]["model.embed_tokens.weight"])
