"""The root module hands the head and the hidden states over in the precision that products are computed in."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from predistill.students.build import build_student, student_config
from predistill.students.forward import Head
from predistill.training.student import Student

IDS = torch.arange(8)[None]


@pytest.mark.parametrize(("bf16", "dtype"), [(False, torch.float32), (True, torch.bfloat16)])
def test_hidden_states_are_as_wide_as_the_products_and_weights_stay_float32(bf16: bool, dtype: torch.dtype) -> None:
    config = student_config("nano-xs", vocab_size=64, row_len=16, end_id=0)
    student = Student(build_student(config, seed=0, device=torch.device("cpu")), bf16=bf16)

    def use(head: Head, hidden_BTD: Tensor, router: Tensor | None) -> tuple[Any, ...]:
        assert router is None
        return hidden_BTD.dtype, head.weight_VD.dtype, head.logits(hidden_BTD[0])

    hidden_dtype, weight_dtype, logit_NV = student(IDS, use)
    assert (hidden_dtype, weight_dtype, logit_NV.dtype) == (dtype, torch.float32, torch.float32)
    exact_NV = student.model(IDS).logits[0]
    assert torch.allclose(logit_NV, exact_NV, atol=0.02 if bf16 else 1e-6)
