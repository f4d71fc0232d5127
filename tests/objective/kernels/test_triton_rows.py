"""The Triton kernels against the plain definition in float64, and against the torch backend.

On CUDA where there is one and TRITON_INTERPRET is not set, else in Triton's interpreter: same arithmetic, but no warps,
so that only CUDA can find a missing barrier.
"""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"

triton = pytest.importorskip("triton")
# torch._dynamo imports triton: the variable has to be there before.
assert isinstance(triton.language.sum, triton.JITFunction) != INTERPRETED, "TRITON_INTERPRET was set too late"

from predistill.objective.kernels import torch_rows, triton_rows  # noqa: E402
from predistill.objective.kernels.reading import Reads, Scratch, Student, column  # noqa: E402

# Rounding once to nearest; the interpreter cuts float32 off to bfloat16.
ROUNDING = {torch.bfloat16: 2**-7 if INTERPRETED else 2**-8, torch.float16: 2**-10}
# (C, V, block, columns merged in the kernel): blocks that fit, that do not, one larger than the row, the real one
SHAPES = [(4, 128, 32, 1024), (3, 150, 64, 4), (1, 37, 4096, 1024), (2, 5000, 4096, 1024)]
READS = ["plain", "tau", "taus", "outside", "outside+tau", "outside+taus", "entropy", "entropy+tau", "entropy+taus"]
READS += ["sum", "sum+taus", "sum+entropy+tau"]


def problem(rows: int, vocabulary: int, *, kept: int = 9, seed: int = 0) -> SimpleNamespace:
    """Random logits; columns: up to `kept` kept ids, padding, two ids that are not kept but named twice, a label.

    The label of even rows is a kept id. Padding names id 0, which is kept too in row 1.
    """
    generator = torch.Generator().manual_seed(seed)
    order_CV = torch.stack([1 + torch.randperm(vocabulary - 1, generator=generator) for _ in range(rows)])
    kept_CJ = torch.arange(kept + 8) < kept - torch.arange(rows)[:, None]
    ids_CJ = torch.where(kept_CJ, order_CV[:, : kept + 8], 0)
    ids_CJ[:, -5:-1] = order_CV[:, [kept, kept + 1, kept, kept + 1]]
    ids_CJ[:, -1] = torch.where(torch.arange(rows) % 2 == 0, ids_CJ[:, 1], order_CV[:, kept + 2])
    if rows > 1:
        ids_CJ[1, 0] = 0
    logit_CV = 3 * torch.randn(rows, vocabulary, generator=generator)
    tau_C = 0.5 + 3 * torch.rand(rows, generator=generator)
    moved = (x.to(DEVICE) for x in (logit_CV, ids_CJ, kept_CJ, tau_C))
    return SimpleNamespace(**dict(zip(("logit_CV", "ids_CJ", "kept_CJ", "tau_C"), moved, strict=True)))


def reads_of(name: str, made: SimpleNamespace) -> Reads:
    words = name.split("+")
    return Reads(
        tau=2.0 if "tau" in words else made.tau_C if "taus" in words else 1.0,
        kept_CJ=made.kept_CJ if "outside" in words else None,
        entropy="entropy" in words,
        total="sum" in words,
    )


def dense(logit_CV: Tensor, ids_CJ: Tensor, reads: Reads, softcap: float | None = None) -> Student:
    """The numbers, straight from the definitions."""
    z_CV = logit_CV if softcap is None else softcap * (logit_CV / softcap).tanh()
    tempered_CV = z_CV / (column(reads.tau) if isinstance(reads.tau, float) else column(reads.tau.double()))
    outside_C = entropy_C = None
    if reads.kept_CJ is not None:
        kept_CV = torch.zeros_like(z_CV).scatter_add_(1, ids_CJ, reads.kept_CJ.to(z_CV)) > 0
        outside_C = tempered_CV.masked_fill(kept_CV, -torch.inf).logsumexp(dim=1)
    if reads.entropy:
        entropy_C = -(tempered_CV.softmax(dim=1) * tempered_CV.log_softmax(dim=1)).sum(dim=1)
    return Student(
        z_CV.gather(1, ids_CJ),
        z_CV.logsumexp(dim=1),
        tempered_CV.logsumexp(dim=1) if reads.tempered else None,
        outside_C,
        entropy_C,
        z_CV.sum(dim=1) if reads.total else None,
    )


