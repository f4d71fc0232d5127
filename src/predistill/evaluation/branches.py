"""How likely a model finds many continuations, where those that begin alike are run as one tree: four endings of a
context, two sentences that differ late, or a hundred questions after the same examples cost their beginning once."""

# B trees of a batch  T node of a tree  N scored tokens  D width  V vocabulary
from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from transformers import PreTrainedModel

from predistill.errors import PredistillError
from predistill.students.forward import branch_states, head_of, hidden_states

__all__ = ["Scored", "Sequenced", "Tree", "grow", "score", "sees_branches"]

LARGEST_TREE = 2048  # nodes; its mask is [T, T] bool
BATCH_NODES = 4096
CHUNK_BYTES = 1 << 28  # of float32 logits at once
TOLERANCE = (
    1e-3  # of the hidden states' standard deviation; float32 stays below 1e-5, a mask that is not read is far above
)

Ids = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Sequenced:
    """Token ids, the last `scored` of which are the continuation; at least one token stands before them."""

    ids: Ids
    scored: int


@dataclass(frozen=True)
class Scored:
    """The continuation's log-probability in nats, and whether each of its tokens was the likeliest."""

    logprob: float
    greedy: bool


@dataclass
class Tree:
    """Sequences without their last token, each distinct beginning once. `paths[i]`: the nodes of sequence `members[i]`,
    from its first token on."""

    members: list[int] = field(default_factory=list)
    paths: list[npt.NDArray[np.int64]] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    starts: list[int] = field(default_factory=list)  # the node at which each sequence leaves the one before it

    def add(self, member: int, ids: Ids, shared: int) -> None:
        """A sequence, whose first `shared` tokens are those of the sequence added last."""
        start = len(self.ids)
        self.starts.append(start)
        self.ids += ids[shared:].tolist()
        begun = self.paths[-1][:shared] if shared else np.empty(0, np.int64)
        self.paths.append(np.concatenate([begun, np.arange(start, len(self.ids))]))
        self.members.append(member)

    def within(self, size: int) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
        """[size, size], True where a node is another's ancestor, or it; and [size], how many ancestors each has."""
        within, place = np.eye(size, dtype=bool), np.zeros(size, np.int64)
        for path, start in zip(self.paths, self.starts, strict=True):
            shared = int(np.searchsorted(path, start))
            new = path[shared:]
            within[start : start + len(new), path[:shared]] = True
            within[start : start + len(new), start : start + len(new)] = np.tri(len(new), dtype=bool)
            place[new] = np.arange(shared, len(path))
        return within, place


@torch.inference_mode()
def score(
    model: PreTrainedModel,
    sequences: Sequence[Sequenced],
    *,
    branching: bool,
    on_progress: Callable[[int], None] | None = None,
) -> list[Scored]:
    """Score each continuation; `branching` as `sees_branches` says. `on_progress` hears how many more are done.

    Only the positions that are scored go through the output layer, each distinct one once.
    """
    width = model.config.get_text_config().hidden_size
    trees = sorted(grow(sequences, width=width, branching=branching), key=lambda tree: -len(tree.ids))
    result: list[Scored | None] = [None] * len(sequences)
    for batch in _batches(trees):
        for member, scored in _scored(model, batch, sequences, branching):
            result[member] = scored
        if on_progress is not None:
            on_progress(sum(len(tree.members) for tree in batch))
    return result  # type: ignore[return-value]  # every sequence is a member of one tree


@torch.inference_mode()
def sees_branches(model: PreTrainedModel) -> bool:
    """Whether `model` gives a branch of a tree what it gives the sequence alone: tried, since only the model knows."""
    size = min(model.config.get_text_config().vocab_size, 8)
    ids = [np.arange(8) % size, np.array([*range(5), *reversed(range(5))]) % size]
    tree = Tree()
    for i, sequence in enumerate(ids):
        tree.add(i, sequence, 5 * i)
    try:
        input_1T, within, place_1T = _inputs(model, [tree])
        hidden_TD = branch_states(model, input_1T, within, place_1T)[0]
    except (PredistillError, TypeError, ValueError, RuntimeError):  # a mask or positions that it does not take
        return False
    for path, sequence in zip(tree.paths, ids, strict=True):
        alone_TD = hidden_states(model, torch.from_numpy(sequence)[None].to(model.device), end_id=None)[0]
        if float((hidden_TD[path] - alone_TD).abs().max()) > TOLERANCE * float(alone_TD.float().std()):
            return False
    return True


