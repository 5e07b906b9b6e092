"""Intermediate results of `datasets.map`, kept on disk under the fingerprint of what they were made from."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
from datasets import Dataset, Features
from datasets.fingerprint import Hasher


def cached_map(
    dataset: Dataset,
    function: Callable[..., dict[str, list[Any]]],
    *,
    name: str,
    key: tuple[Any, ...],
    features: Features,
    cache_dir: str | Path | None,
    num_proc: int,
    batch_size: int,
    desc: str,
    with_indices: bool = False,
) -> Dataset:
    """
    `dataset.map` in batches, or its result of an earlier run.

    `datasets` keeps results of in-memory datasets in memory only, and hashes the function by its pickle, weights and
    all. Here the file is always written, and looked up by the dataset's fingerprint and `key`. Neither holds the
    source or the name of a module, so that a cache outlives both: rules bring a version that is raised with their
    answers.

    Args:
        dataset (`Dataset`): Input.
        function (`Callable`): Batched function; its result replaces all columns.
        name (`str`): Stem of the cache file.
        key (`tuple`): What the result depends on beside the dataset.
        features (`Features`): Columns of the result.
        cache_dir (`str` or `Path`, *optional*): Defaults to `realm_hf` in the cache of `datasets`.
        num_proc (`int`): Processes.
        batch_size (`int`): Rows a call.
        desc (`str`): Label of the progress bar.
        with_indices (`bool`, *optional*, defaults to `False`): Pass row numbers as the second argument.

    Returns:
        `Dataset`
    """
    folder = Path(cache_dir) if cache_dir is not None else Path(datasets.config.HF_DATASETS_CACHE) / "realm_hf"
    folder.mkdir(parents=True, exist_ok=True)
    fingerprint = Hasher.hash((dataset._fingerprint, name, key, str(features)))
    return dataset.map(
        function,
        batched=True,
        batch_size=batch_size,
        with_indices=with_indices,
        num_proc=num_proc if num_proc > 1 else None,
        remove_columns=dataset.column_names,
        features=features,
        cache_file_name=str(folder / f"{name}-{fingerprint}.arrow"),
        load_from_cache_file=True,
        new_fingerprint=fingerprint,
        desc=desc,
    )
