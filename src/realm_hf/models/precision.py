"""In which numbers a forward pass is computed, and what a device has of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch

ENCODE_DTYPES = ("auto", "float32", "tf32", "bfloat16")
"""What `encode_dtype` may be."""

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


def resolved_encode_dtype(asked: str, device: torch.device) -> str:
    """In what passages are embedded on `device` where `asked` was asked for.

    "auto" is tf32 where the device has it, and float32 elsewhere: by tf32 no passage changed its place among the best
    five of 1,000 questions, by bfloat16 one in 240 did (`benchmarks/encode_dtypes.py`). A device without tf32 computes
    in float32 instead.

    Args:
        asked (`str`): One of [`ENCODE_DTYPES`].
        device (`torch.device`): Where they are embedded.

    Returns:
        "float32", "tf32" or "bfloat16".
    """
    if asked in ("auto", "tf32"):
        # The CUDA devices with bfloat16 units are those with tf32 units: compute capability 8.0.
        return "tf32" if device.type == "cuda" and native_bfloat16(device) else "float32"
    return asked


@contextmanager
def encoding_in(dtype: str, device: torch.device) -> Iterator[None]:
    """Surrounds the embedding of passages on this thread.

    Args:
        dtype (`str`): What [`resolved_encode_dtype`] gave. tf32 is a setting of the process, and put back afterwards.
        device (`torch.device`): Where they are embedded.
    """
    before = torch.get_float32_matmul_precision()
    if dtype == "tf32":
        torch.set_float32_matmul_precision("high")
    try:
        with autocast(device, dtype == "bfloat16"):
            yield
    finally:
        if dtype == "tf32":
            torch.set_float32_matmul_precision(before)
