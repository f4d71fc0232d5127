"""What the fused output layer and loss costs beside CE and other people's losses: time and memory, forward + backward.

    PREDISTILL_PEERS=FOLDER python benchmarks/loss.py                 all of it; FOLDER: see peers.py
    python benchmarks/loss.py --only 'lm|ghost' --rounds 3            some rows, printed and not kept
    python benchmarks/loss.py --tokens 256 --vocabulary 4000          another shape, printed and not kept

Writes benchmarks/results/loss.json (on a GPU: loss-cuda.json). A case makes one loss and the gradients of the hidden
states and of the output layer. Every case runs once a round, after an uncounted one, and the case that begins moves on;
medians over the rounds.

  cpu_seconds, ms       of the process, all threads; on a GPU between two events
  user_share            of it, the part outside the kernel. The rest is page faults: glibc maps a block of more than
                        32 MiB anew each time, and an allocator that keeps such blocks would save it
  of_lm, of_ce          median over the rounds of the ratio to `ours: lm`, and to nn.Linear + F.cross_entropy
  peak_mib              the most memory at once above what was there before: inputs left out, gradients counted. On a
                        CPU resident memory, each case in a fresh process after a tiny call, freed memory handed back
                        at once (the times are taken with keep_freed_memory(), as in the program); on a GPU the
                        allocator's
  teacher_mib           what a case is given of the teacher: part of its inputs
  speedup, memory_share peer / ours, ours / peer: against the row of ours that computes the same loss, at two chunk
                        sizes; the last speedup leaves the kernel's time out of both
  agreement             how far the peer's value and hidden gradient are from that row's, relative

`ours` has alpha .9 unless it says otherwise: CE and KD together. Peers that are KD only stand beside `alpha 1`.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from peers import ALPHA, CROSS_ENTROPY, LOGIT_STD, PEERS, Absent, Peer, Problem, made_problem
from record import write_record
from torch import Tensor

import predistill.objective as o
from predistill.errors import RecipeError
from predistill.memory import keep_freed_memory

SHAPES = {  # tokens, width, vocabulary, kept, dtype
    "cpu": {"tokens": 2048, "width": 256, "vocabulary": 32_000, "kept": 50, "dtype": "float32"},
    "cuda": {"tokens": 8192, "width": 2048, "vocabulary": 151_936, "kept": 100, "dtype": "bfloat16"},
}
TINY = {"tokens": 16, "width": 16, "vocabulary": 256, "kept": 8}
SMALL_CHUNK = 256
AGREES = {"float32": (1e-5, 1e-4), "bfloat16": (1e-2, 1e-1)}  # value, hidden gradient: see precision.py for bfloat16

Choices = Callable[[], dict[str, Any]]

# Every built-in loss, tail, temperature and choice of positions once. A choice that is not there is a row that says so.
FAMILIES: dict[str, Choices] = {
    "lm": dict,
    "kld renormalise": dict,
    "nll zero": lambda: {"loss": o.NLL(), "tail": o.Zero()},
    "kld to_label": lambda: {"tail": o.ToLabel()},
    "kld ghost": lambda: {"tail": o.Ghost()},
    "kld uniform": lambda: {"tail": o.Uniform()},
    "kld decoupled": lambda: {"tail": o.Decoupled(tau=2.0)},
    "kld as_sampled": lambda: {"tail": o.AsSampled()},
    "kld renormalise, tau 2 both": lambda: {"temperature": o.Static(2.0, sides="both")},
    "kld renormalise, tau 3 both": lambda: {"temperature": o.Static(3.0, sides="both")},
    "kld renormalise, norm_kd": lambda: {"temperature": o.NormKD(scale=1.0)},
    "kld renormalise, wttm": lambda: {"temperature": o.WTTM(value=2.0)},
    "kld renormalise, std": lambda: {"temperature": o.StdScaled(value=2.0, reference=LOGIT_STD)},
    "reverse_kl renormalise": lambda: {"loss": o.ReverseKLD()},
    "reverse_kl ghost": lambda: {"loss": o.ReverseKLD(), "tail": o.Ghost()},
    "reverse_kl uniform": lambda: {"loss": o.ReverseKLD(), "tail": o.Uniform()},
    "jsd zero": lambda: {"loss": o.JSD(beta=0.5), "tail": o.Zero()},
    "jsd ghost": lambda: {"loss": o.JSD(beta=0.5), "tail": o.Ghost()},
    "mse probs": lambda: {"loss": o.MSE(space="probs")},
    "mse logits": lambda: {"loss": o.MSE(space="logits")},
    "mse logprobs": lambda: {"loss": o.MSE(space="logprobs")},
    "kld renormalise, top_student_entropy": lambda: {"positions": o.TopStudentEntropy(frac=0.2)},
    "kld renormalise, drop_low_teacher_entropy": lambda: {"positions": o.DropLowTeacherEntropy(frac=0.15)},
}
BESIDE_PEERS: dict[str, Choices] = {**FAMILIES, "jsd zero, whole mass kept": FAMILIES["jsd zero"]}
TARGETS = {"lm": None, "kld as_sampled": "sampled", "jsd zero, whole mass kept": "whole"}  # else "targets"


class Case(NamedTuple):
    """prepare makes, of a problem, the forward pass that is measured."""

    prepare: Callable[[Problem], Callable[[], Tensor]]
    teacher: str
    peer: Peer | None = None


class Run(NamedTuple):
    """A round's cost, and what was computed."""

    cost: float
    user: float  # of it, not in the kernel; on a GPU the same
    total: float
    grad_ND: Tensor | None
    peak_mib: float | None  # None on a CPU: see peaks_mib


