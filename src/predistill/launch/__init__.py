"""Run one function many times at once: on this machine, or on a Ray cluster."""

from __future__ import annotations

from predistill.launch.job import Job
from predistill.launch.launchers import LAUNCHERS, run_many

__all__ = ["LAUNCHERS", "Job", "run_many"]
