"""The fingerprint of the weights that a generation was built from.

SHA-256. A hash of Python objects (`hash`, pickles) was rejected: it depends on the process and its version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["state_fingerprint"]


def state_fingerprint(state_dict: Mapping[str, Any]) -> str:
    """
    Fingerprint of a model's weights: equal exactly when names, dtypes, shapes and bytes are equal.

    Args:
        state_dict (`Mapping[str, torch.Tensor | np.ndarray]`): The weights; their order does not matter, nor the
            device of a tensor.

    Returns:
        `str`: 64 hexadecimal digits.

    Raises:
        TypeError: If a value is neither a tensor nor an array.
    """
    digest = hashlib.sha256()
    for name in sorted(state_dict):
        dtype, shape, content = _describe(name, state_dict[name])
        digest.update(f"{name}\0{dtype}\0{shape}\0".encode())
        digest.update(content)
    return digest.hexdigest()


def _describe(name: str, value: Any) -> tuple[str, tuple[int, ...], memoryview]:
    if isinstance(value, np.ndarray):
        return str(value.dtype), value.shape, _bytes_of(value)
    import torch  # here, so that hashing arrays in a process without models does not load torch

    if not isinstance(value, torch.Tensor):
        raise TypeError(f"State {name!r} is a {type(value).__name__}: a tensor or an array was expected.")
    plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)  # numpy has no bfloat16; bytes do
    return str(value.dtype).removeprefix("torch."), tuple(value.shape), _bytes_of(plain.numpy())


def _bytes_of(array: np.ndarray) -> memoryview:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
