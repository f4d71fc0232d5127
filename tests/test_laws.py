"""Cost arithmetic against what real models and stores took: FLOPs, moments, saved activations, bytes."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import torch
from torch.distributed._tools.mem_tracker import MemTracker
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from predistill.laws import (
    PEAK_FLOPS,
    days,
    forward_flops,
    kept_entries,
    peak_flops,
    store_bytes_per_token,
    training_bytes,
    training_flops,
)
from predistill.objective import Full, Sampled, TopK, TopP, TopPK, Truncation
from predistill.students import PRESETS
from predistill.students.build import build_student, student_config
from predistill.students.forward import hidden_states
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


def bytes_of(name: str, **changes: int | bool) -> dict[str, int]:
    preset = PRESETS[name]
    shape = {"layers": preset.layers, "width": preset.hidden, "ffn": preset.ffn, "vocab_size": VOCABULARY}
    shape |= {"parameters": preset.parameters(VOCABULARY), "micro_batch_tokens": ROWS * ROW_LEN}
    return training_bytes(**(shape | changes))


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("name", ["nano-m", "nano-l"])
def test_memory_of_activations_is_what_autograd_saves_to_within_a_tenth(name: str, bf16: bool) -> None:
    model = model_of(name)
    own = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters()} | {tuple(p.shape)[::-1] for p in model.parameters()}
    saved: dict[int, tuple[int, bool]] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage, copy = tensor.untyped_storage(), bf16 and tuple(tensor.shape) in shapes
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = (storage.nbytes(), copy)
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        hidden_states(model, torch.randint(VOCABULARY, (ROWS, ROW_LEN)), end_id=None)
    sizes = bytes_of(name, bf16=bf16)
    assert sizes["activations"] == pytest.approx(sum(n for n, copy in saved.values() if not copy), rel=0.1)
    copies = sum(n for n, copy in saved.values() if copy)
    assert sizes["gathered"] == pytest.approx(copies, rel=0.15)  # and the head's, which the loss makes


@pytest.mark.parametrize("bf16", [False, True])
def test_blocks_that_run_again_keep_their_inputs_and_one_block_s_rest(bf16: bool) -> None:
    peaks = []
    for again in (False, True):
        model = model_of("nano-l").train()
        if again:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        tracker = MemTracker()
        tracker.track_external(model)
        with warnings.catch_warnings(), tracker:
            warnings.simplefilter("ignore")
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                hidden_BTD = hidden_states(model, torch.randint(VOCABULARY, (ROWS, ROW_LEN)), end_id=None)
            hidden_BTD.float().sum().backward()
        found = tracker.get_tracker_snapshot("peak")[CPU]
        peaks.append(sum(n for what, n in found.items() if str(what).endswith(("ACT", "TEMP"))))
    ours = [bytes_of("nano-l", bf16=bf16, activation_checkpointing=again)["activations"] for again in (False, True)]
    assert ours[1] == pytest.approx(peaks[1], rel=1 / 3)
    assert ours[1] / ours[0] == pytest.approx(peaks[1] / peaks[0], rel=1 / 3)


def test_sharded_weights_are_divided_and_what_is_gathered_is_the_root_and_two_blocks() -> None:
    whole = bytes_of("nano-m")
    shared = bytes_of("nano-m", shard=4, root_parameters=VOCABULARY * 128)
    for name in ("weights", "gradients", "optimizer"):
        assert 4 * shared[name] == pytest.approx(whole[name], abs=4)
    block = PRESETS["nano-m"].non_embedding_parameters // 3
    assert shared["gathered"] == 4 * (VOCABULARY * 128 + 2 * block) + 4 * block
    half = bytes_of("nano-m", shard=4, root_parameters=VOCABULARY * 128, bf16=True)
    assert half["gathered"] == 2 * (VOCABULARY * 128 + 2 * block) + 4 * block
    assert whole["gathered"] == 0
    assert (half["activations"], half["loss"]) == (bytes_of("nano-m", bf16=True)["activations"], whole["loss"])


@pytest.mark.parametrize(
    ("truncation", "entries"),
    [
        (TopPK(p=0.95, k=100), 37.5),
        (TopPK(p=0.5, k=100), 4.5),
        (TopPK(p=0.95, k=50), 22.7),
        (TopPK(p=0.95, k=1), 1.0),
        (TopPK(p=0.875, k=100), 24.0),  # halfway between .85 and .9
        (TopPK(p=0.5, k=50), 4.5),  # neither keeps more than the other alone
        (TopPK(p=1.0, k=50), 50.0),
        (TopK(k=256), 256.0),
        (Sampled(draws=1), 1.0),
        (Sampled(draws=50), 17.0),
    ],
)
def test_kept_entries_are_the_paper_s_and_the_store_s(truncation: Truncation, entries: float) -> None:
    assert kept_entries(truncation) == pytest.approx(entries)


@pytest.mark.parametrize(
    "truncation", [Full(), TopP(p=0.95), TopPK(p=0.95, k=200), Sampled(draws=50, proposal_temperature=2.0)]
)
def test_what_was_never_measured_is_not_estimated(truncation: Truncation) -> None:
    assert kept_entries(truncation) is None
    assert store_bytes_per_token(truncation) is None


def test_estimated_bytes_are_those_of_the_stores_that_were_measured() -> None:
    record = json.loads((Path(__file__).parents[1] / "benchmarks" / "results" / "store.json").read_text())
    cases = record["teachers"]["smollm2"]["cases"]
    for name, truncation in (("top-100", TopK(k=100)), ("sampled-50", Sampled(draws=50))):
        measured = cases[name]["with_label_entropy_std"]["bytes_a_position"]
        assert store_bytes_per_token(truncation) == pytest.approx(measured, rel=0.05)
    for case in (cases["top-.95-100"], cases["top-.95-50"]):  # this teacher keeps more than the paper's
        per_entry = (case["with_label_entropy_std"]["bytes_a_position"] - 3.8) / case["entries_a_position"]
        ours = (store_bytes_per_token(TopPK(p=0.95, k=100)) - 3.8) / 37.5
        assert ours == pytest.approx(per_entry, rel=0.05)


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H100 NVL", 835e12),
        ("NVIDIA H20", 148e12),
        ("NVIDIA H200", 989e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA B200", 2250e12),
        ("AMD Instinct MI300X", 1307e12),
        ("NVIDIA A10", None),
        ("cpu (x86_64)", None),
    ],
)
def test_an_accelerator_is_known_by_the_words_of_its_name(name: str, peak: float | None) -> None:
    assert peak_flops(name) == peak
    assert all(peak_flops(known) == value for known, value in PEAK_FLOPS.items())


def test_days_are_flops_over_what_the_accelerators_do_in_a_day() -> None:
    assert days(86_400e15, accelerators=4, peak=1e15, mfu=0.25) == 1.0
