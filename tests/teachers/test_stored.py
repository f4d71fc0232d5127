"""A store read for training: a row's targets are its own, whatever the batch; narrower than stored is a prefix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from predistill.corpus import Corpus
from predistill.errors import RecipeError, StoreError
from predistill.fingerprint import row_hash
from predistill.objective import (
    KLD,
    All,
    Renormalise,
    Sampled,
    SparseTargets,
    Static,
    StdScaled,
    TopK,
    TopPK,
    Truncation,
    linear_distill_loss,
)
from predistill.runs import Run
from predistill.stages.capture import capture
from predistill.store import RowTargets, Store, StoreWriter
from predistill.teachers.csr import padded_targets
from predistill.teachers.stored import StoredTeacher, stored_truncation
from tests.made import ROW_LEN

CPU = torch.device("cpu")
KEPT = TopPK(p=0.95, k=100)
ROWS = np.array([9, 2, 70, 33, 71, 5])


@pytest.fixture(scope="module")
def sampled_store(corpus: Path, lm_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("store") / "draws"
    capture(lm_run.path, corpus=corpus, out=out, truncation=Sampled(draws=40))
    return out


def read(store: Path, corpus: Path, rows: np.ndarray, truncation: Truncation) -> list[SparseTargets]:
    """The targets of `rows` read at once, row by row."""
    targets = StoredTeacher(Store(store), truncation=truncation, device=CPU).targets(rows, Corpus(corpus).rows(rows)[0])
    return [targets.select(slice(i * ROW_LEN, (i + 1) * ROW_LEN)) for i in range(len(rows))]


def same(a: SparseTargets, b: SparseTargets) -> bool:
    """Equal to the bit, but for the padding on the right, which the widest row of a batch decides."""
    width = min(a.ids_NK.shape[1], b.ids_NK.shape[1])
    if bool((a.ids_NK[:, width:] >= 0).any()) or bool((b.ids_NK[:, width:] >= 0).any()):
        return False
    kept_NK = a.ids_NK[:, :width] >= 0
    for name in ("ids_NK", "logprob_NK", "weight_NK"):
        left, right = getattr(a, name), getattr(b, name)
        if (left is None) != (right is None):
            return False
        if left is not None and not torch.equal(left[:, :width][kept_NK], right[:, :width][kept_NK]):
            return False
    pairs = [
        (getattr(a, name), getattr(b, name)) for name in ("log_rest_N", "entropy_N", "logit_std_N", "label_logprob_N")
    ]
    return torch.equal(a.ids_NK[:, :width], b.ids_NK[:, :width]) and all(
        (left is None and right is None) or torch.equal(left, right) for left, right in pairs
    )


@pytest.mark.parametrize(
    ("name", "truncation"),
    [
        ("store", KEPT),
        ("store", TopPK(p=0.8, k=7)),
        ("store", TopK(k=1)),
        ("sampled_store", Sampled(draws=40)),
        ("sampled_store", Sampled(draws=10)),
    ],
    ids=str,
)
def test_batch_and_order_never_change_which_targets_a_row_gets(
    name: str, truncation: Truncation, corpus: Path, request: pytest.FixtureRequest
) -> None:
    store = request.getfixturevalue(name)
    together = read(store, corpus, ROWS, truncation)
    backwards = read(store, corpus, ROWS[::-1].copy(), truncation)[::-1]
    alone = [read(store, corpus, np.array([row]), truncation)[0] for row in ROWS]
    twice = read(store, corpus, np.array([ROWS[0], ROWS[0]]), truncation)
    for i in range(len(ROWS)):
        assert same(together[i], backwards[i])
        assert same(together[i], alone[i])
    assert same(twice[0], twice[1])
    assert same(twice[0], together[0])
    assert not same(together[0], together[1])


def test_what_is_asked_as_stored_is_given_as_stored(store: Path, corpus: Path) -> None:
    stored = Store(store).rows(ROWS)
    targets = StoredTeacher(Store(store), truncation=KEPT, device=CPU).targets(ROWS, Corpus(corpus).rows(ROWS)[0])
    kept_NK = targets.ids_NK >= 0
    assert kept_NK.sum(dim=1).tolist() == stored.length_N.tolist()
    assert targets.ids_NK[kept_NK].tolist() == stored.ids_E.tolist()
    assert targets.logprob_NK is not None
    assert stored.logprob_E is not None
    assert np.array_equal(targets.logprob_NK[kept_NK].numpy(), stored.logprob_E)
    assert not bool((kept_NK[:, 1:] & ~kept_NK[:, :-1]).any()), "padding stands last"


def test_narrower_is_a_prefix_whose_dropped_mass_joins_the_rest(store: Path, corpus: Path) -> None:
    wide, narrow = (read(store, corpus, ROWS, truncation)[0] for truncation in (KEPT, TopPK(p=0.95, k=3)))
    assert narrow.ids_NK.shape[1] == 3
    assert torch.equal(narrow.ids_NK, wide.ids_NK[:, :3])
    assert narrow.logprob_NK is not None
    assert narrow.log_rest_N is not None
    mass_N = narrow.logprob_NK.double().exp().masked_fill(narrow.ids_NK < 0, 0.0).sum(dim=1)
    assert torch.allclose(mass_N + narrow.log_rest_N.double().exp(), torch.ones(ROW_LEN).double(), atol=1e-5)


def test_wider_than_stored_is_refused(store: Path, corpus: Path) -> None:
    with pytest.raises(RecipeError, match="too few"):
        read(store, corpus, ROWS, TopK(k=101))


def test_fewer_draws_are_some_of_the_stored_ones(sampled_store: Path, corpus: Path) -> None:
    whole, fewer = (read(sampled_store, corpus, ROWS, Sampled(draws=draws)) for draws in (40, 10))
    for all_drawn, some in zip(whole, fewer, strict=True):
        assert some.weight_NK is not None
        assert all_drawn.weight_NK is not None
        for ids, counts, all_ids, all_counts in zip(
            some.ids_NK.tolist(), (some.weight_NK * 10).tolist(),
            all_drawn.ids_NK.tolist(), (all_drawn.weight_NK * 40).tolist(), strict=True,
        ):  # fmt: skip
            had = {i: n for i, n in zip(all_ids, all_counts, strict=True) if i >= 0}
            left = {i: n for i, n in zip(ids, counts, strict=True) if i >= 0}
            assert sum(left.values()) == pytest.approx(10)
            assert all(n <= had[i] + 1e-3 for i, n in left.items())


def test_rows_thin_their_draws_independently(sampled_store: Path, corpus: Path) -> None:
    # Two rows with the same draws would be thinned alike only by chance: row numbers differ, tokens need not.
    kept = [
        (some.ids_NK >= 0).sum(dim=1).double().mean()
        for some in read(sampled_store, corpus, np.arange(20), Sampled(draws=10))
    ]
    assert len({float(mean) for mean in kept}) > 10


def test_tokens_other_than_the_captured_ones_are_refused_with_row_and_shard(store: Path, corpus: Path) -> None:
    ids, _ = Corpus(corpus).rows(ROWS)
    ids = ids.copy()
    ids[2, -1] = (ids[2, -1] + 1) % 2048  # the last label alone
    teacher = StoredTeacher(Store(store), truncation=KEPT, device=CPU)
    with pytest.raises(StoreError, match=r"row 70 \(shard .*made from other tokens"):
        teacher.targets(ROWS, ids)


def test_a_store_tells_what_it_kept(store: Path, sampled_store: Path) -> None:
    assert stored_truncation(Store(store)) == KEPT
    assert stored_truncation(Store(sampled_store)) == Sampled(draws=40)


def test_draws_from_a_tempered_proposal_come_back_with_their_importance_weights() -> None:
    logit_NV = 2 * torch.randn(4, 30, generator=torch.Generator().manual_seed(3))
    drawn = Sampled(draws=20, proposal_temperature=2.0)(logit_NV, generator=torch.Generator().manual_seed(4))
    ids_NK = drawn.columns_NK
    kept_NK = ids_NK >= 0
    q_NV = (logit_NV / 2).softmax(dim=1)
    importance_NK = (logit_NV.softmax(dim=1) / q_NV).gather(1, ids_NK.clamp(min=0))
    assert drawn.weight_NK is not None
    assert drawn.logprob_NK is not None
    assert drawn.lse_tau_N is not None
    stored = RowTargets(
        row_ids=np.array([0]),
        positions=4,
        length_N=kept_NK.sum(dim=1).int().numpy(),
        ids_E=ids_NK[kept_NK].int().numpy(),
        count_E=(drawn.weight_NK / importance_NK * 20)[kept_NK].round().int().numpy(),
        logprob_E=drawn.logprob_NK[kept_NK].numpy(),
        normaliser_N=drawn.lse_tau_N.numpy(),
    )
    found = padded_targets(stored, draws=20, device=torch.device("cpu"), tau=2.0)
    assert found.tau == 2.0
    assert torch.allclose(found.weight_NK[kept_NK], drawn.weight_NK[kept_NK], rtol=1e-4)  # type: ignore[index]


@pytest.fixture(scope="module")
def partial_store(store: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The even rows of the store."""
    whole, path = Store(store), tmp_path_factory.mktemp("store") / "even"
    facts = {
        name: whole.manifest[name] for name in ("teacher", "tokenizer", "corpus", "capture", "truncation", "grids")
    }
    with StoreWriter(path, manifest=facts, permutation=whole.permutation) as writer:
        for row in range(0, len(whole), 2):
            writer.write(row, row_hash(Corpus(corpus).rows([row])[0][0]), whole.rows([row], scaled=False))
        writer.seal({}, rows_expected=len(whole), partial=True)
    return path


