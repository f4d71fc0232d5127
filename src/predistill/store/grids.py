"""The declared grids: which real numbers the store's 16-bit integers stand for.

value = origin + step * q, with q = 0 .. 65534; what lies outside is clamped to the grid's end. q = 65535 is kept for
one special value of the mass that is not kept: "nothing", a logarithm of -infinity.

log-probabilities 1/64 nat is the measured choice (KL of the kept part 5e-6). The mass that is not kept is stored as
its logit, log(rest / (1 - rest)): one step is then the same relative error at both ends, of a rest near 0 *and* of a
kept part near 0, which a logarithm alone loses when the rest is close to 1.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from predistill.errors import StoreError

__all__ = ["GRIDS", "NOTHING", "Grid", "grids_from_manifest", "grids_to_manifest", "log_of_logit", "logit_of_log"]

Q_MAX = 65534
NOTHING = 65535  # rest stream only: the teacher's whole mass is kept


@dataclass(frozen=True, slots=True)
class Grid:
    """An arithmetic progression of 65,535 values: origin + step * q."""

    origin: float
    step: float

    def encode(self, values: npt.ArrayLike) -> npt.NDArray[np.uint16]:
        """The nearest q of each value, clamped to 0 .. 65534. NaN must not come here."""
        q = np.rint((np.asarray(values, np.float64) - self.origin) / self.step)
        return np.clip(q, 0, Q_MAX).astype(np.uint16)

    def decode(self, q: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
        """float32 values of q."""
        return q.astype(np.float32) * np.float32(self.step) + np.float32(self.origin)


GRIDS: dict[str, Grid] = {
    "logprob": Grid(origin=0.0, step=-1 / 64),  # 0 .. -1023.97 nats
    "rest_logit": Grid(origin=-128.0, step=1 / 256),  # e^-128 .. 1 - e^-128
    "label_logprob": Grid(origin=0.0, step=-1 / 256),  # 0 .. -255.99 nats
    "entropy": Grid(origin=0.0, step=1 / 256),  # 0 .. 255.99 nats
    "logit_std": Grid(origin=0.0, step=1 / 256),  # 0 .. 255.99
    "normaliser": Grid(origin=-128.0, step=1 / 256),  # -128 .. 127.99 nats
}


def logit_of_log(log_rest_N: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """log(rest / (1 - rest)) from log(rest), exact at both ends; -inf stays -inf, 0 or more becomes +inf."""
    log_rest = np.minimum(log_rest_N.astype(np.float64), 0.0)
    with np.errstate(divide="ignore"):
        return log_rest - np.log(-np.expm1(log_rest))


def log_of_logit(logit_N: npt.NDArray[np.float64]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """(log rest, log kept) from the logit of the rest."""
    return -np.logaddexp(0.0, -logit_N), -np.logaddexp(0.0, logit_N)


def grids_to_manifest(grids: dict[str, Grid]) -> dict[str, Any]:
    """The `grids` entry of a manifest."""
    return {name: asdict(grid) for name, grid in grids.items()}


def grids_from_manifest(content: Any) -> dict[str, Grid]:
    """Grids of a manifest over the defaults; raises `StoreError` for a name or a field that format 1 does not have."""
    try:
        grids = {name: Grid(origin=float(grid["origin"]), step=float(grid["step"])) for name, grid in content.items()}
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError):
        raise StoreError(f"grids must map a name to an origin and a step, found {content!r}.") from None
    for name, grid in grids.items():
        first, last = grid.origin, grid.origin + 65535 * grid.step
        above = name in ("logprob", "label_logprob") and max(first, last) > 0
        if above or not max(abs(first), abs(last)) < 1e30:  # float32 has to hold it
            raise StoreError(f"grid {name} goes from {grid.origin:g} in steps of {grid.step:g}, which is no grid.")
    if unknown := sorted(set(grids) - set(GRIDS)):
        raise StoreError(f"unknown grid {unknown[0]!r}; format 1 has {', '.join(GRIDS)}.")
    return GRIDS | grids