def main() -> None:
    cuda = torch.cuda.is_available()
    args = arguments(SHAPES["cuda" if cuda else "cpu"])
    if args.child:
        print(json.dumps(resident_peak_mib(args.child, torch.load(args.problem, weights_only=False))))
        return
    keep_freed_memory()  # as the program does
    shape = {name: getattr(args, name) for name in ("tokens", "width", "vocabulary", "kept", "dtype")}
    cases = {name: case for name, case in all_cases().items() if re.search(args.only, name)}
    problem = problem_of(shape)
    rows = rows_of(cases, problem, rounds=args.rounds, dtype=args.dtype)
    content = {
        "command": f"python benchmarks/loss.py --rounds {args.rounds}",
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),
        "rounds": args.rounds,
        **shape,
        "alpha": ALPHA,
        "teacher": problem.facts,
        "cases": rows,
    }
    if shape == SHAPES["cuda" if cuda else "cpu"] and not args.only:
        write_record("loss-cuda" if cuda else "loss", content)
    else:
        print(json.dumps(content, indent=2))


def arguments(shape: dict[str, Any]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", default="", help="a regular expression that the names of cases must match")
    parser.add_argument("--dtype", choices=list(AGREES), default=shape["dtype"])
    for name in ("tokens", "width", "vocabulary", "kept"):
        parser.add_argument(f"--{name}", type=int, default=shape[name])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--problem", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def problem_of(shape: dict[str, Any]) -> Problem:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return made_problem(**{**shape, "dtype": getattr(torch, shape["dtype"])}, device=device)


def all_cases() -> dict[str, Case]:
    """Ours with alpha .9, then the peers, then what of ours stands beside them."""
    cases = {ours_name(family): ours(family) for family in FAMILIES}
    cases |= {peer.name: Case(partial(forward_of, peer), peer.teacher, peer) for peer in PEERS}
    for peer in PEERS:
        if peer.same is not None:
            for chunk in (None, SMALL_CHUNK):
                name = ours_name(peer.same, alpha=peer.alpha, chunk=chunk)
                cases.setdefault(name, ours(peer.same, alpha=peer.alpha, chunk=chunk))
    return cases


def ours_name(family: str, *, alpha: float = ALPHA, chunk: int | None = None) -> str:
    share = ", alpha 1" if alpha == 1 and family != "lm" else ""
    return f"ours: {family}{share}" + ("" if chunk is None else f", chunk {chunk}")


def ours(family: str, *, alpha: float = ALPHA, chunk: int | None = None) -> Case:
    def prepare(problem: Problem) -> Callable[[], Tensor]:
        try:
            choices = BESIDE_PEERS[family]()
        except AttributeError as error:
            raise Absent(str(error)) from error
        which = TARGETS.get(family, "targets")
        targets = None if which is None else getattr(problem, which)
        hidden_ND, weight_VD, label_N = problem.hidden_ND, problem.weight_VD, problem.label_N
        row_len = len(label_N) // 8
        return lambda: (
            o.linear_distill_loss(
                hidden_ND, weight_VD, label_N, targets, alpha=alpha, row_len=row_len, chunk_tokens=chunk, **choices
            ).total
        )

    return Case(prepare, "none" if family == "lm" else "sparse")


def forward_of(peer: Peer, problem: Problem) -> Callable[[], Tensor]:
    call = peer.prepared(problem)
    if peer.fused:
        return call
    return lambda: call(F.linear(problem.hidden_ND, problem.weight_VD))


def rows_of(cases: dict[str, Case], problem: Problem, *, rounds: int, dtype: str) -> dict[str, Any]:
    """A row a case; one that cannot run says why."""
    rows: dict[str, Any] = {}
    forwards: dict[str, Callable[[], Tensor]] = {}
    uncounted: dict[str, Run] = {}
    for name in cases:
        with reason_in(rows, name, cases[name]):
            forwards[name] = cases[name].prepare(problem)
    for name in forwards:
        with reason_in(rows, name, cases[name]):
            uncounted[name] = measured(forwards[name], problem)

    names = list(uncounted)
    runs: dict[str, list[Run]] = {name: [] for name in names}
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr)
        begin = number * len(names) // rounds
        for name in names[begin:] + names[:begin]:
            runs[name].append(measured(forwards[name], problem)._replace(grad_ND=None))
    peaks = {name: runs[name][-1].peak_mib for name in names}
    if not problem.hidden_ND.is_cuda:
        peaks = peaks_mib(names, problem)
    for name in names:
        rows[name] = row_of(name, cases[name], runs, peaks, problem)
        peer = cases[name].peer
        if peer is not None:
            rows[name] |= beside(peer, runs, peaks, uncounted, problem, dtype=dtype)
    return {name: rows[name] for name in cases}


