"""The router loss is the one that Transformers adds, and reaches the routers however the blocks are run."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable

import pytest
import torch
from torch.utils.checkpoint import checkpoint
from transformers import LlamaConfig, PreTrainedModel

from predistill.students.blocks import blocks_of
from predistill.students.forward import hidden_states, run
from predistill.students.router import balances, router_loss
from tests.students.families import CHOSEN, COEFFICIENT, EXPERTS, FAMILIES, LAYERS, MIXTURES, SHAPE, VOCABULARY, made

INPUT_BT = torch.randint(VOCABULARY, (2, 16), generator=torch.Generator().manual_seed(1))
Prepared = Callable[[PreTrainedModel], None]
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the inductor needs a C++ compiler")


def gradients(prepare: Prepared | None = None, *, steps: int = 1) -> tuple[list[float], list[torch.Tensor]]:
    """Router losses of `steps` passes in training mode, and the gradients of them and of the hidden states."""
    model = made(MIXTURES["qwen3-moe"]).train()
    if prepare is not None:
        prepare(model)
    losses = []
    for _ in range(steps):
        hidden = run(model, INPUT_BT, end_id=None)
        assert hidden.router is not None
        (hidden.hidden_BTD.square().mean() + 100 * hidden.router).backward()
        losses.append(float(hidden.router.detach()))
    return losses, [p.grad if p.grad is not None else torch.zeros_like(p) for p in model.base_model.parameters()]


def close(first: tuple[list[float], list[torch.Tensor]], second: tuple[list[float], list[torch.Tensor]]) -> bool:
    grads = zip(first[1], second[1], strict=True)
    return first[0] == pytest.approx(second[0], abs=1e-6) and all(torch.allclose(a, b, atol=1e-6) for a, b in grads)


@pytest.mark.parametrize("name", MIXTURES)
@torch.no_grad()
def test_the_loss_is_the_one_that_transformers_makes_of_the_same_logits(name: str) -> None:
    model = made(MIXTURES[name])
    logits = tuple(3 * torch.randn(32, EXPERTS) for _ in range(LAYERS))
    theirs = sys.modules[type(model).__module__].load_balancing_loss_func(logits, EXPERTS, CHOSEN)
    ours = router_loss(model, logits)
    assert ours is not None
    assert float(ours) == pytest.approx(COEFFICIENT * float(theirs), rel=1e-6)


@torch.no_grad()
def test_the_loss_is_its_definition_in_float64() -> None:
    logits = [3 * torch.randn(32, EXPERTS) for _ in range(LAYERS)]
    prob_NE = torch.cat(logits).double().softmax(dim=1)
    chosen_NE = torch.zeros_like(prob_NE)
    for row, prob_E in enumerate(prob_NE):
        for expert in sorted(range(EXPERTS), key=lambda e: -float(prob_E[e]))[:CHOSEN]:
            chosen_NE[row, expert] = 1.0
    expected = COEFFICIENT * EXPERTS * float((chosen_NE.mean(dim=0) * prob_NE.mean(dim=0)).sum())
    found = router_loss(made(MIXTURES["mixtral"]), logits)
    assert found is not None
    assert float(found) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("name", MIXTURES)
@torch.no_grad()
def test_run_gives_the_hidden_states_and_the_model_s_own_router_loss(name: str) -> None:
    model = made(MIXTURES[name])
    hidden = run(model, INPUT_BT, end_id=None)
    own = model(INPUT_BT, output_router_logits=True, use_cache=False)
    assert torch.equal(hidden.hidden_BTD, hidden_states(model, INPUT_BT, end_id=None))
    assert len(own.router_logits) == LAYERS
    assert hidden.router is not None
    assert float(hidden.router) == pytest.approx(COEFFICIENT * float(own.aux_loss), rel=1e-6)


@pytest.mark.parametrize("name", ["llama", "gemma2", "deepseek-v3"])
@torch.no_grad()
def test_a_model_that_has_no_router_loss_gets_none(name: str) -> None:
    model = made(FAMILIES[name])
    assert not balances(model)
    assert run(model, INPUT_BT, end_id=None).router is None


def test_a_coefficient_of_zero_turns_it_off() -> None:
    config = type(MIXTURES["mixtral"])(**MIXTURES["mixtral"].to_dict() | {"router_aux_loss_coef": 0.0})
    assert run(made(config), INPUT_BT, end_id=None).router is None


def test_who_wants_hidden_states_alone_does_not_pay_for_the_routers() -> None:
    model, asked = made(MIXTURES["qwen3-moe"]), []
    model.base_model.register_forward_pre_hook(lambda _, __, kwargs: asked.append(kwargs), with_kwargs=True)
    hidden_states(model, INPUT_BT, end_id=None)
    assert not asked[0].get("output_router_logits")
    assert not made(LlamaConfig(**SHAPE)).config.to_dict().get("output_router_logits")


def test_the_loss_pushes_the_routers_toward_balance() -> None:
    model = made(MIXTURES["qwen3-moe"]).train()
    gates = [p for name, p in model.named_parameters() if name.endswith("mlp.gate.weight")]
    assert len(gates) == LAYERS
    losses = []
    for _ in range(30):
        router = run(model, INPUT_BT, end_id=None).router
        assert router is not None
        losses.append(float(router.detach()))
        for gate, gradient in zip(gates, torch.autograd.grad(router, gates), strict=True):
            assert float(gradient.abs().sum()) > 0
            gate.data -= 20.0 * gradient
    assert losses[-1] < losses[0]
    assert losses[-1] >= COEFFICIENT * CHOSEN * 0.99  # the least there is: K, where all experts are alike


def test_activation_checkpointing_changes_neither_the_loss_nor_a_gradient() -> None:
    def theirs(model: PreTrainedModel) -> None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    def from_outside(model: PreTrainedModel) -> None:
        for block in blocks_of(model):
            plain = block.forward
            block.forward = lambda *args, _plain=plain, **kwargs: checkpoint(  # type: ignore[method-assign]
                _plain, *args, use_reentrant=False, **kwargs
            )

    plain = gradients(steps=2)
    assert close(plain, gradients(theirs, steps=2))
    assert close(plain, gradients(from_outside, steps=2))


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # the compiler looks at every tensor
@pytest.mark.parametrize("backend", ["eager", pytest.param("inductor", marks=[pytest.mark.slow, needs_compiler])])
def test_compiled_blocks_give_the_same_loss_and_gradients(backend: str) -> None:
    def compiled(model: PreTrainedModel) -> None:
        for block in blocks_of(model):
            block.forward = torch.compile(block.forward, backend=backend)  # type: ignore[method-assign]

    assert close(gradients(steps=2), gradients(compiled, steps=2))
