"""The launchers by their names."""

from __future__ import annotations

from predistill.errors import RecipeError, did_you_mean
from predistill.launch.job import Job

__all__ = ["LAUNCHERS", "run_many"]

LAUNCHERS = ("local", "ray")


def run_many(launcher: str, job: Job) -> list[Exception]:
    """Run the job and wait for it. What went wrong in those that failed; the others are not stopped by it."""
    if launcher not in LAUNCHERS:
        raise RecipeError(f'--launcher is "{launcher}"{did_you_mean(launcher, LAUNCHERS) or "."} One of local, ray.')
    if launcher == "ray":
        from predistill.launch.ray import run
    else:
        from predistill.launch.local import run
    return run(job)