@contextmanager
def reason_in(rows: dict[str, Any], name: str, case: Case) -> Iterator[None]:
    """Why a case cannot run becomes its row."""
    try:
        yield
    except (Absent, RecipeError) as reason:
        rows[name] = {"absent": str(reason)}
    except Exception as error:  # of a peer, or for want of memory: the others go on
        if case.peer is None and not isinstance(error, torch.OutOfMemoryError):
            raise
        rows[name] = {"failed": f"{type(error).__name__}: {str(error).splitlines()[:1]}"}
    print(f"{name}: {rows.get(name, 'ready')}", file=sys.stderr)


def row_of(
    name: str, case: Case, runs: dict[str, list[Run]], peaks: dict[str, float | None], problem: Problem
) -> dict[str, Any]:
    unit = "ms" if problem.hidden_ND.is_cuda else "cpu_seconds"
    elements, kept = len(problem.label_N) * len(problem.weight_VD), problem.ids_NK.numel()
    given = {"none": 0, "sparse": kept * 12, "dense": elements * problem.dense_dtype.itemsize}
    return {
        unit: round(statistics.median(run.cost for run in runs[name]), 3),
        **({} if problem.hidden_ND.is_cuda else {"user_share": ratio(runs, name, name, above="user")}),
        "of_lm": ratio(runs, name, ours_name("lm")),
        "of_ce": ratio(runs, name, CROSS_ENTROPY.name),
        "peak_mib": peaks[name],
        "peak_of_ce": share(peaks, name, CROSS_ENTROPY.name),
        "teacher_mib": round(given[case.teacher] / 2**20, 1),
    }


def beside(
    peer: Peer,
    runs: dict[str, list[Run]],
    peaks: dict[str, float | None],
    uncounted: dict[str, Run],
    problem: Problem,
    *,
    dtype: str,
) -> dict[str, Any]:
    """A peer's row beyond its cost: what it is, and the row of ours that computes the same."""
    about = {"version": peer.origin.version, "loaded": peer.origin.loaded, **({"note": peer.note} if peer.note else {})}
    if peer.same is None:
        return about
    name = ours_name(peer.same, alpha=peer.alpha)
    small = ours_name(peer.same, alpha=peer.alpha, chunk=SMALL_CHUNK)
    if name not in runs or small not in runs:
        return {**about, "same_as": name}
    return {
        **about,
        "same_as": name,
        "agreement": agreement(peer, uncounted[peer.name], uncounted[name], problem, bounds=AGREES[dtype]),
        "speedup_over_peer": {
            "default": ratio(runs, peer.name, name),
            f"chunk {SMALL_CHUNK}": ratio(runs, peer.name, small),
            **({} if problem.hidden_ND.is_cuda else {"default, user": ratio(runs, peer.name, name, "user", "user")}),
        },
        "memory_share_of_peer": {
            "default": share(peaks, name, peer.name),
            f"chunk {SMALL_CHUNK}": share(peaks, small, peer.name),
        },
    }


