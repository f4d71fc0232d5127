"""Tasks of a Ray cluster: the one that $RAY_ADDRESS names, or one of this machine. predistill has to be installed on
every node, and paths have to mean the same there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from predistill.errors import RecipeError
from predistill.launch.job import Job

__all__ = ["run"]


def run(job: Job) -> list[Exception]:
    """As `launch.run_many`. A task whose node dies is started again elsewhere."""
    try:
        import ray
    except ImportError:
        raise RecipeError('The launcher ray needs Ray: pip install "predistill[ray]".') from None
    began = not ray.is_initialized()
    if began:
        ray.init(log_to_driver=False, include_dashboard=False, configure_logging=False)
    try:
        there: dict[str, float] = ray.cluster_resources()  # type: ignore[no-untyped-call]
        cpus = min(float(job.threads), there.get("CPU", 1.0) / job.times)
        gpus = min(1.0, there.get("GPU", 0.0) / job.times)
        task = ray.remote(_one).options(
            num_cpus=cpus if cpus < 1 else int(cpus),  # Ray takes parts of one, and whole ones
            num_gpus=gpus,
            max_retries=5,
            runtime_env={"env_vars": {"OMP_NUM_THREADS": str(job.threads)}},
        )
        waiting = [task.remote(job.work, job.settings) for _ in range(job.times)]
        failed: list[Exception] = []
        while waiting:
            ready, waiting = ray.wait(waiting, timeout=0.5)
            for answer in ready:
                try:
                    ray.get(answer)
                except ray.exceptions.RayTaskError as error:
                    failed.append(error.cause if isinstance(error.cause, Exception) else error)
                except ray.exceptions.RayError as error:
                    failed.append(error)
            job.on_wait()
        return failed
    finally:
        if began:
            ray.shutdown()


def _one(work: Callable[..., None], settings: dict[str, Any]) -> None:
    work(**settings)
