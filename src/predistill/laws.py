"""Cost arithmetic, pure: FLOPs and memory of training and of a forward pass.

Per token and forward: 2 FLOPs a weight in every matrix product (the head included, the embedding look-up not), and
2 * layers * T * D for causal attention (scores and values, half of the T x T square). Training is three forwards
(Kaplan et al. 2020, arXiv 2001.08361, section 2.1).
"""

from __future__ import annotations

__all__ = ["forward_flops", "training_bytes", "training_flops"]


def forward_flops(*, matrix_parameters: int, layers: int, width: int, row_len: int) -> int:
    """FLOPs a token of one forward pass; `matrix_parameters` counts every weight used in a product, head included."""
    return 2 * matrix_parameters + 2 * layers * row_len * width


def training_flops(*, matrix_parameters: int, layers: int, width: int, row_len: int) -> int:
    """FLOPs a token of forward and backward."""
    return 3 * forward_flops(matrix_parameters=matrix_parameters, layers=layers, width=width, row_len=row_len)


def training_bytes(
    *,
    parameters: int,
    vocab_size: int,
    layers: int,
    width: int,
    ffn: int,
    micro_batch_tokens: int,
    chunk_tokens: int = 1024,
) -> dict[str, int]:
    """Bytes at the peak, about: float32 weights, gradients and two Adam moments; what a micro-batch keeps for its
    backward (per block and token some 9 widths and 3 feed-forward widths); the loss's logit chunk and head gradient."""
    return {
        "weights": 4 * parameters,
        "gradients": 4 * parameters,
        "optimizer": 8 * parameters,
        "activations": 4 * micro_batch_tokens * layers * (9 * width + 3 * ffn),
        "loss": 4 * (min(chunk_tokens, micro_batch_tokens) * vocab_size + vocab_size * width),
    }
