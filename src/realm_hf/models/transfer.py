"""From the host to the device without waiting: a whole batch in one copy out of page-locked memory.

A copy of one small tensor takes a GPU a few microseconds and the host, which waits for all that was queued before it,
as long as that takes. So what a step needs is packed into one buffer, sent by one copy that nobody waits for, and cut
apart again on the device.
"""

from collections.abc import Mapping

import numpy as np
import torch

# Where each tensor begins in the buffer: a GPU reads memory in pieces of this many bytes.
_ALIGNMENT = 64


def to_device(
    arrays: Mapping[str, torch.Tensor | np.ndarray], device: torch.device | str | None
) -> dict[str, torch.Tensor]:
    """
    Send arrays of the host to a device.

    Args:
        arrays (`Mapping[str, torch.Tensor | np.ndarray]`): By name; on the CPU.
        device (`torch.device`, `str` or `None`): Where to. On the CPU, which is also the default, nothing is copied.

    Returns:
        `dict[str, torch.Tensor]`: The same names, types and shapes. On a device all are views of one buffer, which
        lives as long as one of them.
    """
    tensors = {name: torch.from_numpy(a) if isinstance(a, np.ndarray) else a for name, a in arrays.items()}
    device = torch.device("cpu" if device is None else device)
    if device.type == "cpu":
        return tensors
    starts, total = {}, 0
    for name, tensor in tensors.items():
        starts[name] = total
        total += -(-tensor.nbytes // _ALIGNMENT) * _ALIGNMENT
    packed = torch.empty(total, dtype=torch.uint8, pin_memory=device.type == "cuda")
    for name, tensor in tensors.items():
        _piece(packed, starts[name], tensor).copy_(tensor)
    # Metal reads the host's memory when its turn comes, and by then it may be somebody else's.
    there = packed.to(device, non_blocking=device.type != "mps")
    return {name: _piece(there, starts[name], tensor) for name, tensor in tensors.items()}


def _piece(packed: torch.Tensor, start: int, like: torch.Tensor) -> torch.Tensor:
    """The bytes of `packed` from `start` on that hold a tensor like `like`, as such a tensor."""
    return packed[start : start + like.nbytes].view(like.dtype).view(like.shape)


__all__ = ["to_device"]
