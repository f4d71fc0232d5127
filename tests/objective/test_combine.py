"""What goes together: the rule, its sentences, and the document that shows it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from predistill import objective
from predistill.errors import RecipeError
from predistill.objective import (
    JSD,
    KLD,
    MSE,
    NLL,
    WTTM,
    AsSampled,
    Decoupled,
    Full,
    Ghost,
    NormKD,
    Renormalise,
    ReverseKLD,
    Sampled,
    Static,
    StdScaled,
    ToLabel,
    TopK,
    TopPK,
    Uniform,
    Zero,
    check_combination,
    check_narrower,
)
from predistill.objective.table import LOSSES, TAILS, TEMPERATURES, objective_table

DOCUMENT = Path(__file__).parents[2] / "docs" / "objective.md"
HINTON = Static(value=2.0, sides="both")


@pytest.mark.parametrize(
    ("loss", "tail", "temperature", "message"),
    [
        (MSE(), Ghost(), Static(), "use tail renormalise or zero, or loss kld"),
        (MSE(), AsSampled(), Static(), "loss nll and kld only"),
        (MSE(space="logits"), Renormalise(), HINTON, "use temperature sides teacher"),
        (MSE(), Renormalise(), NormKD(), "temperature static only"),
        (ReverseKLD(), ToLabel(), Static(), "use tail renormalise, ghost or uniform, or loss kld"),
        (JSD(), Uniform(), Static(), "use tail renormalise, zero, to_label or ghost"),
        (NLL(), Decoupled(), Static(), "use loss kld, or tail ghost"),
        (KLD(), Decoupled(), Static(value=2.0), r"its own tail\.tau"),
        (NLL(), Renormalise(), NormKD(), "norm_kd goes with loss kld only"),
        (JSD(), Renormalise(), WTTM(), "wttm goes with loss kld only"),
        (NLL(), AsSampled(), Static(value=2.0), "use static with value 1"),
    ],
)
def test_a_refusal_names_the_reason_and_the_nearest_allowed(
    loss: Any, tail: Any, temperature: Any, message: str
) -> None:
    with pytest.raises(RecipeError, match=message):
        check_combination(loss, tail, temperature)


@pytest.mark.parametrize("tail", [Ghost(), ToLabel(), Uniform(), Zero()], ids=lambda tail: tail.kind)
def test_a_tempered_tail_needs_targets_that_know_the_tempered_mass(tail: Any) -> None:
    top = TopPK(p=0.95, k=100)
    check_combination(KLD(), tail, Static(value=2.0), top)  # the targets may hold it; nobody knows yet
    check_combination(KLD(), tail, Static(value=2.0), top, taus=(2.0,))
    check_combination(KLD(), tail, Static(value=2.0), Full(), taus=())
    check_combination(KLD(), tail, NormKD(), Full())
    for taus in ((), (0.5,)):
        with pytest.raises(RecipeError, match=f"tail {tail.kind} at temperature 2 .* use tail renormalise"):
            check_combination(KLD(), tail, Static(value=2.0), top, taus=taus)
    with pytest.raises(RecipeError, match=r"temperature std .* use tail renormalise, or truncation full"):
        check_combination(KLD(), tail, StdScaled(), top)


@pytest.mark.parametrize("loss", [NLL(), KLD(), ReverseKLD(), JSD(), MSE()], ids=lambda loss: loss.kind)
def test_renormalise_goes_with_every_loss_and_teacher_temperature(loss: Any) -> None:
    for value in (0.05, 1.0, 10.0):
        check_combination(loss, Renormalise(), Static(value=value), TopPK(p=0.95, k=100))


def test_sampled_targets_and_their_tail_go_together_and_with_nothing_else() -> None:
    check_combination(NLL(), AsSampled(), Static(), Sampled(draws=50))
    with pytest.raises(RecipeError, match="use tail as_sampled"):
        check_combination(NLL(), Renormalise(), Static(), Sampled(draws=50))
    with pytest.raises(RecipeError, match="sampled targets only"):
        check_combination(NLL(), AsSampled(), Static(), TopK(k=50))


def test_the_table_holds_every_kind_of_loss_and_tail() -> None:
    for union, shown in (
        (objective.Loss, LOSSES),
        (objective.Tail, TAILS),
        (objective.Temperature, TEMPERATURES.values()),
    ):
        assert {type(choice) for choice in shown} == set(get_args(get_args(union)[0]))
    rows = [line for line in objective_table().splitlines() if line.startswith("|")]
    assert len(rows) == 2 + len(LOSSES) * len(TAILS)
    assert all(row.count("|") == len(TEMPERATURES) + 5 for row in rows)


def test_the_document_opens_with_the_table() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")
    assert objective_table() in text, "write what `python -m predistill.objective.table` prints into docs/objective.md"
    assert text.index(objective_table()) < 1500


def test_every_public_name_is_exported_once_and_exists() -> None:
    assert len(set(objective.__all__)) == len(objective.__all__)
    assert all(hasattr(objective, name) for name in objective.__all__)


@pytest.mark.parametrize("union", ["Loss", "Tail", "Truncation", "Temperature", "Positions", "Schedule"])
def test_the_unions_refuse_unknown_keys_and_unknown_kinds(union: str) -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(getattr(objective, union))
    with pytest.raises(ValueError, match="kdl"):
        adapter.validate_python({"kind": "kdl"})
    known = {"Loss": "kld", "Tail": "ghost", "Truncation": "top_k", "Temperature": "static", "Positions": "all"}
    with pytest.raises(ValueError, match="surprise"):
        adapter.validate_python({"kind": known.get(union, "constant"), "surprise": 1})


@pytest.mark.parametrize(
    ("wanted", "kept", "allowed"),
    [
        (TopK(k=50), TopK(k=50), True),
        (TopK(k=50), TopK(k=100), True),
        (TopK(k=50), objective.TopP(p=0.95), False),
        (TopPK(p=0.9, k=50), objective.TopP(p=0.95), True),
        (TopPK(p=0.9, k=50), TopK(k=100), True),
        (TopPK(p=0.9, k=200), TopK(k=100), False),
        (TopPK(p=0.95, k=50), TopPK(p=0.9, k=50), False),
        (objective.TopP(p=0.9), TopK(k=100), False),
        (Sampled(draws=20), Sampled(draws=50), True),
        (Sampled(draws=60), Sampled(draws=50), False),
        (Sampled(draws=20, proposal_temperature=2.0), Sampled(draws=50), False),
        (Sampled(draws=20), TopK(k=100), False),
        (TopK(k=10), Sampled(draws=50), False),
        (Full(), objective.TopP(p=1.0), False),
        (TopK(k=10), Full(), True),
        (Full(), Full(), True),
    ],
)
def test_narrower_is_a_partial_order(wanted: Any, kept: Any, allowed: bool) -> None:
    if allowed:
        check_narrower(wanted, kept)
        return
    with pytest.raises(RecipeError, match="not wider"):
        check_narrower(wanted, kept)
