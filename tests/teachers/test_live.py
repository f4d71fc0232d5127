"""A teacher at hand says what its model says, a piece at a time, and owns nothing; many ranks say what one does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    Cohere2Config,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from predistill.assets import teacher_path
from predistill.errors import TeacherError
from predistill.objective import Full, Sampled, SparseTargets, TopK, TopPK
from predistill.teachers import Teacher
from predistill.teachers import pieces as pieces_module
from predistill.teachers.live import LiveTeacher
from predistill.teachers.load import load_teacher

CPU = torch.device("cpu")
VOCABULARY, ROW_LEN = 120, 24
SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GEMMA: dict[str, Any] = {"head_dim": 8, "query_pre_attn_scalar": 8, "final_logit_softcapping": 0.5}
CONFIGS: dict[str, PretrainedConfig] = {
    "llama": LlamaConfig(**SHAPE, vocab_size=VOCABULARY),
    "gemma2": Gemma2Config(**SHAPE, **GEMMA, vocab_size=VOCABULARY),
    "gemma3": Gemma3TextConfig(**SHAPE, **GEMMA, vocab_size=VOCABULARY),
    "cohere2": Cohere2Config(**SHAPE, vocab_size=VOCABULARY, logit_scale=0.25),
    "granite": GraniteConfig(**SHAPE, vocab_size=VOCABULARY, logits_scaling=8.0, embedding_multiplier=3.0),
}


def made(config: PretrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for parameter in model.parameters():  # far from the small values at the start, where a cap or a scale is no matter
        parameter.data += 0.3 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def tokens(rows: int, vocabulary: int = VOCABULARY) -> np.ndarray:
    return np.random.default_rng(0).integers(vocabulary, size=(rows, ROW_LEN + 1))


@pytest.mark.parametrize("vocabulary", [VOCABULARY, VOCABULARY - 7])
@pytest.mark.parametrize("name", CONFIGS)
def test_its_targets_are_the_log_softmax_of_the_model_s_own_logits(name: str, vocabulary: int) -> None:
    model, ids = made(CONFIGS[name]), tokens(3, vocabulary)
    teacher: Teacher = LiveTeacher(model, truncation=Full(), vocab_size=vocabulary)
    found = teacher.targets(np.array([5, 0, 9]), ids)
    with torch.no_grad():
        logit_NV = model(torch.from_numpy(ids[:, :-1]), use_cache=False).logits.flatten(0, 1)[:, :vocabulary]
    logprob_NV = logit_NV.double().log_softmax(dim=1)
    assert found.logprob_NK is not None
    assert torch.allclose(found.logprob_NK.double(), logprob_NV, atol=1e-5)
    label_N = torch.from_numpy(ids[:, 1:].flatten())
    assert found.label_logprob_N is not None
    assert torch.allclose(found.label_logprob_N.double(), logprob_NV.gather(1, label_N[:, None])[:, 0], atol=1e-5)


def test_a_tempered_normaliser_is_over_the_whole_vocabulary() -> None:
    model, ids, rows = made(CONFIGS["llama"]), tokens(2), np.arange(2)
    dense = LiveTeacher(model, truncation=Full(), vocab_size=VOCABULARY).targets(rows, ids)
    found = LiveTeacher(model, truncation=TopK(k=3), vocab_size=VOCABULARY, tau=2.0).targets(rows, ids)
    assert dense.logprob_NK is not None
    assert found.lse_tau_N is not None
    assert found.tau == 2.0
    assert torch.allclose(found.lse_tau_N, (dense.logprob_NK / 2.0).logsumexp(dim=1), atol=1e-5)


@pytest.mark.parametrize(
    "truncation", [TopPK(p=0.9, k=20), Sampled(draws=30), Sampled(draws=30, proposal_temperature=2.0)]
)
def test_a_row_s_targets_are_its_own_whatever_the_batch_and_the_piece(
    truncation: TopPK | Sampled, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids, rows = tokens(4), np.array([3, 8, 1, 7])
    monkeypatch.setattr(pieces_module, "CHUNK_LOGITS", 5 * VOCABULARY)  # five positions of a row, and a rest
    teacher = LiveTeacher(made(CONFIGS["llama"]), truncation=truncation, vocab_size=VOCABULARY)
    whole = teacher.targets(rows, ids)
    for i in range(4):
        alone = teacher.targets(rows[i : i + 1], ids[i : i + 1])
        part = whole.select(slice(i * ROW_LEN, (i + 1) * ROW_LEN), width=alone.columns_NK.shape[1])
        assert torch.equal(part.columns_NK, alone.columns_NK)
        if alone.weight_NK is not None:
            assert part.weight_NK is not None
            assert torch.allclose(part.weight_NK, alone.weight_NK)


def test_other_rows_have_other_draws() -> None:
    teacher = LiveTeacher(made(CONFIGS["llama"]), truncation=Sampled(draws=30), vocab_size=VOCABULARY)
    ids = tokens(1).repeat(2, axis=0)
    found = teacher.targets(np.array([4, 5]), ids)
    assert not torch.equal(found.columns_NK[:ROW_LEN], found.columns_NK[ROW_LEN:])


def test_it_owns_no_gradient(tmp_path: Path) -> None:
    made(CONFIGS["llama"]).requires_grad_(True).save_pretrained(tmp_path / "m")
    model = load_teacher(tmp_path / "m", vocab_size=VOCABULARY, device=CPU, dtype=torch.float32)
    assert not model.training
    seen: list[SparseTargets] = []
    teacher = LiveTeacher(model, truncation=TopK(k=3), vocab_size=VOCABULARY)
    found = teacher.targets(np.arange(2), tokens(2))
    teacher.pieces(np.arange(2), tokens(2), seen.append)
    assert all(piece.log_rest_N is not None and piece.log_rest_N.is_inference() for piece in seen)
    for tensor in (found.logprob_NK, found.log_rest_N, found.entropy_N):
        assert tensor is not None
        assert not tensor.requires_grad
        assert not tensor.is_inference(), "a loss may keep it for its backward"
    assert not any(parameter.requires_grad or parameter.grad is not None for parameter in model.parameters())


def test_logits_that_are_no_distribution_are_said_to_be_so() -> None:
    model = made(CONFIGS["llama"])
    model.get_output_embeddings().weight.data[3] = torch.nan
    teacher = LiveTeacher(model, truncation=TopK(k=3), vocab_size=VOCABULARY)
    with pytest.raises(TeacherError, match="no distribution"):
        teacher.targets(np.arange(1), tokens(1))


WIDE, WIDE_ROWS, WIDE_LEN = 262_144, 8, 64
MEMORY_SCRIPT = """
from pathlib import Path
import numpy as np
import torch
torch.set_num_threads(1)
from transformers import AutoModelForCausalLM, Gemma2Config
from predistill.objective import TopPK
from predistill.teachers.live import LiveTeacher

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

