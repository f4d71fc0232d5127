"""The most memory that the fused loss takes at once: a chunk of logits and the weight's gradient."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

V, K, D, N = 262_144, 256, 64, 512

SCRIPT = """
import sys
from pathlib import Path
import torch
from predistill.objective import *

def resident(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(name))

def loss(vocabulary, positions, kept, **choices):
    hidden_ND = torch.randn(positions, {D}, requires_grad=True)
    weight_VD = torch.randn(vocabulary, {D}, requires_grad=True)
    label_N = torch.randint(vocabulary, (positions,))
    ids_NK = (torch.randint(vocabulary, (positions, 1)) + torch.arange(kept)) % vocabulary
    logprob_NK = torch.randn(positions, kept).log_softmax(dim=1) - 0.1
    rest_N = torch.full((positions,), 1 - 2.718281828**-0.1).log()
    targets = SparseTargets(ids_NK, logprob_NK=logprob_NK, log_rest_N=rest_N, lse_tau_N=torch.ones(positions), tau=3.0)
    return lambda: linear_distill_loss(
        hidden_ND, weight_VD, label_N, targets, alpha=0.9, chunk_tokens={chunk}, **choices
    ).total

choices = {choices}
loss(64, 32, 8, **choices)().backward()  # threads, code
work = loss({V}, {N}, {K}, **choices)
base = resident("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts again
total = work()
print(resident("VmHWM") - base)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads the memory of a Linux process")
@pytest.mark.parametrize(
    ("chunk", "choices"),
    [
        (256, "{}"),
        (256, "{'tail': Ghost(), 'temperature': Static(value=3.0, sides='both'), 'loss': JSD()}"),
        (256, "{'tail': Uniform(), 'loss': ReverseKLD()}"),
        pytest.param(512, "{'temperature': Static(value=3.0, sides='both')}", marks=pytest.mark.slow),
    ],
)
def test_the_peak_is_a_chunk_and_the_gradient_of_the_weight(chunk: int, choices: str) -> None:
    code = SCRIPT
    for name, value in {"D": D, "V": V, "K": K, "N": N, "chunk": chunk, "choices": choices}.items():
        code = code.replace("{" + name + "}", str(value))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert int(run.stdout) <= 1.1 * (4 * chunk * V + 4 * V * D)
