"""In which numbers a forward pass is computed, and what a device has of them."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch

_WITHOUT_FLOAT64 = {"mps"}


def native_bfloat16(device: torch.device) -> bool:
    """Whether `device` multiplies bfloat16 matrices faster than float32: on a CPU without AMX or AVX512-BF16 it takes
    three times as long.
    """
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False


def autocast(device: torch.device, bf16: bool) -> AbstractContextManager[None]:
    """Surrounds a forward pass of this thread: in bfloat16 if `bf16`, else as it would be without.

    Whatever a run in bfloat16 encodes goes through here, or FlashAttention, which takes no float32, would end it.
    """
    return torch.autocast(device.type, torch.bfloat16) if bf16 else nullcontext()


def has_float64(device: torch.device) -> bool:
    """Whether `device` knows float64: Apple's GPUs do not."""
    return device.type not in _WITHOUT_FLOAT64


def in_float64(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float64, on its device or, where that has none, on the CPU."""
    return (tensor if has_float64(tensor.device) else tensor.cpu()).double()
