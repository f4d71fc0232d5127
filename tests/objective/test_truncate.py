"""What is kept: against sorting in float64 by the definition, with ties, at capture and again when narrowed."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from predistill.errors import RecipeError, TeacherError
from predistill.objective import Sampled, SparseTargets, TopK, TopP, TopPK
from predistill.objective import truncate as truncate_module
from predistill.objective import whole as whole_module


def teacher(positions: int = 40, vocabulary: int = 57, *, ties: bool = False) -> Tensor:
    """Logits [N, V], flat to peaked; with ties: rounded to a coarse grid, as a bfloat16 teacher's are."""
    generator = torch.Generator().manual_seed(11)
    logit_NV = torch.randn(positions, vocabulary, generator=generator) * torch.linspace(0.1, 6, positions)[:, None]
    return (logit_NV * 2).round() / 2 if ties else logit_NV


def by_definition(logit_V: Tensor, *, p: float, k: int) -> list[int]:
    """Descending probability, ties by id; the shortest prefix with mass p; at most k."""
    prob = logit_V.double().softmax(0).tolist()
    kept: list[int] = []
    mass = 0.0
    for token in sorted(range(len(prob)), key=lambda v: (-float(logit_V[v]), v)):
        if mass >= p or len(kept) == k:
            break
        kept.append(token)
        mass += prob[token]
    return kept


CUTS = [
    pytest.param(TopK(k=1), 9.0, 1, id="top_k 1"),
    pytest.param(TopK(k=7), 9.0, 7, id="top_k 7"),
    pytest.param(TopK(k=57), 9.0, 57, id="top_k V"),
    pytest.param(TopK(k=500), 9.0, 57, id="top_k more than V"),
    pytest.param(TopP(p=0.5), 0.5, 57, id="top_p .5"),
    pytest.param(TopP(p=0.95), 0.95, 57, id="top_p .95"),
    pytest.param(TopPK(p=0.95, k=10), 0.95, 10, id="top_p_k"),
    pytest.param(TopPK(p=0.2, k=10), 0.2, 10, id="top_p_k, p binds"),
]


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("truncation", "p", "k"), CUTS)
def test_the_kept_ids_are_those_of_the_definition(truncation: Any, p: float, k: int, ties: bool) -> None:
    logit_NV = teacher(ties=ties)
    if ties:
        assert all(len(row.unique()) < 57 for row in logit_NV)
    targets = truncation(logit_NV)
    assert targets.ids_NK.dtype == torch.int64
    for ids, logit_V in zip(targets.ids_NK.tolist(), logit_NV, strict=True):
        wanted = by_definition(logit_V, p=p, k=k)
        assert ids == wanted + [-1] * (len(ids) - len(wanted))
    assert (targets.ids_NK[:, -1] >= 0).any()  # no wider than the longest


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(("truncation", "p", "k"), CUTS)
def test_what_is_told_of_the_distribution_is_right(
    truncation: Any, p: float, k: int, ties: bool, tolerance: Any
) -> None:
    logit_NV = teacher(ties=ties)
    label_N = torch.arange(40) % 57
    label_N[3] = -100
    targets = truncation(logit_NV, label_N)
    logprob_NV = logit_NV.double().log_softmax(1)
    for n in range(40):
        kept = by_definition(logit_NV[n], p=p, k=k)
        rest = [v for v in range(57) if v not in kept]
        found = targets.logprob_NK[n, : len(kept)].double()
        assert (found - logprob_NV[n, kept]).abs().max() < tolerance.log_mass
        log_rest = float(torch.logsumexp(logprob_NV[n, rest], 0)) if rest else -math.inf
        assert float(targets.log_rest_N[n]) == pytest.approx(log_rest, abs=tolerance.log_mass)
        if n != 3:
            assert float(targets.label_logprob_N[n]) == pytest.approx(
                float(logprob_NV[n, label_N[n]]), abs=tolerance.log_mass
            )
    entropy_N = -(logprob_NV.exp() * logprob_NV).sum(1)
    assert (targets.entropy_N.double() - entropy_N).abs().max() < tolerance.log_mass
    assert (targets.logit_std_N.double() - logit_NV.double().std(1, correction=0)).abs().max() < tolerance.log_mass
    assert truncation(logit_NV).label_logprob_N is None


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("vocabulary", [800, 1003])  # several blocks of candidates; read by eights, and not
@pytest.mark.parametrize(("truncation", "p", "k"), [(TopK(k=30), 9.0, 30), (TopPK(p=0.9, k=40), 0.9, 40)])
def test_the_kept_ids_are_those_of_the_definition_in_a_wide_vocabulary(
    truncation: Any, p: float, k: int, vocabulary: int, ties: bool
) -> None:
    logit_NV = teacher(25, vocabulary, ties=ties)
    logit_NV[3, 20:] = -torch.inf  # fewer than k are left
    for ids, logit_V in zip(truncation(logit_NV).ids_NK.tolist(), logit_NV, strict=True):
        wanted = by_definition(logit_V, p=p, k=min(k, int(logit_V.isfinite().sum())))
        assert ids == wanted + [-1] * (len(ids) - len(wanted))


