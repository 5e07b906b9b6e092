"""The same function in several processes of a Ray cluster, started again where one is lost.

What they do is cut into tasks in a directory that all nodes see ([`~realm_hf.storage.tasks.SharedTasks`]), so Ray has
nothing to hand out and nothing to write: it finds room for processes, and replaces them. Ray Data was rejected:
somebody would have to write its blocks a second time, in their order.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

__all__ = ["run_on_ray"]

Result = TypeVar("Result")

_STARTS_AGAIN = 100
"""Each start of a worker that was lost finds less to do."""


def run_on_ray(work: Callable[[], Result], workers: int, *, cpus: float = 1.0, gpus: float = 0.0) -> list[Result]:
    """
    Run a function in workers on the cluster that `RAY_ADDRESS` names, or on one of this machine alone.

    Each worker is a process of its own. It works in this process's directory if its node has that directory, and is
    started again, up to 100 times, if its process or its node is lost. A worker for which there is no room waits for
    another to end.

    Args:
        work (`Callable[[], Result]`): What each worker does; it and its result are pickled. It must not raise
            `SystemExit`, which Ray takes for a lost process.
        workers (`int`): How many.
        cpus (`float`, *optional*, defaults to 1.0): Processor cores that Ray keeps for each.
        gpus (`float`, *optional*, defaults to 0.0): GPUs that Ray keeps for each. A worker sees only its own.

    Returns:
        `list[Result]`: Of each worker.

    Raises:
        ValueError: Ray is not installed, or `workers` is less than 1.
    """
    if workers < 1:
        raise ValueError(f"{workers} workers on Ray were asked for: at least 1 is needed.")
    try:
        import ray
    except ImportError as error:
        raise ValueError("The engine ray needs Ray, which is not installed: run `pip install ray`.") from error
    ours = not ray.is_initialized()
    if ours:
        ray.init()
    # `max_calls`: a process of its own each time, which gives its memory back.
    remote = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=_STARTS_AGAIN, max_calls=1)(_work_in)
    try:
        results: list[Result] = ray.get([remote.remote(Path.cwd(), work) for _ in range(workers)])
    finally:
        if ours:
            ray.shutdown()
    return results


def _work_in(directory: Path, work: Callable[[], Result]) -> Result:
    if directory.is_dir():
        os.chdir(directory)
    return work()