def loss(student: Student) -> Tensor:
    """No loss of ours: linear and quadratic in every number, in every row and column differently."""
    generator = torch.Generator().manual_seed(1)
    terms = []
    for name, number in student._asdict().items():
        linear, quadratic = torch.randn(2, 4, 32, dtype=torch.float64, generator=generator)
        if number is not None:
            x = (number / 4).exp() if name == "lse_outside_N" else number
            shape = (slice(x.shape[0]), slice(x.shape[1])) if x.ndim == 2 else (slice(x.shape[0]), 0)
            terms.append((linear[shape].to(x) * x + quadratic[shape].to(x) * x.square() / 16).sum())
    return torch.stack(terms).sum()


def derivatives(student: Student) -> Student:
    leaves = {name: x.detach().clone().requires_grad_() for name, x in student._asdict().items() if x is not None}
    return Student(
        **dict(zip(leaves, torch.autograd.grad(loss(Student(**leaves)), list(leaves.values())), strict=True))
    )


def wanted(made: SimpleNamespace, reads: Reads, softcap: float | None = None) -> tuple[Student, Tensor]:
    logit_CV = made.logit_CV.double().requires_grad_()
    student = dense(logit_CV, made.ids_CJ, reads, softcap)
    return student, torch.autograd.grad(loss(student), logit_CV)[0]


def found(
    made: SimpleNamespace, reads: Reads, softcap: float | None = None, dtype: torch.dtype | None = None
) -> tuple[Student, Tensor]:
    reading = triton_rows.read_(made.logit_CV.clone(), made.ids_CJ, reads, Scratch(), softcap=softcap)
    return reading.student, triton_rows.write_gradient_(reading, derivatives(reading.student), dtype=dtype)


def same(got: tuple[Student, Tensor], want: tuple[Student, Tensor], tolerance: SimpleNamespace) -> None:
    for name, x, y in zip(Student._fields, got[0], want[0], strict=True):
        assert (x is None) == (y is None), name
        if x is not None and y is not None:
            assert x.dtype == torch.float32
            assert (x - y).abs().max() <= tolerance.float32_value * y.abs().max().clamp(min=1), name
    assert (got[1] - want[1]).norm() <= tolerance.float32_gradient * want[1].norm()


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("name", READS)
@pytest.mark.parametrize("shape", SHAPES)
def test_numbers_and_gradient_are_those_of_the_definition_and_of_the_torch_backend(
    shape: tuple[int, int, int, int],
    name: str,
    softcap: float | None,
    monkeypatch: pytest.MonkeyPatch,
    tolerance: SimpleNamespace,
) -> None:
    monkeypatch.setattr(triton_rows, "BLOCK_V", shape[2])
    monkeypatch.setattr(triton_rows, "MERGED_J", shape[3])
    made = problem(*shape[:2])
    reads = reads_of(name, made)
    got = found(made, reads, softcap)
    same(got, wanted(made, reads, softcap), tolerance)
    reading = torch_rows.read_(made.logit_CV.double(), made.ids_CJ, reads, Scratch(), softcap=softcap)
    same(got, (reading.student, torch_rows.write_gradient_(reading, derivatives(reading.student))), tolerance)


@pytest.mark.parametrize("columns", [1, 2, 16, 17, 40])
def test_all_columns_that_name_one_id_add_up_there(columns: int) -> None:
    logit_CV, ids_CJ = torch.zeros(2, 50, device=DEVICE), torch.full((2, columns), 7, device=DEVICE)
    by_CJ = torch.randn(2, columns, generator=torch.Generator().manual_seed(2)).to(DEVICE)
    reading = triton_rows.read_(logit_CV, ids_CJ, Reads(), Scratch())
    gradient_CV = triton_rows.write_gradient_(reading, Student(by_CJ, torch.ones(2, device=DEVICE)))
    wanted_CV = torch.full((2, 50), 1 / 50, device=DEVICE)
    wanted_CV[:, 7] += by_CJ.sum(dim=1)
    assert torch.allclose(gradient_CV, wanted_CV, rtol=1e-6, atol=4e-6)


@pytest.mark.parametrize("name", [name for name in READS if "outside" not in name and "sum" not in name])
def test_the_gradient_does_not_depend_on_an_offset_of_the_logits(name: str, tolerance: SimpleNamespace) -> None:
    made = problem(4, 150)
    made.logit_CV = (made.logit_CV * 64).round() / 64  # exact in float32 with the offset too
    reads = reads_of(name, made)
    readings = [triton_rows.read_(made.logit_CV + offset, made.ids_CJ, reads, Scratch()) for offset in (0.0, 1e4)]
    by = derivatives(readings[0].student)
    plain_CV, offset_CV = (triton_rows.write_gradient_(reading, by) for reading in readings)
    assert (offset_CV - plain_CV).norm() <= tolerance.float32_gradient * plain_CV.norm()
    for name, low, high in zip(Student._fields, readings[0].student, readings[1].student, strict=True):
        if low is not None and high is not None:
            shift = {"entropy_N": 0.0, "lse_tau_N": 1e4 / reads.tau}.get(name, 1e4)
            assert (high - (low + shift)).abs().max() <= tolerance.float32_value * (1 if name == "entropy_N" else 1e4)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize("name", ["outside", "outside+tau"])