def grow(sequences: Sequence[Sequenced], *, width: int, branching: bool) -> Iterator[Tree]:
    """Trees of the sequences in sorted order. One joins the tree of the one before it where that saves more than it
    costs: its new tokens attend, and are masked, over the whole tree.

    Running a token takes about 24 D^2 operations a layer (a block of four attention and three gated matrices), a pair
    of positions 4 D in its attention, so that a token weighs as much as 6 D pairs.
    """
    order = sorted(range(len(sequences)), key=lambda i: sequences[i].ids.tolist())
    tree, last = Tree(), np.empty(0, np.int64)
    for member in order:
        ids = sequences[member].ids[:-1]
        shared = _common(last, ids)
        new, size = len(ids) - shared, len(tree.ids)
        joins = shared * (6 * width + shared) > 2 * new * (size - shared) and size + new <= LARGEST_TREE
        if tree.members and not (branching and joins):
            yield tree
            tree, shared = Tree(), 0
        tree.add(member, ids, shared)
        last = ids
    if tree.members:
        yield tree


def _common(a: Ids, b: Ids) -> int:
    """How many tokens two sequences begin alike."""
    size = min(len(a), len(b))
    differ = np.flatnonzero(a[:size] != b[:size])
    return int(differ[0]) if len(differ) else size


def _batches(trees: Sequence[Tree]) -> Iterator[list[Tree]]:
    """Trees of like size together, the largest first."""
    begin = 0
    while begin < len(trees):
        end = begin + max(1, BATCH_NODES // len(trees[begin].ids))
        yield list(trees[begin:end])
        begin = end


def _inputs(model: PreTrainedModel, trees: Sequence[Tree]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Ids [B, T], who sees whom [B, 1, T, T], and how many tokens are before each [B, T]. What pads sees itself."""
    size = max(len(tree.ids) for tree in trees)
    input_BT = np.zeros((len(trees), size), np.int64)
    for row, tree in zip(input_BT, trees, strict=True):
        row[: len(tree.ids)] = tree.ids
    withins, places = zip(*(tree.within(size) for tree in trees), strict=True)
    within, place_BT = torch.from_numpy(np.stack(withins)[:, None]), torch.from_numpy(np.stack(places))
    return torch.from_numpy(input_BT).to(model.device), within.to(model.device), place_BT.to(model.device)


def _scored(
    model: PreTrainedModel, trees: Sequence[Tree], sequences: Sequence[Sequenced], branching: bool
) -> Iterator[tuple[int, Scored]]:
    if branching:
        input_BT, within, place_BT = _inputs(model, trees)
        hidden_BTD = branch_states(model, input_BT, within, place_BT)
    else:  # a tree is one sequence, and what pads it on the right is seen by nobody
        size = max(len(tree.ids) for tree in trees)
        input_BT = torch.tensor([tree.ids + [0] * (size - len(tree.ids)) for tree in trees], device=model.device)
        hidden_BTD = hidden_states(model, input_BT, end_id=None)
    members, nodes, labels = [], [], []
    for row, tree in enumerate(trees):
        for member, path in zip(tree.members, tree.paths, strict=True):
            scored = sequences[member].scored
            members.append(member)
            nodes.append(path[-scored:] + row * input_BT.shape[1])
            labels.append(sequences[member].ids[-scored:])
    logprob_N, best_N = _of_nodes(model, hidden_BTD.flatten(0, 1), np.concatenate(nodes), np.concatenate(labels))
    ends = np.cumsum([len(label) for label in labels])
    for member, begin, end in zip(members, [0, *ends[:-1]], ends, strict=True):
        yield member, Scored(float(logprob_N[begin:end].sum()), bool(best_N[begin:end].all()))


def _of_nodes(
    model: PreTrainedModel, hidden_SD: torch.Tensor, nodes: Ids, labels: Ids
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Log-probability of a label after a node, and whether it is the likeliest there; [N] both."""
    head = head_of(model)
    distinct, inverse = np.unique(nodes, return_inverse=True)
    order = np.argsort(inverse, kind="stable")
    logprob_N, best_N = np.empty(len(nodes)), np.empty(len(nodes), bool)
    chunk = max(1, CHUNK_BYTES // (4 * head.weight_VD.shape[0]))
    for first in range(0, len(distinct), chunk):
        begin, end = np.searchsorted(inverse[order], np.array([first, first + chunk]))
        here = order[begin:end]
        logit_PV = head.logits(hidden_SD[torch.from_numpy(distinct[first : first + chunk]).to(hidden_SD.device)])
        row_n = torch.from_numpy(inverse[here] - first).to(logit_PV.device)
        label_n = torch.from_numpy(labels[here]).to(logit_PV.device)
        logprob_n = logit_PV[row_n, label_n] - logit_PV.logsumexp(dim=1)[row_n]
        logprob_N[here] = logprob_n.double().cpu().numpy()
        best_N[here] = (logit_PV.argmax(dim=1)[row_n] == label_n).cpu().numpy()
    return logprob_N, best_N
