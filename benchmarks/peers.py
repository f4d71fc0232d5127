"""Other people's losses behind one call each, and the made-up problem they share with ours. Not a benchmark itself.

    PREDISTILL_PEERS=FOLDER python benchmarks/peers.py     prints which of them are here

A peer comes from an installed package or, by path, from a checkout in the folder named by $PREDISTILL_PEERS
(DistillKit/, Megatron-LM/, axolotl/; a file COMMIT in each names its commit). Nothing of theirs is in this project.

N positions  V vocabulary  D width  K kept entries
"""

from __future__ import annotations

import importlib.util
import json
import math
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from predistill.objective import Sampled, SparseTargets, TopK

ALPHA = 0.9  # the share of the distillation loss where CE and KD are trained together
LOGIT_STD = 3.6  # of the student; the larger, the more peaked it is, and the more a bfloat16 logit loses
FLOOR = -1e4  # log of a dense teacher's "nothing": -inf would make 0 * inf of some peers
GPU_ONLY = "needs a GPU"

Call = Callable[..., Tensor]  # of the logits [N, V], or of nothing where the peer is fused; a sum over positions


@dataclass(frozen=True)
class Problem:
    """A student's last hidden states and output layer, labels, and a teacher: the student's logits plus noise."""

    hidden_ND: Tensor
    weight_VD: Tensor
    label_N: Tensor
    targets: SparseTargets
    sampled: SparseTargets
    facts: dict[str, float]  # KL and entropy of the full teacher, nats; mass kept; the student's largest logit
    dense_dtype: torch.dtype  # of dense teachers

    @property
    def ids_NK(self) -> Tensor:
        """The ids that are kept, none padded."""
        assert self.targets.ids_NK is not None
        return self.targets.ids_NK

    @property
    def logprob_NK(self) -> Tensor:
        """Of the teacher's full softmax."""
        assert self.targets.logprob_NK is not None
        return self.targets.logprob_NK

    @cached_property
    def whole_NK(self) -> Tensor:
        """logprob_NK with the kept mass scaled to 1."""
        return self.logprob_NK.log_softmax(dim=1)

    @property
    def whole(self) -> SparseTargets:
        """The targets as if nothing had been left out."""
        nothing_N = torch.full_like(self.whole_NK[:, 0], -torch.inf)
        return replace(self.targets, logprob_NK=self.whole_NK, log_rest_N=nothing_N)

    @cached_property
    def whole_NV(self) -> Tensor:
        """`whole` as the dense logits that most peers want."""
        return self._dense_NV(self.whole_NK, torch.full_like(self.whole_NK[:, 0], FLOOR))

    @cached_property
    def uniform_NV(self) -> Tensor:
        """The targets as dense logits, what was left out spread evenly."""
        assert self.targets.log_rest_N is not None
        others = len(self.weight_VD) - self.ids_NK.shape[1]
        return self._dense_NV(self.logprob_NK, self.targets.log_rest_N - math.log(others))

    def _dense_NV(self, logprob_NK: Tensor, rest_N: Tensor) -> Tensor:
        dense_NV = rest_N.to(self.dense_dtype)[:, None].repeat(1, len(self.weight_VD))
        return dense_NV.scatter_(1, self.ids_NK, logprob_NK.to(self.dense_dtype))


def made_problem(
    *,
    tokens: int,
    width: int,
    vocabulary: int,
    kept: int,
    noise: float = 1.0,
    dtype: torch.dtype = torch.float32,
    dense_dtype: torch.dtype | None = None,
    device: str,
) -> Problem:
    """The same numbers every time. The KL of teacher and student is about noise^2 / 2."""
    torch.manual_seed(0)
    hidden_ND = torch.randn(tokens, width, device=device).to(dtype)
    weight_VD = (torch.randn(vocabulary, width, device=device) * (LOGIT_STD / width**0.5)).to(dtype)
    student_NV = hidden_ND.float() @ weight_VD.float().t()
    teacher_NV = torch.randn_like(student_NV).mul_(noise).add_(student_NV)
    label_N = teacher_NV.softmax(dim=1).multinomial(1)[:, 0]
    targets, sampled = TopK(kept)(teacher_NV, label_N), Sampled(draws=50)(teacher_NV, label_N)
    assert targets.log_rest_N is not None
    student_SV, teacher_SV = student_NV[:256].log_softmax(dim=1), teacher_NV[:256].log_softmax(dim=1)
    facts = {
        "kl": round(float((teacher_SV.exp() * (teacher_SV - student_SV)).sum(dim=1).mean()), 4),
        "entropy": round(float(-(teacher_SV.exp() * teacher_SV).sum(dim=1).mean()), 3),
        "kept_mass": round(float(1 - targets.log_rest_N.exp().mean()), 3),
        "top_logit": round(float(student_NV[:256].amax(dim=1).mean()), 2),
    }
    return Problem(
        hidden_ND.requires_grad_(), weight_VD.requires_grad_(), label_N, targets, sampled, facts, dense_dtype or dtype
    )


