"""Run one function many times at once: on this machine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from predistill.errors import RecipeError, did_you_mean

__all__ = ["LAUNCHERS", "run_many"]

LAUNCHERS = ("local", "ray")


def run_many(
    launcher: str,
    work: Callable[..., None],
    settings: dict[str, Any],
    *,
    times: int,
    threads: int,
    on_wait: Callable[[], None],
) -> list[Exception]:
    """Call `work(**settings)` in `times` processes of `threads` threads each, and wait for all of them; `on_wait` is
    called twice a second. What went wrong in those that failed; the others are not stopped by it."""
    if launcher not in LAUNCHERS:
        raise RecipeError(f'--launcher is "{launcher}"{did_you_mean(launcher, LAUNCHERS) or "."} One of local, ray.')
    if launcher == "ray":
        from predistill.launch.ray import run
    else:
        from predistill.launch.local import run
    return run(work, settings, times=times, threads=threads, on_wait=on_wait)
