"""Encoding rows of unequal length without paying for padding.

Rows are sorted by length and cut into chunks, each padded only to its own longest row. With 32 rows of 20 to 288
tokens (45 % padding) through a 6 x 384 tower on one CPU core, a training step took 4.0 s instead of 7.9 s (2.0 times
faster) and inference 1.4 s instead of 2.2 s (1.6 times). Rejected alternatives: packing all rows into one with a block
mask is slower on CPU (the mask is quadratic in the sum of lengths), and packing by restarting position ids silently
mixes rows under SDPA in a bidirectional model. The number of chunks depends on the lengths, so it differs between
ranks: DistributedDataParallel does not mind; FSDP, which gathers weights at every forward pass of a tower, would.
"""

from collections.abc import Callable, Iterator
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


def _row_chunks(
    lengths: list[int], device: torch.device, max_tokens_per_chunk: int | None
) -> Iterator[tuple[torch.Tensor, int]]:
    """Row numbers of each chunk on `device`, and the length of its longest row."""
    min_tokens, max_tokens = CHUNK_TOKENS.get(device.type, CHUNK_TOKENS["cuda"])
    chunks = plan_chunks(lengths, max_tokens_per_chunk or max_tokens, min_tokens)
    order = torch.tensor([row for chunk in chunks for row in chunk], device=device)
    for rows, chunk in zip(order.split([len(chunk) for chunk in chunks]), chunks, strict=True):
        yield rows, lengths[chunk[0]]


def _row_lengths(used: torch.Tensor) -> list[int]:
    """Where the last True of each row of `used` `(N, L)` ends; 1 for a row without any."""
    ends = torch.arange(1, used.size(1) + 1, device=used.device) * used
    return ends.amax(-1).clamp(min=1).tolist()


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
    if input_ids.size(0) == 0:
        raise ValueError("`input_ids` has no rows: leave the call out where there is nothing to encode.")
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)

    def run(index: torch.Tensor, length: int) -> torch.Tensor:
        segments = token_type_ids[index, :length] if token_type_ids is not None else None
        return fn(input_ids[index, :length], attention_mask[index, :length], segments, *(x[index] for x in row_inputs))

    # The last attended position ends a row: a mask with holes keeps its length.
    chunks = list(_row_chunks(_row_lengths(attention_mask != 0), input_ids.device, max_tokens_per_chunk))
    encoded = torch.cat([run(rows, length) for rows, length in chunks])
    return encoded[torch.cat([rows for rows, _ in chunks]).argsort()]


def ragged_tokens(
    fn: Callable[..., torch.Tensor],
    wanted: torch.Tensor,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    token_type_ids: torch.Tensor | None = None,
    max_tokens_per_chunk: int | None = None,
) -> torch.Tensor:
    """
    Like [`ragged_apply`] for a function with a result per token, of which only some are wanted.

    Args:
        fn (`Callable`):
            Called as `fn(input_ids, attention_mask, token_type_ids)` on some rows, cut to their longest; returns a
            tensor of shape `(rows, length, ...)` whose rows depend on no other row and on no padding.
        wanted (`torch.BoolTensor` of shape `(N, L)`):
            The tokens to return. Rows without any are not computed.
        input_ids (`torch.LongTensor` of shape `(N, L)`): Token ids, padded on the right.
        attention_mask (`torch.Tensor` of shape `(N, L)`, *optional*): 1 at tokens, 0 at padding.
        token_type_ids (`torch.LongTensor` of shape `(N, L)`, *optional*): Segments, or `None`, which is handed on.
        max_tokens_per_chunk (`int`, *optional*): Largest chunk in tokens, padding included.

    Returns:
        `torch.Tensor` of shape `(T, ...)`: The wanted results, by row, then by position.

    Raises:
        `ValueError`: nothing is wanted, so that the shape of a result is unknown.
    """
    if not wanted.any():
        raise ValueError("`wanted` is False everywhere: leave the call out where there is nothing to encode.")
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    needed = wanted.any(-1).nonzero().flatten()
    lengths = _row_lengths((attention_mask != 0)[needed] | wanted[needed])
    flat_positions = torch.arange(wanted.numel(), device=wanted.device).view_as(wanted)
    parts, places = [], []
    for some, length in _row_chunks(lengths, input_ids.device, max_tokens_per_chunk):
        rows = needed[some]
        segments = token_type_ids[rows, :length] if token_type_ids is not None else None
        chosen = wanted[rows, :length]
        parts.append(fn(input_ids[rows, :length], attention_mask[rows, :length], segments)[chosen])
        places.append(flat_positions[rows, :length][chosen])
    return torch.cat(parts)[torch.cat(places).argsort()]


__all__ = ["plan_chunks", "ragged_apply", "ragged_tokens"]