@dataclass(frozen=True)
class Origin:
    """Where a peer comes from: a package, or a checkout below $PREDISTILL_PEERS."""

    get: str
    package: str | None = None
    checkout: str | None = None
    loaded: str = "package"  # or "file": one file by path, the rest of the package left alone

    @property
    def version(self) -> str:
        """Its version or commit. Raises ImportError where it is not here."""
        if self.package is not None:
            return version(self.package)
        commit = self.folder / "COMMIT"
        return commit.read_text().strip() if commit.exists() else "unknown commit"

    @property
    def folder(self) -> Path:
        """The checkout. Raises ImportError where it is not here."""
        assert self.checkout is not None
        root = os.environ.get("PREDISTILL_PEERS")
        if not root or not (Path(root) / self.checkout).is_dir():
            raise ImportError(f"no {self.checkout} in $PREDISTILL_PEERS")
        return Path(root) / self.checkout


def _checkout(repository: str) -> Origin:
    name = repository.rpartition("/")[2]
    return Origin(f"git clone https://github.com/{repository} into $PREDISTILL_PEERS", checkout=name, loaded="file")


TORCH = Origin("pip install 'torch>=2.13'", package="torch")
TORCHTUNE = Origin("pip install --no-deps torchtune==0.6.1", package="torchtune", loaded="file")
TRL = Origin("pip install --no-deps trl==1.16.0, and accelerate, datasets", package="trl")
LIGER = Origin("pip install liger-kernel==0.8.5 on a machine with a GPU", package="liger-kernel")
CCE = Origin("pip install cut-cross-entropy==25.1.1 on a machine with a GPU", package="cut-cross-entropy")
QUACK = Origin("pip install quack-kernels==0.6.5 on a machine with a GPU", package="quack-kernels")
DISTILLKIT = _checkout("arcee-ai/DistillKit")
MEGATRON = _checkout("NVIDIA/Megatron-LM")
AXOLOTL = _checkout("axolotl-ai-cloud/axolotl")


@dataclass(frozen=True)
class Peer:
    """One loss of other people.

    load      imports it; what it returns makes, of a problem, the call that is measured
    same      the row of loss.py that computes the same, None where nothing of ours does
    alpha     the share of the distillation loss in it; only written where KD and CE are one call
    factor    its total times this is ours; shift(problem) is what else its total has, before the factor
    fused     whether it takes hidden states and the output layer rather than logits
    note      what a reader must know to compare
    """

    name: str
    origin: Origin
    load: Callable[[], Callable[[Problem], Call]]
    same: str | None
    alpha: float = 1.0
    factor: float = 1.0
    shift: Callable[[Problem], float] | None = None
    fused: bool = False
    teacher: str = "sparse"  # what it is given: "none", "sparse", "dense"
    note: str = ""

    def prepared(self, problem: Problem) -> Call:
        """Its call on a problem. Raises Absent where it is not here."""
        try:
            return self.load()(problem)
        except (ImportError, AttributeError, OSError) as error:
            raise Absent(f"{self.origin.get} ({type(error).__name__}: {str(error).splitlines()[0]})") from error


class Absent(Exception):
    """A loss that is not here; the message says how to get it."""


# Eager losses as a user would write them, and PyTorch's own.


def _cross_entropy() -> Callable[[Problem], Call]:
    return lambda problem: lambda logit_NV: F.cross_entropy(logit_NV, problem.label_N, reduction="sum")


def _linear_cross_entropy(**chunking: Any) -> Callable[[], Callable[[Problem], Call]]:
    def load() -> Callable[[Problem], Call]:
        options = torch.nn.LinearCrossEntropyOptions(**chunking)
        call = F.linear_cross_entropy
        return lambda p: lambda: call(p.hidden_ND, p.weight_VD, p.label_N, reduction="sum", options=options)

    return load