def test_a_row_that_is_not_in_the_store_has_no_target(store: Path, partial_store: Path, corpus: Path) -> None:
    found = read(partial_store, corpus, ROWS, KEPT)
    for row, here, whole in zip(ROWS, found, read(store, corpus, ROWS, KEPT), strict=True):
        if row % 2 == 0:
            assert same(here, whole)
        else:
            assert not bool(here.present_N.any())
            assert here.log_rest_N is not None
            assert bool((here.log_rest_N == 0).all())
    none = read(partial_store, corpus, np.array([9, 33]), KEPT)
    assert not any(bool(targets.present_N.any()) for targets in none)
    narrower = read(partial_store, corpus, ROWS, TopPK(p=0.8, k=7))
    assert [bool(targets.present_N.any()) for targets in narrower] == [row % 2 == 0 for row in ROWS]


def test_rows_without_targets_are_learned_from_their_labels_alone(partial_store: Path, corpus: Path) -> None:
    rows = np.array([9, 2, 33])
    ids, _ = Corpus(corpus).rows(rows)
    teacher = StoredTeacher(Store(partial_store), truncation=KEPT, device=CPU, needs=("entropy_N", "logit_std_N"))
    hidden_ND = torch.randn(3 * ROW_LEN, 8, generator=torch.Generator().manual_seed(0))
    weight_VD = torch.randn(2048, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    for temperature in (Static(value=2.0), StdScaled(reference=2.0, strength=-1.0)):
        parts = linear_distill_loss(
            hidden_ND, weight_VD, torch.from_numpy(ids[:, 1:]).flatten(), teacher.targets(rows, ids), alpha=0.9,
            loss=KLD(), temperature=temperature, tail=Renormalise(), positions=All(), row_len=ROW_LEN,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(parts.total, weight_VD)
        assert int(parts.count) == 3 * ROW_LEN
        assert int(parts.kd_count) == ROW_LEN
        assert bool(parts.total.isfinite())
        assert bool(gradient.isfinite().all())