@pytest.mark.parametrize("bound", [None, 3.0])
def test_a_cpu_finds_what_an_accelerator_finds(bound: float | None) -> None:
    logit_NV = teacher(25, 800, ties=True)
    gap_NV = logit_NV.amax(dim=1, keepdim=True) - logit_NV
    bound_N1 = None if bound is None else torch.full((25, 1), bound)
    on_cpu, elsewhere = (
        find(gap_NV, bound_N1, 30) for find in (truncate_module._smallest_on_cpu, truncate_module._smallest)
    )
    for n in range(25):
        count = 30 if bound is None else min(30, int((gap_NV[n] <= bound).sum()))
        assert torch.equal(on_cpu[n, :count], elsewhere[n, :count])


def test_a_wide_vocabulary_costs_no_precision(tolerance: Any) -> None:
    logit_NV, label_N = teacher(20, 60_000), torch.arange(20)
    targets = TopPK(p=0.95, k=100)(logit_NV, label_N)
    logprob_NV = logit_NV.double().log_softmax(1)
    found = (targets.label_logprob_N, targets.entropy_N, targets.logit_std_N)
    entropy_N = -(logprob_NV.exp() * logprob_NV).sum(1)
    wanted = (logprob_NV[range(20), label_N], entropy_N, logit_NV.double().std(1, correction=0))
    for found_N, wanted_N in zip(found, wanted, strict=True):
        assert (found_N.double() - wanted_N).abs().max() < tolerance.log_mass


def test_the_rest_is_exact_where_one_minus_the_kept_mass_would_be_nothing(tolerance: Any) -> None:
    logit_NV = torch.zeros(3, 1000)
    logit_NV[:, 0] = torch.tensor([30.0, 90.0, 300.0])
    log_rest_N = TopK(k=1)(logit_NV).log_rest_N
    assert log_rest_N is not None
    for found, sure in zip(log_rest_N.tolist(), (30, 90, 300), strict=True):
        assert found == pytest.approx(math.log(999) - sure, abs=tolerance.log_mass * 2)


def test_an_id_that_the_teacher_rules_out_is_never_kept(tolerance: Any) -> None:
    logit_NV = teacher()[:, :9].clone()
    whole = TopK(k=9)(logit_NV)
    padded = TopK(k=12)(torch.cat((logit_NV, torch.full((40, 3), -torch.inf)), dim=1))
    assert torch.equal(padded.ids_NK, whole.ids_NK)
    for name in ("logprob_NK", "entropy_N", "logit_std_N"):
        assert (getattr(padded, name) - getattr(whole, name)).abs().max() < tolerance.log_mass
    assert (padded.log_rest_N == -torch.inf).all()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_teacher_that_gives_no_distribution_is_an_error(broken: float) -> None:
    logit_NV = teacher()
    logit_NV[7, 3] = broken
    with pytest.raises(TeacherError, match="no distribution"):
        TopK(k=5)(logit_NV)


