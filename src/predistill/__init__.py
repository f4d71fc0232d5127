"""Pre-training distillation: a small language model learns from a large one's next-token distributions.

    from predistill import prepare, capture, train, evaluate

The verbs are loaded when first used, so that importing the package costs nothing (PEP 562).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from predistill.stages.capture import capture
    from predistill.stages.evaluate import evaluate
    from predistill.stages.prepare import prepare
    from predistill.stages.train import train

__all__ = ["capture", "evaluate", "prepare", "train"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(importlib.import_module(f"predistill.stages.{name}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