def agreement(peer: Peer, theirs: Run, mine: Run, problem: Problem, *, bounds: tuple[float, float]) -> dict[str, Any]:
    """Of value and hidden gradient, relative, after the peer's conventions are undone."""
    assert theirs.grad_ND is not None
    assert mine.grad_ND is not None
    shift = peer.shift(problem) if peer.shift else 0.0
    value = abs((theirs.total - shift) * peer.factor / mine.total - 1)
    wanted_ND = mine.grad_ND.double()
    gradient = float((theirs.grad_ND.double() * peer.factor - wanted_ND).norm() / wanted_ND.norm())
    return {
        "agrees": value <= bounds[0] and gradient <= bounds[1],
        "value": float(f"{value:.2g}"),
        "hidden_gradient": float(f"{gradient:.2g}"),
    }


def ratio(runs: dict[str, list[Run]], name: str, other: str, above: str = "cost", below: str = "cost") -> float | None:
    """Median over the rounds of name's / other's."""
    if other not in runs:
        return None
    pairs = zip(runs[name], runs[other], strict=True)
    return round(float(statistics.median(getattr(a, above) / getattr(b, below) for a, b in pairs)), 3)


def share(peaks: dict[str, float | None], name: str, other: str) -> float | None:
    mine, theirs = peaks.get(name), peaks.get(other)
    return None if mine is None or not theirs else round(mine / theirs, 3)


def clear_gradients(problem: Problem) -> None:
    problem.hidden_ND.grad = problem.weight_VD.grad = None


def backward_of(forward: Callable[[], Tensor], problem: Problem) -> Tensor:
    """The loss, its gradients made."""
    clear_gradients(problem)
    total = forward()
    total.backward()
    return total.detach()


def measured(forward: Callable[[], Tensor], problem: Problem) -> Run:
    clear_gradients(problem)
    if not problem.hidden_ND.is_cuda:
        began, system = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_stime
        total = backward_of(forward, problem)
        cost, peak_mib = time.process_time() - began, None
        user = cost - (resource.getrusage(resource.RUSAGE_SELF).ru_stime - system)
    else:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        base = torch.cuda.memory_allocated()
        begin.record()
        total = backward_of(forward, problem)
        end.record()
        torch.cuda.synchronize()
        cost = user = begin.elapsed_time(end)
        peak_mib = round((torch.cuda.max_memory_allocated() - base) / 2**20, 1)
    assert problem.hidden_ND.grad is not None
    assert problem.weight_VD.grad is not None
    return Run(cost, user, float(total), problem.hidden_ND.grad.cpu(), peak_mib)


def peaks_mib(names: list[str], problem: Problem) -> dict[str, float | None]:
    """Each case in its own process, where the allocator has kept nothing of another; None where not known."""
    if not Path("/proc/self/clear_refs").exists():  # not Linux
        return dict.fromkeys(names)
    peaks: dict[str, float | None] = {}
    # A fixed threshold maps every large block by itself and hands it back when freed.
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "problem.pt"
        clear_gradients(problem)
        bare = Problem(**{name: getattr(problem, name) for name in Problem.__dataclass_fields__})
        torch.save(bare, path)  # without the dense teachers
        for name in names:
            command = [sys.executable, __file__, "--child", name, "--problem", str(path)]
            child = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
            peaks[name] = json.loads(child.stdout.splitlines()[-1])
            print(f"{name}: {peaks[name]} MiB", file=sys.stderr)
    return peaks


def resident_peak_mib(name: str, problem: Problem) -> float:
    """Of one case, in this process."""
    case = all_cases()[name]
    tiny = problem_of({**TINY, "dtype": str(problem.hidden_ND.dtype).removeprefix("torch.")})
    backward_of(case.prepare(tiny), tiny)  # what a first call loads is not its memory
    forward = case.prepare(problem)
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins again from here
    base = resident_kib("VmRSS")
    backward_of(forward, problem)
    return round((resident_kib("VmHWM") - base) / 1024, 1)


def resident_kib(which: str) -> int:
    """VmRSS: now; VmHWM: the most so far."""
    status = Path("/proc/self/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith(which)).split()[1])


if __name__ == "__main__":
    main()