def test_with_nothing_outside_the_kept_ids_all_is_finite(
    name: str, softcap: float | None, tolerance: SimpleNamespace
) -> None:
    made = problem(2, 20)
    made.ids_CJ = torch.stack([torch.arange(20), torch.arange(20).flip(0)]).to(DEVICE)
    made.kept_CJ = torch.ones_like(made.ids_CJ, dtype=torch.bool)
    reads = reads_of(name, made)
    student, gradient_CV = found(made, reads, softcap)
    assert student.lse_outside_N is not None
    assert (student.lse_outside_N == -torch.inf).all()
    inside, inside_CV = wanted(made, reads._replace(kept_CJ=None), softcap)
    same((student._replace(lse_outside_N=None), gradient_CV), (inside, inside_CV), tolerance)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_gradient_is_rounded_once_at_the_ids_of_a_converged_student_too(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(triton_rows, "BLOCK_V", 64)
    generator = torch.Generator().manual_seed(3)
    log_p_CV = (3 * torch.randn(4, 300, generator=generator)).log_softmax(dim=1).sort(dim=1, descending=True).values
    sign_CV = torch.randint(2, (4, 300), generator=generator) * 2 - 1
    logit_CV = (log_p_CV + 0.02 * sign_CV).to(DEVICE)
    ids_CJ = torch.cat((torch.arange(100).expand(4, 100), torch.full((4, 1), 2)), dim=1).to(DEVICE)
    t_CJ = torch.cat((log_p_CV[:, :100].exp(), torch.zeros(4, 1)), dim=1).to(DEVICE)  # the label's share is in it
    wanted_CV = logit_CV.double().softmax(dim=1).scatter_add(1, ids_CJ, -t_CJ.double())
    assert (wanted_CV[:, 0].abs() < 0.03 * t_CJ[:, 0]).all()

    reading = triton_rows.read_(logit_CV, ids_CJ, Reads(), Scratch())
    gradient_CV = triton_rows.write_gradient_(reading, Student(-t_CJ, torch.ones(4, device=DEVICE)), dtype=dtype)
    smallest = 2**-25 if dtype == torch.float16 else 0.0  # half a step of the numbers below float16's normal ones
    assert ((gradient_CV - wanted_CV).abs() <= ROUNDING[dtype] * wanted_CV.abs() + smallest).all()


@pytest.mark.parametrize("dtype", [None, torch.bfloat16, torch.float16])
def test_rows_may_be_wider_than_the_vocabulary_and_nothing_beside_them_is_touched(dtype: torch.dtype | None) -> None:
    made = problem(3, 150)
    _, tight_CV = found(made, Reads(), dtype=dtype)
    wide = torch.full((3, 200), 77.0, device=DEVICE)
    wide[:, :150] = made.logit_CV
    reading = triton_rows.read_(wide[:, :150], made.ids_CJ, Reads(), Scratch())
    gradient_CV = triton_rows.write_gradient_(reading, derivatives(reading.student), dtype=dtype)
    assert torch.equal(gradient_CV, tight_CV)
    assert (gradient_CV.dtype, gradient_CV.shape) == (dtype or torch.float32, (3, 150))
    assert gradient_CV.stride() == (200 if dtype is None else 400, 1)
    assert gradient_CV.data_ptr() == wide.data_ptr()
    assert (wide[:, 150:] == 77).all()


@pytest.mark.parametrize("name", ["outside+taus", "sum+entropy+tau"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_same_logits_give_the_same_bits(name: str, dtype: torch.dtype | None) -> None:
    made = problem(4, 5000)
    reads = reads_of(name, made)
    (first, first_CV), *others = (found(made, reads, 5.0, dtype) for _ in range(2 if INTERPRETED else 20))
    for other, other_CV in others:
        assert torch.equal(first_CV, other_CV)
        assert all(x is y or torch.equal(x, y) for x, y in zip(first, other, strict=True))


def test_nan_is_not_hidden() -> None:
    logit_CV = torch.zeros(2, 50, device=DEVICE)
    logit_CV[0, 3] = torch.nan
    assert (
        triton_rows.read_(logit_CV, torch.zeros(2, 1, dtype=torch.int64, device=DEVICE), Reads(), Scratch())
        .student.lse_N[0]
        .isnan()
    )
