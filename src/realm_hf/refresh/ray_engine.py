"""Builders on a Ray cluster: as many as are asked for, wherever it has room, each the builder of `build-index`.

They make one generation together as builders anywhere do, through the tasks in the run directory, which all nodes
must see. So Ray has nothing to commit and nothing to distribute: it starts builders, and starts one again whose
process or node was lost. Ray Data was rejected: somebody would have to write its blocks a second time, in order.
"""

from __future__ import annotations

from realm_hf.refresh.builder_options import BuilderOptions

__all__ = ["run_on_ray"]

_STARTS_AGAIN = 100
"""A builder that was lost is started again: each start finds less to do."""


def run_on_ray(options: BuilderOptions, builders: int, *, gpus: float = 0.0) -> int:
    """
    Build on the cluster that `RAY_ADDRESS` names, or on one of this machine alone.

    Args:
        options ([`BuilderOptions`]): Of each builder.
        builders (`int`): How many.
        gpus (`float`, *optional*, defaults to 0.0): GPUs that Ray keeps for each. A builder sees only its own.

    Returns:
        `int`: The exit code of the builder that did worst.

    Raises:
        ValueError: Ray is not installed, or `builders` is less than 1.
    """
    if builders < 1:
        raise ValueError(f"--builders is {builders}, but must be at least 1.")
    try:
        import ray
    except ImportError as error:
        raise ValueError("--engine ray needs Ray, which is not installed: run `pip install ray`.") from error
    ray.init(ignore_reinit_error=True)
    remote = ray.remote(
        num_cpus=options.threads or 1,
        num_gpus=gpus,
        max_retries=_STARTS_AGAIN,
        max_calls=1,  # a process of its own each time, which gives its memory back
    )(_build)
    codes: list[int] = ray.get([remote.remote(options) for _ in range(builders)])
    return _worst(codes)


def _build(options: BuilderOptions) -> int:
    """A builder, in a worker process of Ray's."""
    from realm_hf.refresh import builder

    return builder.run(options)


def _worst(codes: list[int]) -> int:
    """A builder that came when all was done had nothing to do: that is no failure beside one that built."""
    from realm_hf.refresh.builder import EXIT_BUILT, EXIT_NOTHING

    failed = [code for code in codes if code not in (EXIT_BUILT, EXIT_NOTHING)]
    return failed[0] if failed else min(codes)
