"""Encoding rows of unequal length without paying for padding.

Rows are sorted by length and cut into chunks, each padded only to its own longest row. With 32 rows of 20 to 288
tokens (45 % padding) through a 6 x 384 tower on one CPU core, a training step took 4.0 s instead of 7.9 s (2.0 times
faster) and inference 1.4 s instead of 2.2 s (1.6 times). Rejected alternatives: packing all rows into one with a block
mask is slower on CPU (the mask is quadratic in the sum of lengths), and packing by restarting position ids silently
mixes rows under SDPA in a bidirectional model. The number of chunks depends on the lengths, so it differs between
ranks: DistributedDataParallel does not mind; for FSDP2, which gathers weights at every forward pass of a layer, the
ranks make it equal ([`equal_chunks`]).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np
import torch

from realm_hf.models.host_facts import RowLengths, on_host
from realm_hf.models.transfer import to_device

# A chunk below the first number of tokens is never split for its padding: its matrix products would be too small for
# BLAS (or for the GPU) and cost more than the padding. The second bounds a chunk's activations.
CHUNK_TOKENS = {"cpu": (512, 4096), "cuda": (8192, 65536)}
MAX_PADDING = 0.1

# Of this thread: other threads encode with whole weights, and never wait for a rank.
_agreement: ContextVar[Callable[[int], int] | None] = ContextVar("agreement", default=None)


@contextmanager
def equal_chunks(largest: Callable[[int], int]) -> Iterator[None]:
    """
    In this block, and in this thread, each call of [`ragged_apply`] applies its function equally often on all ranks.

    Args:
        largest (`Callable[[int], int]`): From this rank's number of chunks to the largest of all ranks; a collective
            call, so all ranks must call [`ragged_apply`] equally often.
    """
    token = _agreement.set(largest)
    try:
        yield
    finally:
        _agreement.reset(token)


def chunks_are_equal() -> bool:
    """Whether this is within [`equal_chunks`]: then every rank must encode, also one that asks for nothing."""
    return _agreement.get() is not None


def divide_chunks(chunks: list[list[int]], count: int) -> list[list[int]]:
    """
    Make `count` chunks of fewer: the one with the most rows is halved, and where each has one row, the last, shortest
    one is repeated, to be computed again for nothing.

    Args:
        chunks (`list[list[int]]`): As of [`plan_chunks`].
        count (`int`): At least their number.

    Returns:
        `list[list[int]]`: Each row is in it, the first time in the order of `chunks`.
    """
    divided = list(chunks)
    while len(divided) < count:
        at = max(range(len(divided)), key=lambda place: len(divided[place]))
        rows = divided[at]
        if len(rows) == 1:
            return divided + [divided[-1]] * (count - len(divided))
        divided[at : at + 1] = [rows[: len(rows) // 2], rows[len(rows) // 2 :]]
    return divided


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
    lengths: RowLengths,
    device: torch.device,
    max_tokens_per_chunk: int | None,
    largest: Callable[[int], int] | None = None,
) -> Iterator[tuple[np.ndarray, int, bool]]:
    """Row numbers of each chunk, the length of its longest row, and whether a row of it has padding or a hole."""
    min_tokens, max_tokens = CHUNK_TOKENS.get(device.type, CHUNK_TOKENS["cuda"])
    ends = lengths.ends.tolist()
    chunks = plan_chunks(ends, max_tokens_per_chunk or max_tokens, min_tokens)
    for chunk in chunks if largest is None else divide_chunks(chunks, largest(len(chunks))):
        length = ends[chunk[0]]
        yield np.array(chunk), length, bool((lengths.tokens[chunk] < length).any())


def ragged_apply(
    fn: Callable[..., torch.Tensor],
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    token_type_ids: torch.Tensor | None = None,
    *row_inputs: Any,
    max_tokens_per_chunk: int | None = None,
    lengths: RowLengths | None = None,
) -> torch.Tensor:
    """
    Apply `fn` to rows of unequal length, with (almost) no padding; the result equals `fn` on the padded whole.

    Gradients are exact. In training mode dropout draws differ from those of the padded whole, as they do between any
    two batch layouts.

    Args:
        fn (`Callable`):
            Called as `fn(input_ids, attention_mask, token_type_ids, *row_inputs)` on some rows, cut to their longest;
            returns a tensor of shape `(rows, ...)` that depends on no other row and on no padding. The mask is `None`
            where none of the rows has padding.
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
        lengths ([`~host_facts.RowLengths`], *optional*):
            Of the rows, where the host knows them; else the mask is read back from its device.

    Returns:
        `torch.Tensor` of shape `(N, ...)`: The results, in the order of the rows.

    Raises:
        `ValueError`: there are no rows, so that the shape of the result is unknown.
    """
    if input_ids.size(0) == 0:
        raise ValueError("`input_ids` has no rows: leave the call out where there is nothing to encode.")
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    # The last attended position ends a row: a mask with holes keeps its length.
    lengths = RowLengths.of(attention_mask) if lengths is None else lengths
    chunks = list(_row_chunks(lengths, input_ids.device, max_tokens_per_chunk, _agreement.get()))
    order = np.concatenate([rows for rows, _, _ in chunks])
    # Of a row that is computed more than once, the first result.
    _, back = np.unique(order, return_index=True)
    sent = to_device({"order": order, "back": back}, input_ids.device)

    def run(index: torch.Tensor, length: int, padded: bool) -> torch.Tensor:
        mask = attention_mask[index, :length] if padded else None
        segments = token_type_ids[index, :length] if token_type_ids is not None else None
        return fn(input_ids[index, :length], mask, segments, *(x[index] for x in row_inputs))

    split = sent["order"].split([len(rows) for rows, _, _ in chunks])
    encoded = [run(index, length, padded) for index, (_, length, padded) in zip(split, chunks, strict=True)]
    return torch.cat(encoded)[sent["back"]]


def ragged_tokens(
    fn: Callable[..., torch.Tensor],
    wanted: torch.Tensor | np.ndarray,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor | None,
    token_type_ids: torch.Tensor | None = None,
    max_tokens_per_chunk: int | None = None,
    lengths: RowLengths | None = None,
) -> torch.Tensor:
    """
    Like [`ragged_apply`] for a function with a result per token, of which only some are wanted.

    Args:
        fn (`Callable`):
            Called as `fn(input_ids, attention_mask, token_type_ids)` on some rows, cut to their longest; returns a
            tensor of shape `(rows, length, ...)` whose rows depend on no other row and on no padding. The mask is
            `None` where none of the rows has padding.
        wanted (`torch.BoolTensor` or `np.ndarray` of shape `(N, L)`):
            The tokens to return. Rows without any are not computed.
        input_ids (`torch.LongTensor` of shape `(N, L)`): Token ids, padded on the right.
        attention_mask (`torch.Tensor` of shape `(N, L)`, *optional*): 1 at tokens, 0 at padding.
        token_type_ids (`torch.LongTensor` of shape `(N, L)`, *optional*): Segments, or `None`, which is handed on.
        max_tokens_per_chunk (`int`, *optional*): Largest chunk in tokens, padding included.
        lengths ([`~host_facts.RowLengths`], *optional*): Of the rows, where the host knows them.

    Returns:
        `torch.Tensor` of shape `(T, ...)`: The wanted results, by row, then by position.

    Raises:
        `ValueError`: nothing is wanted, so that the shape of a result is unknown.
    """
    wanted = on_host(wanted)
    needed = np.flatnonzero(wanted.any(axis=1))
    if not len(needed):
        raise ValueError("`wanted` is False everywhere: leave the call out where there is nothing to encode.")
    if attention_mask is None:
        attention_mask = torch.ones_like(input_ids)
    lengths = (RowLengths.of(attention_mask) if lengths is None else lengths)[needed]
    ends = np.maximum(lengths.ends, RowLengths.of(wanted[needed]).ends)
    chunks = [
        (needed[some], length, padded)
        for some, length, padded in _row_chunks(
            RowLengths(ends, lengths.tokens), input_ids.device, max_tokens_per_chunk
        )
    ]
    # Of each chunk its wanted tokens, counted within the chunk and within the whole.
    chosen = [np.flatnonzero(wanted[rows, :length]) for rows, length, _ in chunks]
    places = [
        rows[at // length] * wanted.shape[1] + at % length
        for at, (rows, length, _) in zip(chosen, chunks, strict=True)
    ]
    arrays = {"rows": np.concatenate([rows for rows, _, _ in chunks]), "chosen": np.concatenate(chosen)}
    sent = to_device({**arrays, "back": np.concatenate(places).argsort()}, input_ids.device)
    parts = []
    for rows, at, (_, length, padded) in zip(
        sent["rows"].split([len(rows) for rows, _, _ in chunks]),
        sent["chosen"].split([len(at) for at in chosen]),
        chunks,
        strict=True,
    ):
        mask = attention_mask[rows, :length] if padded else None
        segments = token_type_ids[rows, :length] if token_type_ids is not None else None
        parts.append(fn(input_ids[rows, :length], mask, segments).flatten(0, 1)[at])
    return torch.cat(parts)[sent["back"]]


__all__ = ["chunks_are_equal", "divide_chunks", "equal_chunks", "plan_chunks", "ragged_apply", "ragged_tokens"]
