"""Selecting: reading the smaller store is reading the big one through the narrower cut; nothing is quantised twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from predistill.assets import teacher_path
from predistill.corpus import Corpus
from predistill.errors import RecipeError, StoreError
from predistill.objective import Sampled, SparseTargets, TopK, TopP, TopPK, Truncation
from predistill.stages.capture import capture
from predistill.stages.select import parse_rows, select
from predistill.store import Store
from predistill.store.verbs.merge import merge
from predistill.teachers.stored import StoredTeacher, stored_truncation

CPU = torch.device("cpu")
REST_STEP = 1 / 256  # of the logit of the rest: half of it is lost at most


def read(store: Store, corpus: Path, truncation: Truncation, rows: np.ndarray) -> SparseTargets:
    return StoredTeacher(store, truncation=truncation, device=CPU, needs=("entropy_N", "label_logprob_N")).targets(
        rows, Corpus(corpus).rows(rows)[0]
    )


def assert_same(found: SparseTargets, expected: SparseTargets) -> None:
    """Ids, lengths and all that is no rest are equal; the rest, and what is scaled by it, up to the rest's grid."""
    assert torch.equal(found.columns_NK, expected.columns_NK)
    assert torch.equal(found.entropy_N, expected.entropy_N)
    assert torch.equal(found.label_logprob_N, expected.label_logprob_N)
    rests = [targets.log_rest_N.double() for targets in (found, expected)]
    logits = [rest - torch.log(-torch.expm1(rest)) for rest in rests]
    assert torch.equal(rests[0] == -torch.inf, rests[1] == -torch.inf)
    inside = (rests[1] > -60) & (rests[1] < 0)
    assert float((logits[0] - logits[1])[inside].abs().max()) <= REST_STEP / 2 + 1e-4
    kept = found.columns_NK >= 0
    assert float((found.logprob_NK - expected.logprob_NK)[kept].abs().max()) <= REST_STEP / 2 + 1e-4


@pytest.mark.parametrize(
    ("cut", "flags"),
    [
        (TopPK(p=0.95, k=20), {"top_k": 20}),
        (TopPK(p=0.7, k=100), {"top_p": 0.7}),
        (TopPK(p=0.5, k=3), {"top_p": 0.5, "top_k": 3}),
        (TopPK(p=0.95, k=1), {"top_k": 1}),
    ],
)
def test_the_selected_store_reads_as_the_big_one_through_the_cut(
    store: Path, corpus: Path, tmp_path: Path, cut: Truncation, flags: dict[str, Any]
) -> None:
    selected = select(store, out=tmp_path / "s", rows="0:48", **flags)
    selected.verify()
    assert stored_truncation(selected) == cut
    assert selected.manifest["selected_from"] == Store(store).manifest["store_id"]
    rows = np.arange(48)
    assert_same(read(selected, corpus, cut, rows), read(Store(store), corpus, cut, rows))
    old, new = (Store(path).rows(rows, scaled=False) for path in (store, tmp_path / "s"))
    start = np.cumsum(old.length_N) - old.length_N
    prefix = np.concatenate([np.arange(s, s + n) for s, n in zip(start, new.length_N, strict=True)])
    assert np.array_equal(new.logprob_E, old.logprob_E[prefix])  # the grid's integers, not quantised again
    assert np.array_equal(new.ids_E, old.ids_E[prefix])
    whole = new.length_N == old.length_N
    assert np.array_equal(new.log_rest_N[whole], old.log_rest_N[whole])


def test_a_narrower_cut_of_a_selected_store_is_the_cut_of_the_big_one_but_where_the_mass_is_just_p(
    store: Path, corpus: Path, tmp_path: Path
) -> None:
    selected = select(store, out=tmp_path / "s", rows="32", top_k=30)
    rows = np.arange(32)
    for cut in TopPK(p=0.9, k=10), TopPK(p=0.6, k=30):
        found, expected = read(selected, corpus, cut, rows), read(Store(store), corpus, cut, rows)
        same_N = (found.columns_NK >= 0).sum(dim=1) == (expected.columns_NK >= 0).sum(dim=1)
        assert float(same_N.float().mean()) > 0.99
        assert_same(found.select(same_N), expected.select(same_N))
        fewer = torch.minimum((found.columns_NK >= 0).sum(dim=1), (expected.columns_NK >= 0).sum(dim=1))[~same_N]
        mass_NK = expected.logprob_NK.exp().masked_fill(expected.columns_NK < 0, 0.0).cumsum(dim=1)[~same_N]
        assert torch.allclose(mass_NK.gather(1, fewer[:, None] - 1), torch.tensor(cut.p), atol=1e-3)


def test_a_top_k_and_a_top_p_stay_of_their_kind(corpus: Path, tmp_path: Path) -> None:
    for kept, flags, cut in (
        (TopK(k=12), {"top_k": 4}, TopK(k=4)),
        (TopK(k=12), {"top_p": 0.5}, TopPK(p=0.5, k=12)),
        (TopP(p=0.6), {"top_p": 0.3}, TopP(p=0.3)),
        (TopP(p=0.6), {"top_k": 5}, TopPK(p=0.6, k=5)),
    ):
        name = f"{kept}{cut}".replace(" ", "")
        big = tmp_path / f"big{kept}"
        capture(teacher_path(), corpus=corpus, out=big, truncation=kept, split="held_out")
        selected = select(big, out=tmp_path / name, **flags)
        assert stored_truncation(selected) == cut
        rows = np.arange(len(selected))
        ids = Corpus(corpus, "held_out").rows(rows)[0]
        found, expected = (
            StoredTeacher(s, truncation=cut, device=CPU, needs=("entropy_N", "label_logprob_N")).targets(rows, ids)
            for s in (selected, Store(big))
        )
        assert_same(found, expected)


