"""What a launcher is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

__all__ = ["Job"]


@dataclass(frozen=True)
class Job:
    """Call `work(**settings)` in `times` processes of `threads` threads each; `on_wait` is called here twice a second
    until all have ended."""

    work: Callable[..., None]
    settings: dict[str, Any]
    times: int
    threads: int
    on_wait: Callable[[], None]