config = Gemma2Config(
    vocab_size={V}, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=30.0,
)
teacher = LiveTeacher(AutoModelForCausalLM.from_config(config).eval(), truncation=TopPK(p=0.95, k=100), vocab_size={V})
ids = np.random.default_rng(0).integers({V}, size=({R}, {T} + 1))
teacher.targets(np.arange(1), ids[:1, :2])  # threads, code
base = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
found = teacher.targets(np.arange({R}), ids)
assert found.ids_NK.shape == ({R} * {T}, 100)
print(resident("VmHWM") - base)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the memory of a Linux process")
def test_a_vocabulary_of_262_144_words_is_never_whole_in_memory() -> None:
    code = MEMORY_SCRIPT
    for name, value in {"V": WIDE, "R": WIDE_ROWS, "T": WIDE_LEN}.items():
        code = code.replace("{" + name + "}", str(value))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=200)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) < 0.4 * WIDE_ROWS * WIDE_LEN * WIDE * 4


RANKS_SCRIPT = """
import sys
import numpy as np
import torch
from torch import distributed
torch.set_num_threads(1)
from predistill.objective import Full
from predistill.teachers.live import LiveTeacher
from predistill.teachers.load import load_teacher

path, ids_path, out = sys.argv[1:]
model = load_teacher(path, vocab_size=2048, device=torch.device("cpu"), dtype=torch.float32, tensor_parallel=True)
ids = np.load(ids_path)
leads = distributed.get_rank() == 0
for truncation in (Full(), Full()):  # a second teacher after the first has closed
    teacher = LiveTeacher(model, truncation=truncation, vocab_size=2048)
    if not leads:
        teacher.follow()
        continue
    with teacher:
        found = [teacher.targets(np.arange(len(part)), part).logprob_NK for part in (ids[:3], ids[3:])]
try:
    teacher = LiveTeacher(model, truncation=Full(), vocab_size=2048)
    if leads:
        with teacher:
            teacher.pieces(np.arange(3), ids[:3], lambda targets: 1 / 0)  # rank 0 fails, and the others are let go
    teacher.follow()
except ZeroDivisionError:
    torch.save({"logprob": torch.cat(found), "head": not teacher._head.plain}, out)
distributed.barrier()
distributed.destroy_process_group()
"""


def test_two_tensor_parallel_ranks_say_what_one_process_says(tmp_path: Path) -> None:
    ids = np.random.default_rng(1).integers(2048, size=(5, ROW_LEN + 1))
    np.save(tmp_path / "ids.npy", ids)
    (tmp_path / "ranks.py").write_text(RANKS_SCRIPT, encoding="utf-8")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    arguments = [str(tmp_path / "ranks.py"), str(teacher_path()), str(tmp_path / "ids.npy"), str(tmp_path / "out.pt")]
    run = subprocess.run([*torchrun, *arguments], capture_output=True, text=True, check=False, timeout=200)
    assert run.returncode == 0, run.stderr
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    model = load_teacher(teacher_path(), vocab_size=2048, device=CPU, dtype=torch.float32)
    alone = LiveTeacher(model, truncation=Full(), vocab_size=2048).targets(np.arange(5), ids)
    assert found["head"], "the output layer is sharded: what is tested is the gathering of its logits"
    assert alone.logprob_NK is not None
    assert torch.allclose(found["logprob"], alone.logprob_NK, atol=1e-4)