def dense_kl(alpha: float) -> Peer:
    """F.kl_div on a dense teacher's probabilities, and CE with its own softmax."""

    def prepare(problem: Problem) -> Call:
        prob_NV = problem.whole_NV.softmax(dim=1)

        def call(logit_NV: Tensor) -> Tensor:
            kd = F.kl_div(F.log_softmax(logit_NV, dim=1, dtype=torch.float32), prob_NV, reduction="sum")
            if alpha == 1:
                return kd
            return (1 - alpha) * F.cross_entropy(logit_NV, problem.label_N, reduction="sum") + alpha * kd

        return call

    name = "eager, dense teacher: F.kl_div" + (" + F.cross_entropy" if alpha < 1 else "")
    return Peer(name, TORCH, lambda: prepare, "kld renormalise", alpha=alpha, teacher="dense")


def shared_logsumexp(alpha: float) -> Peer:
    """Sparse KD and CE that share one logsumexp."""

    def prepare(problem: Problem) -> Call:
        ids_NK, logprob_NK = problem.ids_NK, problem.whole_NK
        prob_NK = logprob_NK.exp()

        def call(logit_NV: Tensor) -> Tensor:
            logit_NV = logit_NV.float()
            lse_N = logit_NV.logsumexp(dim=1)
            kd = (prob_NK * (logprob_NK - logit_NV.gather(1, ids_NK) + lse_N[:, None])).sum()
            lm = (lse_N - logit_NV.gather(1, problem.label_N[:, None])[:, 0]).sum()
            return (1 - alpha) * lm + alpha * kd

        return call

    name = "eager, sparse teacher: one shared logsumexp"
    return Peer(name, TORCH, lambda: prepare, "kld renormalise", alpha=alpha)


# torchtune and TRL: dense teachers.


def _torchtune() -> Callable[[Problem], Call]:
    spec = importlib.util.find_spec("torchtune")
    if spec is None or not spec.submodule_search_locations:
        raise ImportError("no torchtune")
    path = Path(spec.submodule_search_locations[0]) / "modules/loss/kd_losses.py"
    loss = _module_at(path).ForwardKLLoss()
    return lambda p: lambda logit_NV, dense_NV=p.whole_NV: loss(logit_NV, dense_NV, p.label_N, normalize=False)


def _target_entropy(problem: Problem) -> float:
    """Of the renormalised targets, summed over positions."""
    return float(-(problem.whole_NK.exp() * problem.whole_NK).sum())


def _trl(*, beta: float, dense: str, temperature: float = 1.0) -> Callable[[], Callable[[Problem], Call]]:
    def load() -> Callable[[Problem], Call]:
        from trl.experimental.gkd import GKDTrainer

        def prepare(problem: Problem) -> Call:
            dense_NV = getattr(problem, dense)
            return lambda logit_NV: GKDTrainer.generalized_jsd_loss(
                logit_NV, dense_NV, beta=beta, temperature=temperature, reduction="sum"
            )

        return prepare

    return load


# Checkouts: sparse teachers.


def _distillkit(missing: str) -> Callable[[], Callable[[Problem], Call]]:
    def load() -> Callable[[Problem], Call]:
        if (folder := str(DISTILLKIT.folder)) not in sys.path:
            sys.path.append(folder)
        from distillkit.lossfuncs.kl import sparse_kl_div
        from distillkit.missing_probability import MissingProbabilityHandling

        how = MissingProbabilityHandling[missing]

        def prepare(problem: Problem) -> Call:
            ids_BNK, logprob_BNK = problem.ids_NK[None], problem.logprob_NK[None]
            return lambda logit_NV: sparse_kl_div(logit_NV[None], ids_BNK, logprob_BNK, missing=how)

        return prepare

    return load


def _megatron() -> Callable[[Problem], Call]:
    folder = MEGATRON.folder / "megatron/training/distillation"
    stubs = (
        "megatron", "megatron.core", "megatron.core.models", "megatron.core.models.common",
        "megatron.core.models.common.language_module", "megatron.core.models.common.language_module.language_module",
        "megatron.core.msc_utils", "megatron.training", "megatron.training.utils", "megatron.training.distillation",
    )  # fmt: skip
    with _standing_in(*map(_Stub, stubs)):
        utilities = _module_at(folder / "utils_logits.py", name="megatron.training.distillation.utils_logits")
        with _standing_in(utilities):
            loss = _module_at(folder / "cached_logits_loss.py").topk_kl_div

    def prepare(problem: Problem) -> Call:
        ids_NBK, logprob_NBK = problem.ids_NK[:, None], problem.logprob_NK[:, None]
        return lambda logit_NV: loss(
            logit_NV[:, None], logprob_NBK, ids_NBK, tp_size=1, tp_rank=0, tp_group=None, add_ghost_token=True
        ).sum()

    return prepare


