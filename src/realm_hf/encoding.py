"""Encoding rows of unequal length without paying for padding.

Rows are sorted by length and cut into chunks, each padded only to its own longest row. With 32 rows of 20 to 288
tokens (45 % padding) through a 6 x 384 tower on one CPU core, a training step took 4.0 s instead of 7.9 s (2.0 times
faster) and inference 1.4 s instead of 2.2 s (1.6 times). Rejected alternatives: packing all rows into one with a block
mask is slower on CPU (the mask is quadratic in the sum of lengths), and packing by restarting position ids silently
mixes rows under SDPA in a bidirectional model. The number of chunks depends on the lengths, so it differs between
ranks: DistributedDataParallel does not mind; FSDP, which gathers weights at every forward pass of a tower, would.
"""

from collections.abc import Callable
from typing import Any

import torch

# A chunk below the first number of tokens is never split for its padding: its matrix products would be too small for
# BLAS (or for the GPU) and cost more than the padding. The second bounds a chunk's activations.
CHUNK_TOKENS = {"cpu": (512, 4096), "cuda": (8192, 65536)}
MAX_PADDING = 0.1


def plan_chunks(
    lengths: list[int], max_tokens_per_chunk: int, min_tokens_per_chunk: int = 512, max_padding: float = MAX_PADDING
) -> list[list[int]]:
    """
    Group rows of similar length.

    Args:
        lengths (`list[int]`): Tokens of each row.
        max_tokens_per_chunk (`int`): Largest chunk, padding included; one row longer than this is a chunk by itself.
        min_tokens_per_chunk (`int`, *optional*, defaults to 512): Chunks up to this size may hold any share of
            padding.
        max_padding (`float`, *optional*, defaults to 0.1): Largest share of padding of a larger chunk.

    Returns:
        `list[list[int]]`: Row numbers of each chunk, longest rows first.
    """
    chunks: list[list[int]] = []
    longest = tokens = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        padded = longest * (len(chunks[-1]) + 1) if chunks else 0
        padding = padded - tokens - lengths[row]
        wasteful = padding > max_padding * padded and padded > min_tokens_per_chunk
        if not chunks or padded > max_tokens_per_chunk or wasteful:
            chunks.append([])
            longest, tokens = lengths[row], 0
        chunks[-1].append(row)
        tokens += lengths[row]
    return chunks


def ragged_apply(
    fn: Callable[..., torch.Tensor],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    token_type_ids: torch.Tensor | None = None,
    *row_inputs: Any,
    max_tokens_per_chunk: int | None = None,
) -> torch.Tensor:
    """
    Apply `fn` to rows of unequal length, with (almost) no padding; the result equals `fn` on the padded whole.

    Gradients are exact. In training mode dropout draws differ from those of the padded whole, as they do between any
    two batch layouts.

    Args:
        fn (`Callable`):
            Called as `fn(input_ids, attention_mask, token_type_ids, *row_inputs)` on some rows, cut to their longest;
            returns a tensor of shape `(rows, ...)` that depends on no other row and on no padding.
        input_ids (`torch.LongTensor` of shape `(N, L)`):
            Token ids, N >= 1, padded on the right.
        attention_mask (`torch.Tensor` of shape `(N, L)`, *optional*):
            1 at tokens, 0 at padding; all tokens if not given.
        token_type_ids (`torch.LongTensor` of shape `(N, L)`, *optional*):
            Segments, or `None`, which is handed on.
        row_inputs (`torch.Tensor` of shape `(N, ...)`):
            More inputs of `fn`, one entry a row, not cut.
        max_tokens_per_chunk (`int`, *optional*):
            Largest chunk in tokens, padding included. Defaults to 4,096 on CPU and 65,536 on GPU.

    Returns:
        `torch.Tensor` of shape `(N, ...)`: The results, in the order of the rows.

    Raises:
        `ValueError`: there are no rows, so that the shape of the result is unknown.
    """
    rows, width = input_ids.shape
    if rows == 0:
        raise ValueError("`input_ids` has no rows: leave the call out where there is nothing to encode.")
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    min_tokens, max_tokens = CHUNK_TOKENS.get(input_ids.device.type, CHUNK_TOKENS["cuda"])
    # The last attended position ends a row: a mask with holes keeps its length.
    ends = torch.arange(1, width + 1, device=input_ids.device) * (attention_mask != 0)
    lengths = ends.amax(-1).clamp(min=1).tolist()
    chunks = plan_chunks(lengths, max_tokens_per_chunk or max_tokens, min_tokens)

    def run(index: torch.Tensor, length: int) -> torch.Tensor:
        segments = token_type_ids[index, :length] if token_type_ids is not None else None
        return fn(input_ids[index, :length], attention_mask[index, :length], segments, *(x[index] for x in row_inputs))

    order = torch.tensor([row for chunk in chunks for row in chunk], device=input_ids.device)
    parts = order.split([len(chunk) for chunk in chunks])
    encoded = torch.cat([run(part, lengths[chunk[0]]) for part, chunk in zip(parts, chunks, strict=True)])
    return encoded[order.argsort()]


__all__ = ["plan_chunks", "ragged_apply"]
