"""A tree gives each sequence what the sequence gets alone, whatever the model lets its layers see."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PretrainedConfig, PreTrainedModel

from predistill.evaluation.branches import LARGEST_TREE, Sequenced, Tree, grow, score, sees_branches
from tests.students.families import FAMILIES, VOCABULARY, made

SEEING = ["llama", "qwen3-moe", "gemma2", "gemma3", "gpt-oss", "gpt-neox", "deepseek-v3"]  # windows of 6 tokens
WINDOWED: PretrainedConfig = type(FAMILIES["mixtral"])(**FAMILIES["mixtral"].to_dict() | {"sliding_window": 6})


def branching_sequences() -> list[Sequenced]:
    """Contexts with endings, twins, one that another begins with, and one of its own."""
    random = np.random.default_rng(0)
    found = []
    for context in (random.integers(0, VOCABULARY, length) for length in (12, 3, 1)):
        for scored in (1, 4, 4, 9):
            ending = random.integers(0, VOCABULARY, scored)
            found.append(Sequenced(np.concatenate([context, ending]), scored))
    return [*found, found[0], Sequenced(found[3].ids[:-2], 5), Sequenced(random.integers(0, VOCABULARY, 30), 29)]


@torch.no_grad()
def alone(model: PreTrainedModel, sequence: Sequenced) -> tuple[float, bool]:
    """Straight from the model's logits, in float64."""
    ids = torch.from_numpy(sequence.ids)
    logprob_TV = model(input_ids=ids[None, :-1], use_cache=False).logits[0].double().log_softmax(dim=-1)
    logprob_TV, label_T = logprob_TV[-sequence.scored :], ids[-sequence.scored :]
    said = logprob_TV.gather(1, label_T[:, None]).sum()
    return float(said), bool((logprob_TV.argmax(dim=1) == label_T).all())


@pytest.mark.parametrize("name", [*SEEING, "mixtral-window"])
@pytest.mark.parametrize("branching", [True, False])
def test_every_score_is_the_models_own(name: str, branching: bool) -> None:
    model = made(WINDOWED if name == "mixtral-window" else FAMILIES[name])
    assert sees_branches(model)
    sequences = branching_sequences()
    told: list[int] = []
    found = score(model, sequences, branching=branching, on_progress=told.append)
    assert sum(told) == len(sequences)
    for sequence, scored in zip(sequences, found, strict=True):
        logprob, greedy = alone(model, sequence)
        assert scored.logprob == pytest.approx(logprob, abs=1e-4)
        assert scored.greedy == greedy


def test_a_greedy_continuation_is_known_as_one() -> None:
    model = made(FAMILIES["llama"])
    ids = np.arange(9)
    for i in range(5, 9):
        ids[i] = int(model(input_ids=torch.from_numpy(ids[None, :i])).logits[0, -1].argmax())
    other = ids.copy()
    other[-1] = (other[-1] + 1) % VOCABULARY
    found = score(model, [Sequenced(ids, 4), Sequenced(other, 4), Sequenced(other, 1)], branching=True)
    assert [scored.greedy for scored in found] == [True, False, False]


@pytest.mark.parametrize("name", ["mamba", "bloom"])
def test_a_model_that_no_tree_can_be_asked_of_is_found_out_and_scored_all_the_same(name: str) -> None:
    model = made(FAMILIES[name])
    assert not sees_branches(model)
    sequences = branching_sequences()
    for sequence, scored in zip(sequences, score(model, sequences, branching=False), strict=True):
        assert scored.logprob == pytest.approx(alone(model, sequence)[0], abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(
    lists=st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=1, max_size=12),
    width=st.sampled_from([1, 4, 64]),
)
def test_trees_hold_every_sequence_once_and_a_node_sees_its_own_past(lists: list[list[int]], width: int) -> None:
    sequences = [Sequenced(np.array(ids), 1) for ids in lists]
    trees = list(grow(sequences, width=width, branching=True))
    assert sorted(member for tree in trees for member in tree.members) == list(range(len(lists)))
    for tree in trees:
        within, place = tree.within(len(tree.ids) + 2)
        for member, path in zip(tree.members, tree.paths, strict=True):
            assert [tree.ids[node] for node in path] == lists[member][:-1]
            assert place[path].tolist() == list(range(len(path)))
            for i, node in enumerate(path):
                assert np.flatnonzero(within[node]).tolist() == path[: i + 1].tolist()
        assert np.array_equal(within[-2:], np.eye(len(tree.ids) + 2, dtype=bool)[-2:])  # what pads sees itself


def test_a_beginning_that_many_share_is_run_once_and_what_shares_none_is_not_joined() -> None:
    random = np.random.default_rng(1)
    examples = random.integers(0, 99, 500)
    asked = [Sequenced(np.concatenate([examples, [i], random.integers(0, 99, 39)]), 1) for i in range(10)]
    (tree,) = grow(asked, width=64, branching=True)
    assert len(tree.ids) == 500 + 10 * 39
    apart = [Sequenced(random.integers(0, 99, 100), 1) for _ in range(5)]
    assert [len(tree.ids) for tree in grow(apart, width=64, branching=True)] == [99] * 5
    assert len(list(grow(asked, width=64, branching=False))) == 10
    many = [Sequenced(np.concatenate([examples, random.integers(0, 99, 40)]), 1) for _ in range(100)]
    assert max(len(tree.ids) for tree in grow(many, width=64, branching=True)) <= LARGEST_TREE


def test_a_tree_of_one_sequence_is_the_sequence() -> None:
    tree = Tree()
    tree.add(0, np.array([4, 5, 6]), 0)
    within, place = tree.within(3)
    assert np.array_equal(within, np.tri(3, dtype=bool))
    assert place.tolist() == [0, 1, 2]
