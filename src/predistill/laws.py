"""Cost arithmetic, pure: FLOPs, memory of a rank, bytes of a store and days, of training and of a forward pass.

Per token and forward: 2 FLOPs a weight in every matrix product (the head included, the embedding look-up not), and
2 * layers * T * D for causal attention (scores and values, half of the T x T square). Training is three forwards
(Kaplan et al. 2020, arXiv 2001.08361, section 2.1).
"""

from __future__ import annotations

import math
import re
from itertools import pairwise

from predistill.objective import Sampled, TopK, TopPK, Truncation

__all__ = [
    "PEAK_FLOPS",
    "days",
    "forward_flops",
    "kept_entries",
    "peak_flops",
    "store_bytes_per_token",
    "training_bytes",
    "training_flops",
]

# FLOPs a second of dense bfloat16 products with float32 sums, from the makers' data sheets (half of what they print
# "with sparsity"). A name is a set of words that the device's own name has all of; the longest comes first.
PEAK_FLOPS: dict[str, float] = {
    "h100 pcie": 756e12,
    "h100 nvl": 835e12,
    "a100": 312e12,
    "a800": 312e12,
    "l40s": 362e12,
    "h20": 148e12,
    "h100": 989e12,
    "h800": 989e12,
    "h200": 989e12,
    "gh200": 989e12,
    "b200": 2250e12,
    "gb200": 2500e12,
    "mi300x": 1307e12,
}

# Mean kept entries of the paper's 9B teacher, vocabulary of 151,552 (arXiv 2410.16215, section 4 of our notes on it):
# against p under a cap of 100, and against k where p is .95. At p = 0 and at k = 1 one entry is kept by definition.
_ENTRIES_OF_P = ((0.0, 1.0), (0.5, 4.5), (0.6, 7.0), (0.7, 10.5), (0.8, 16.5), (0.85, 20.5), (0.9, 27.5), (0.95, 37.5))
_ENTRIES_OF_K = ((1, 1.0), (3, 2.6), (5, 4.0), (10, 6.7), (20, 11.8), (50, 22.7), (100, 37.5))
_UNIQUE_OF_50_DRAWS = 17.0  # different ids: 16.6 with SmolLM2 135M, 17.3 with an n-gram teacher (results/store.json)

# Bytes of a store as written, benchmarks/results/store.json, SmolLM2 135M: 1.905 to 1.969 an entry from top-100 to
# top-.95-50, 1.47 an id that was drawn, 3.79 a position for label, entropy and standard deviation.
_BYTES_AN_ENTRY, _BYTES_A_DRAWN_ID, _BYTES_A_POSITION = 1.91, 1.47, 3.8

SECONDS_A_DAY = 86_400


def forward_flops(*, matrix_parameters: int, layers: int, width: int, row_len: int) -> int:
    """FLOPs a token of one forward pass; `matrix_parameters` counts every weight that a token is multiplied by: the
    head too, and of experts those that it is sent to."""
    return 2 * matrix_parameters + 2 * layers * row_len * width


def training_flops(*, matrix_parameters: int, layers: int, width: int, row_len: int) -> int:
    """FLOPs a token of forward and backward. Blocks that are run again for memory's sake are not counted: MFU is of
    the model's own FLOPs."""
    return 3 * forward_flops(matrix_parameters=matrix_parameters, layers=layers, width=width, row_len=row_len)