def _axolotl() -> Callable[[Problem], Call]:
    loss = _module_at(AXOLOTL.folder / "src/axolotl/integrations/kd/topk_logprob/forward_kl.py").loss

    def prepare(problem: Problem) -> Call:
        ids_BNK, logprob_BNK = problem.ids_NK[None], problem.whole_NK[None]
        return lambda logit_NV: loss(logit_NV[None], ids_BNK, logprob_BNK, ids_BNK >= 0, num_items_in_batch=1)

    return prepare


def _axolotl_fused() -> Callable[[Problem], Call]:
    folder = AXOLOTL.folder / "src/axolotl/integrations/kd"
    utilities = _module_at(folder / "utils.py", name="axolotl.integrations.kd.utils")
    parents = map(_Stub, ("axolotl", "axolotl.integrations", "axolotl.integrations.kd"))
    with _standing_in(*parents, utilities):
        module = _module_at(folder / "kernels/liger.py")

    def prepare(problem: Problem) -> Call:
        loss = module.LigerFusedLinearKLTopKLogprobLoss(
            weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compute_ce_loss=False, normalize_topk=False,
            compiled=problem.hidden_ND.is_cuda,
        )  # fmt: skip
        ids_BNK, logprob_BNK = problem.ids_NK[None], problem.whole_NK[None]
        return lambda: loss(
            problem.weight_VD, problem.hidden_ND[None], ids_BNK, logprob_BNK, ids_BNK >= 0, problem.label_N[None]
        )

    return prepare


# Packages for GPUs.


def _liger_cross_entropy() -> Callable[[Problem], Call]:
    _need_gpu()
    from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss(reduction="sum")
    return lambda p: lambda: loss(p.weight_VD, p.hidden_ND, p.label_N)


def _liger_kl() -> Callable[[Problem], Call]:
    _need_gpu()
    from liger_kernel.transformers.fused_linear_kl_div import LigerFusedLinearKLDivLoss

    loss = LigerFusedLinearKLDivLoss(reduction="sum")

    def prepare(problem: Problem) -> Call:
        prob_NV = problem.whole_NV.softmax(dim=1)
        return lambda: loss(problem.hidden_ND, problem.weight_VD, prob_NV)

    return prepare


def _liger_chunked_jsd() -> Callable[[Problem], Call]:
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    def prepare(problem: Problem) -> Call:
        loss = LigerFusedLinearJSDLoss(weight_hard_loss=0.0, weight_soft_loss=1.0, compiled=problem.hidden_ND.is_cuda)
        hidden_ND, weight_VD, label_N = problem.hidden_ND, problem.weight_VD, problem.label_N
        teacher_ND, teacher_VD = hidden_ND.detach().roll(1, dims=0), weight_VD.detach().clone()
        return lambda: loss(hidden_ND, weight_VD, teacher_ND, teacher_VD, label_N) * len(label_N)

    return prepare


def _cut_cross_entropy(**choices: Any) -> Callable[[], Callable[[Problem], Call]]:
    def load() -> Callable[[Problem], Call]:
        _need_gpu()
        from cut_cross_entropy import linear_cross_entropy as call

        return lambda p: lambda: call(p.hidden_ND, p.weight_VD, p.label_N, reduction="sum", **choices)

    return load


def _quack() -> Callable[[Problem], Call]:
    _need_gpu()
    from quack.linear_cross_entropy import chunked_linear_cross_entropy as call

    return lambda p: lambda: call(p.hidden_ND, p.weight_VD, p.label_N, reduction="sum")