def test_positions_are_independent_of_how_many_are_worked_on_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logit_NV, label_N = teacher(), torch.zeros(40, dtype=torch.int64)
    whole = TopPK(p=0.9, k=20)(logit_NV, label_N)
    monkeypatch.setattr(whole_module, "CHUNK_ELEMENTS", 57 * 7)
    pieces = TopPK(p=0.9, k=20)(logit_NV, label_N)
    for name in ("ids_NK", "logprob_NK", "log_rest_N", "entropy_N", "logit_std_N", "label_logprob_N"):
        assert torch.equal(getattr(pieces, name), getattr(whole, name))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_logits_of_any_float_type_are_worked_on_in_float32(dtype: torch.dtype) -> None:
    logit_NV = teacher().to(dtype)
    found, wanted = TopK(k=9)(logit_NV), TopK(k=9)(logit_NV.float())
    assert torch.equal(found.ids_NK, wanted.ids_NK)
    assert found.logprob_NK is not None
    assert found.logprob_NK.dtype == torch.float32


@pytest.mark.parametrize("truncation", [TopK(k=3), TopP(p=0.9), TopPK(p=0.9, k=3), Sampled(draws=3)])
def test_no_positions_give_no_targets(truncation: Any) -> None:
    targets = truncation(torch.zeros(0, 12), torch.zeros(0, dtype=torch.int64))
    assert targets.ids_NK.shape[0] == 0
    assert targets.present_N.shape == (0,)


def test_choices_check_themselves() -> None:
    for make in (lambda: TopK(k=0), lambda: TopP(p=0.0), lambda: TopP(p=1.5), lambda: TopPK(p=0.5, k=-1)):
        with pytest.raises(ValidationError):
            make()
    with pytest.raises(ValidationError, match="unexpected"):
        TopK(k=5, p=0.5)  # type: ignore[call-arg]


# Narrowing


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize(
    ("kept", "wanted"),
    [
        (TopK(k=30), TopK(k=30)),
        (TopK(k=30), TopK(k=4)),
        (TopK(k=30), TopPK(p=0.6, k=20)),
        (TopP(p=0.95), TopP(p=0.95)),
        (TopP(p=0.95), TopP(p=0.4)),
        (TopP(p=0.95), TopPK(p=0.95, k=3)),
        (TopPK(p=0.95, k=20), TopPK(p=0.9, k=10)),
        (TopK(k=57), TopP(p=0.7)),
    ],
)
def test_narrowing_what_was_kept_equals_keeping_less(kept: Any, wanted: Any, ties: bool, tolerance: Any) -> None:
    logit_NV = teacher(ties=ties)
    narrowed, direct = wanted.narrow(kept(logit_NV)), wanted(logit_NV)
    assert torch.equal(narrowed.ids_NK, direct.ids_NK)
    assert torch.equal(narrowed.logprob_NK, direct.logprob_NK)
    assert torch.equal(narrowed.entropy_N, direct.entropy_N)
    empty_N = direct.log_rest_N == -torch.inf
    assert torch.equal(narrowed.log_rest_N == -torch.inf, empty_N)
    assert (narrowed.log_rest_N - direct.log_rest_N)[~empty_N].abs().max() < tolerance.log_mass * 2


@pytest.mark.parametrize(
    ("kept", "wanted"),
    [(TopP(p=0.5), TopK(k=50)), (TopK(k=3), TopP(p=0.95)), (TopPK(p=0.5, k=4), TopPK(p=0.9, k=8))],
)
def test_narrowing_to_more_than_was_kept_is_refused(kept: Any, wanted: Any) -> None:
    with pytest.raises(RecipeError, match=r"too few for top_.* position \d+ keeps"):
        wanted.narrow(kept(teacher()))


def test_a_position_without_a_target_stays_without_one() -> None:
    targets = TopK(k=5)(teacher())
    ids_NK = targets.ids_NK.clone()
    ids_NK[2] = -1
    narrowed = TopK(k=2).narrow(SparseTargets(ids_NK, targets.logprob_NK, log_rest_N=targets.log_rest_N))
    assert not narrowed.present_N[2]
    assert narrowed.present_N.sum() == 39


def test_sampled_targets_are_not_cut_by_probability() -> None:
    with pytest.raises(RecipeError, match="Sampled targets cannot be cut"):
        TopK(k=2).narrow(Sampled(draws=9)(teacher()))