def training_bytes(
    *,
    parameters: int,
    vocab_size: int,
    layers: int,
    width: int,
    ffn: int,
    micro_batch_tokens: int,
    root_parameters: int | None = None,
    chunk_tokens: int = 1024,
    shard: int = 1,
    bf16: bool = False,
    activation_checkpointing: bool = False,
) -> dict[str, int]:
    """Bytes of one rank at the peak, about, by what they are for.

    `weights`, `gradients`, `optimizer`: float32, and two moments, divided over the `shard` ranks that hold one copy.
    `gathered`: what is computed with. Sharded, that is the root (`root_parameters`: embedding and head) and two blocks,
    the one at work and the next, and one block's gradient on its way to the float32 sum; on one rank, in bf16, the
    copies that autocast keeps for the backward pass; else nothing.
    `activations`: what a micro-batch keeps: per block and token 11 widths and 4 feed-forward widths in float32; in bf16
    norms and the residual stream stay float32, which makes 38 bytes a width and 8 a feed-forward width. With
    `activation_checkpointing` every block keeps its input, and one block at a time the rest.
    `loss`: a chunk of logits and the head's gradient, float32.
    """
    compute, root = (2 if bf16 else 4), (0 if root_parameters is None else root_parameters)
    block = (parameters - root) // layers
    gathered = (2 * parameters if bf16 else 0) if shard == 1 else compute * (root + 2 * block) + 4 * block
    kept = micro_batch_tokens * ((38 * width + 8 * ffn) if bf16 else (44 * width + 16 * ffn))
    inputs = 4 * micro_batch_tokens * width * layers
    return {
        "weights": math.ceil(4 * parameters / shard),
        "gradients": math.ceil(4 * parameters / shard),
        "optimizer": math.ceil(8 * parameters / shard),
        "gathered": gathered,
        "activations": kept + inputs if activation_checkpointing else kept * layers,
        "loss": 4 * (min(chunk_tokens, micro_batch_tokens) * vocab_size + vocab_size * width),
    }


def kept_entries(truncation: Truncation) -> float | None:
    """Entries a position that a large teacher's distribution keeps, about; of draws, different ids. None where nothing
    was measured: a top-p without a cap or with one above 100, a proposal that is not the teacher itself.

    Top-p then top-k keeps no more than either alone: the estimate where the paper has no figure for both. Of N draws
    N^.724 ids differ: 1 of 1, and what was counted of 50.
    """
    if isinstance(truncation, TopK):
        return float(truncation.k)
    if isinstance(truncation, Sampled) and truncation.proposal_temperature == 1:
        return float(truncation.draws ** (math.log(_UNIQUE_OF_50_DRAWS) / math.log(50)))
    if not isinstance(truncation, TopPK) or truncation.k > _ENTRIES_OF_K[-1][0]:
        return None
    of_k = _between(_ENTRIES_OF_K, truncation.k)
    if truncation.p > _ENTRIES_OF_P[-1][0]:  # from the figure at .95 up to the cap itself at 1
        return of_k + (truncation.k - of_k) * (truncation.p - 0.95) / 0.05
    return min(of_k, _between(_ENTRIES_OF_P, truncation.p))


def store_bytes_per_token(truncation: Truncation) -> float | None:
    """Bytes a position of a store, about, with label, entropy and standard deviation; None as `kept_entries`."""
    entries = kept_entries(truncation)
    if entries is None:
        return None
    return entries * (_BYTES_A_DRAWN_ID if isinstance(truncation, Sampled) else _BYTES_AN_ENTRY) + _BYTES_A_POSITION


def peak_flops(device_name: str) -> float | None:
    """FLOPs a second, dense bfloat16, of the accelerator that calls itself so ("NVIDIA H100 80GB HBM3", or "h100");
    None for one that is not in `PEAK_FLOPS`."""
    words = set(re.split(r"[^a-z0-9]+", device_name.lower()))
    return next((peak for name, peak in PEAK_FLOPS.items() if words.issuperset(name.split())), None)


def days(flops: float, *, accelerators: int, peak: float, mfu: float) -> float:
    """Days that so many FLOPs take on so many accelerators, at a share `mfu` of their peak."""
    return flops / (accelerators * peak * mfu * SECONDS_A_DAY)


def _between(points: tuple[tuple[float, float], ...], x: float) -> float:
    """The value at x on the line through the points, which begin at or below x and end at or above it."""
    for (x0, y0), (x1, y1) in pairwise(points):
        if x <= x1:
            return y0 + (y1 - y0) * (x - x0) / (x1 - x0)
    raise AssertionError(f"{x} is beyond {points[-1]}")