CROSS_ENTROPY = Peer("nn.Linear + F.cross_entropy", TORCH, _cross_entropy, "lm", teacher="none")
PEERS = [
    CROSS_ENTROPY,
    Peer(
        "F.linear_cross_entropy, default options", TORCH, _linear_cross_entropy(), "lm", fused=True, teacher="none",
        note="options=LinearCrossEntropyOptions(); options=None would be nn.Linear + F.cross_entropy",
    ),
    Peer(
        "F.linear_cross_entropy, chunk 1024", TORCH, _linear_cross_entropy(batch_chunk_size=1024), "lm", fused=True,
        teacher="none",
    ),
    dense_kl(ALPHA),
    shared_logsumexp(ALPHA),
    Peer(
        "torchtune ForwardKLLoss", TORCHTUNE, _torchtune, "kld renormalise", teacher="dense",
        shift=_target_entropy,
        note="its KL is a cross-entropy, without the teacher's entropy; a mean by default, here the sum",
    ),
    Peer(
        "TRL generalized_jsd_loss, beta 0", TRL, _trl(beta=0.0, dense="whole_NV"), "kld renormalise",
        teacher="dense", note="a mean by default, here the sum",
    ),
    Peer(
        "TRL generalized_jsd_loss, beta 0, temperature 2", TRL, _trl(beta=0.0, dense="whole_NV", temperature=2.0),
        "kld renormalise, tau 2 both", teacher="dense", factor=4.0, note="no tau^2: a quarter of ours",
    ),
    Peer(
        "TRL generalized_jsd_loss, beta .5", TRL, _trl(beta=0.5, dense="whole_NV"), "jsd zero, whole mass kept",
        teacher="dense",
    ),
    Peer(
        "TRL generalized_jsd_loss, beta 1", TRL, _trl(beta=1.0, dense="uniform_NV"), "reverse_kl uniform",
        teacher="dense", note="given a dense teacher whose tail is flat",
    ),
    Peer(
        "DistillKit sparse_kl_div, ZERO", DISTILLKIT, _distillkit("ZERO"), "kld renormalise",
        note="renormalises the kept mass, whatever the name",
    ),
    Peer(
        "DistillKit sparse_kl_div, SYMMETRIC_UNIFORM", DISTILLKIT, _distillkit("SYMMETRIC_UNIFORM"), "kld ghost",
        note="the rest from 1 - sum, clamped at 1e-8",
    ),
    Peer(
        "Megatron-LM topk_kl_div, ghost token", MEGATRON, _megatron, "kld ghost",
        note="subtracts the maximum from float32 logits in place; the rest from 1 - sum, clamped at 1e-8",
    ),
    Peer(
        "axolotl top-k loss", AXOLOTL, _axolotl, "kld renormalise",
        note="wants the kept mass renormalised beforehand",
    ),
    Peer(
        "axolotl fused top-k loss", AXOLOTL, _axolotl_fused, "kld renormalise", fused=True,
        note="what its trainer uses, on Liger's chunked base; compiled on a GPU only. normalize_topk=False: by default "
        "the student is renormalised over the kept ids too, which nothing of ours does",
    ),
    Peer(
        "Liger chunked LigerFusedLinearJSDLoss", LIGER, _liger_chunked_jsd, None, fused=True, teacher="dense",
        note="not compared: its teacher is dense, and its logits are a product made inside the loss; compiled on a "
        "GPU only",
    ),
    Peer("Liger FusedLinearCrossEntropy", LIGER, _liger_cross_entropy, "lm", fused=True, teacher="none"),
    Peer("Liger FusedLinearKLDiv", LIGER, _liger_kl, "kld renormalise", fused=True, teacher="dense"),
    Peer(
        "cut-cross-entropy", CCE, _cut_cross_entropy(), "lm", fused=True, teacher="none",
        note="leaves out small gradients",
    ),
    Peer("cut-cross-entropy, exact", CCE, _cut_cross_entropy(filter_eps=None), "lm", fused=True, teacher="none"),
    Peer("QuACK chunked_linear_cross_entropy", QUACK, _quack, "lm", fused=True, teacher="none"),
]  # fmt: skip


def _need_gpu() -> None:
    if not torch.cuda.is_available():
        raise ImportError(GPU_ONLY)


class _Stub(ModuleType):
    """A module that has every name: stands in for what a file imports and its loss does not use."""

    __path__: list[str] = []  # noqa: RUF012  (a package, so that its modules may be asked for)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


@contextmanager
def _standing_in(*modules: ModuleType) -> Iterator[None]:
    """The modules under their names, for as long as a file is loaded."""
    before = {module.__name__: sys.modules.get(module.__name__) for module in modules}
    sys.modules.update({module.__name__: module for module in modules})
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _module_at(path: Path, *, name: str | None = None) -> Any:
    """One file of a peer, without its package."""
    if not path.is_file():
        raise ImportError(f"no {path.name} where it was")
    spec = importlib.util.spec_from_file_location(name or f"peer_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    problem = made_problem(tokens=16, width=16, vocabulary=256, kept=8, device=device)
    found = {}
    for peer in PEERS:
        try:
            peer.prepared(problem)
            found[peer.name] = peer.origin.version
        except Absent as absent:
            found[peer.name] = f"absent: {absent}"
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
