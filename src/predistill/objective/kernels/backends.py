"""Which backend reads rows of logits and writes their gradient."""

from __future__ import annotations

from types import ModuleType

import torch

from predistill.errors import RecipeError
from predistill.objective.kernels import torch_rows

__all__ = ["rows_backend"]


def rows_backend(name: str | None, device: torch.device, dtype: torch.dtype) -> ModuleType:
    """The module that reads rows of logits and writes their gradient: "torch", "triton", or None for the faster."""
    if name is None:
        name = "triton" if device.type == "cuda" and dtype == torch.float32 and _has_triton() else "torch"
    if name == "torch":
        return torch_rows
    if name == "triton":
        if not _has_triton():
            raise RecipeError('backend is "triton", and Triton is not installed. Install it, or use backend "torch".')
        from predistill.objective.kernels import triton_rows

        return triton_rows
    raise RecipeError(f'backend is "{name}"; it is "torch" or "triton".')


def _has_triton() -> bool:
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True