@pytest.mark.parametrize("tau", [1.0, 1.5])
def test_fewer_draws_are_the_draws_that_reading_takes(corpus: Path, tmp_path: Path, tau: float) -> None:
    kept, cut = Sampled(draws=20, proposal_temperature=tau), Sampled(draws=7, proposal_temperature=tau)
    capture(teacher_path(), corpus=corpus, out=tmp_path / "big", truncation=kept, split="held_out")
    selected = select(tmp_path / "big", out=tmp_path / "s", draws=7)
    selected.verify()
    assert stored_truncation(selected) == cut
    assert selected.manifest["sampling"]["seed"] == Store(tmp_path / "big").manifest["sampling"]["seed"]
    rows = np.arange(len(selected))
    ids = Corpus(corpus, "held_out").rows(rows)[0]
    found, expected = (
        StoredTeacher(s, truncation=cut, device=CPU).targets(rows, ids) for s in (selected, Store(tmp_path / "big"))
    )

    def dense(targets: SparseTargets) -> torch.Tensor:
        weight = torch.zeros(len(targets), 2049)
        return weight.scatter_add_(1, targets.columns_NK.clamp(min=-1) % 2049, targets.weight_NK)[:, :2048]

    assert torch.allclose(dense(found), dense(expected), rtol=1e-6, atol=0)
    assert torch.equal(found.entropy_N, expected.entropy_N)
    assert int(selected.rows(rows).count_E.sum()) == 7 * len(rows) * selected.manifest["row_len"]


def test_rows_alone_are_copied_and_their_halves_merge_to_the_whole(store: Path, tmp_path: Path) -> None:
    whole = Store(store)
    middle = len(whole) // 2
    select(store, out=tmp_path / "a", rows=f":{middle}")
    select(store, out=tmp_path / "b", rows=f"{middle}:")
    assert Store(tmp_path / "a").totals["rows"] == middle
    assert Store(tmp_path / "a").manifest["self_test"] == whole.manifest["self_test"]
    merged = merge([tmp_path / "a", tmp_path / "b"], out=tmp_path / "m")
    assert merged.totals == whole.totals
    rows = np.arange(len(whole))
    assert merged.records(rows) == whole.records(rows)


def test_a_fraction_is_nested_and_near_what_was_asked(store: Path, tmp_path: Path) -> None:
    sets = [
        set(select(store, out=tmp_path / f"{frac}-{seed}", fraction=frac, seed=seed).present().tolist())
        for frac, seed in ((0.2, 0), (0.5, 0), (0.5, 1))
    ]
    assert sets[0] < sets[1]
    assert sets[1] != sets[2]
    assert abs(len(sets[1]) / len(Store(store)) - 0.5) < 0.1


def test_the_manifest_s_means_are_of_what_is_kept(store: Path, tmp_path: Path) -> None:
    old = Store(store).manifest["self_test"]
    new = select(store, out=tmp_path / "s", top_k=5).manifest["self_test"]
    assert new["teacher_loss_nats"] == old["teacher_loss_nats"]
    assert new["mean_entropy_nats"] == old["mean_entropy_nats"]
    assert new["mean_entries"] < 5 < old["mean_entries"]
    assert new["mean_kept_mass"] < old["mean_kept_mass"]


def test_a_selection_that_was_stopped_goes_on(store: Path, tmp_path: Path) -> None:
    def stop(done: int, _rows: int) -> None:
        if done >= 64:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        select(store, out=tmp_path / "s", top_k=5, on_progress=stop)
    with pytest.raises(StoreError, match="begun with other rows"):
        select(store, out=tmp_path / "s", top_k=5, rows="100:200")
    select(store, out=tmp_path / "s", top_k=5).verify()
    select(store, out=tmp_path / "t", top_k=5)
    for file in ("shards/00000-000000.pds", "manifest.json"):
        assert (tmp_path / "s" / file).read_bytes() == (tmp_path / "t" / file).read_bytes()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ({"top_k": 101}, "which is not wider"),
        ({"top_p": 0.99}, "which is not wider"),
        ({"draws": 3}, "holds no random draws"),
        ({"rows": "5:5"}, "give START:STOP"),
        ({"rows": "a:b"}, "give START:STOP"),
        ({"rows": "1:9", "fraction": 0.5}, "both choose rows"),
        ({"rows": "99999:100000"}, "none of its"),
        ({"fraction": 1.5}, "above 0 and at most 1"),
    ],
)
def test_what_cannot_be_selected_is_said_and_nothing_written(
    store: Path, tmp_path: Path, flags: dict[str, Any], says: str
) -> None:
    with pytest.raises(RecipeError, match=says):
        select(store, out=tmp_path / "s", **flags)
    assert not (tmp_path / "s").exists()


def test_spans_of_rows() -> None:
    assert [parse_rows(text, 100) for text in ("0:10", "10", ":10", "90:", "5:200")] == [
        (0, 10),
        (0, 10),
        (0, 10),
        (90, 100),
        (5, 100),
    ]
