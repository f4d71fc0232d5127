"""Cost arithmetic against counted FLOPs, allocated moments and saved activations of real models."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from predistill.laws import forward_flops, training_bytes, training_flops
from predistill.objective import linear_distill_loss
from predistill.students import PRESETS
from predistill.students.build import build_student, student_config
from predistill.students.forward import head_of, hidden_states
from predistill.training.optim import adamw

CPU = torch.device("cpu")
VOCABULARY, ROW_LEN, ROWS = 500, 128, 2


def model_of(name: str) -> PreTrainedModel:
    return build_student(student_config(name, vocab_size=VOCABULARY, row_len=ROW_LEN, end_id=0), seed=0, device=CPU)


@pytest.mark.parametrize("name", ["nano-s", "nano-m"])
def test_forward_flops_are_those_that_pytorch_counts_with_half_of_each_attention_square(name: str) -> None:
    preset, model = PRESETS[name], model_of(name)
    model.set_attn_implementation("eager")  # the fused one is not counted on every device
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.randint(VOCABULARY, (ROWS, ROW_LEN)), use_cache=False)
    # Scores and values are 2 * T * D multiplications and additions each, over the whole square.
    attention = ROWS * ROW_LEN * preset.layers * 2 * 2 * ROW_LEN * preset.hidden
    norms = (2 * preset.layers + 1) * preset.hidden
    ours = forward_flops(
        matrix_parameters=preset.non_embedding_parameters - norms + VOCABULARY * preset.hidden,
        layers=preset.layers,
        width=preset.hidden,
        row_len=ROW_LEN,
    )
    rotary = counter.get_total_flops() - (ROWS * ROW_LEN * ours + attention / 2)
    assert 0 <= rotary < 1e-3 * counter.get_total_flops()  # the rotation's table of angles is a small product


def test_training_is_three_forwards() -> None:
    shape = {"matrix_parameters": 12345, "layers": 3, "width": 64, "row_len": 100}
    assert training_flops(**shape) == 3 * forward_flops(**shape)


def test_memory_of_weights_gradients_and_moments_is_what_is_allocated() -> None:
    model = model_of("nano-s")
    optimizer = adamw(model, betas=(0.9, 0.95), weight_decay=0.1)
    model(torch.zeros(1, 8, dtype=torch.long), use_cache=False).logits.sum().backward()
    optimizer.step()
    preset = PRESETS["nano-s"]
    sizes = training_bytes(
        parameters=preset.parameters(VOCABULARY),
        vocab_size=VOCABULARY,
        layers=preset.layers,
        width=preset.hidden,
        ffn=preset.ffn,
        micro_batch_tokens=8,
    )
    assert sizes["weights"] == sum(p.nbytes for p in model.parameters())
    assert sizes["gradients"] == sum(p.grad.nbytes for p in model.parameters() if p.grad is not None)
    moments = [t for state in optimizer.state.values() for name, t in state.items() if name.startswith("exp_avg")]
    assert sizes["optimizer"] == sum(t.nbytes for t in moments)


def test_memory_of_activations_is_what_autograd_saves_to_within_a_third() -> None:
    preset, model = PRESETS["nano-m"], model_of("nano-m")
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    saved: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        hidden_BTD = hidden_states(model, torch.randint(VOCABULARY, (ROWS, ROW_LEN)), end_id=None)
        linear_distill_loss(
            hidden_BTD.flatten(0, 1), head_of(model).weight_VD, torch.zeros(ROWS * ROW_LEN, dtype=torch.long)
        )
    sizes = training_bytes(
        parameters=preset.parameters(VOCABULARY),
        vocab_size=VOCABULARY,
        layers=preset.layers,
        width=preset.hidden,
        ffn=preset.ffn,
        micro_batch_tokens=ROWS * ROW_LEN,
    )
    assert sizes["activations"] == pytest.approx(sum(saved.values()), rel=1 / 3)
