"""Builders on a Ray cluster: each is the builder of `build-index`, and they make one generation together."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from realm_hf.refresh.builder_options import BuilderOptions
from realm_hf.storage.ray_workers import run_on_ray

__all__ = ["build_on_ray"]


def build_on_ray(options: BuilderOptions, builders: int, *, gpus: float | None = None) -> int:
    """
    Build on the cluster that `RAY_ADDRESS` names, or on one of this machine alone.

    Args:
        options ([`BuilderOptions`]): Of each builder.
        builders (`int`): How many.
        gpus (`float`, *optional*): GPUs that Ray keeps for each; by default 1 if it embeds on a GPU, else none.

    Returns:
        `int`: The exit code of the builder that did worst.

    Raises:
        ValueError: Ray is not installed, or `builders` is less than 1.
    """
    if gpus is None:
        gpus = float(options.device.startswith("cuda"))
    options = replace(options, run=options.run.absolute())
    return _worst(run_on_ray(partial(_build, options), builders, cpus=options.threads or 1, gpus=gpus))


def _build(options: BuilderOptions) -> int:
    """A builder, in a worker process of Ray's."""
    from realm_hf.refresh import builder

    return builder.run(options)


def _worst(codes: list[int]) -> int:
    """A builder that came when all was done had nothing to do: that is no failure beside one that built."""
    from realm_hf.refresh.builder import EXIT_BUILT, EXIT_NOTHING

    failed = [code for code in codes if code not in (EXIT_BUILT, EXIT_NOTHING)]
    return failed[0] if failed else min(codes)
