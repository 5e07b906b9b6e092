"""Rows held in memory and searched exactly by matrix products, block by block; ties go to the lower row.

A score and its row are one whole number, a key: the larger key is the better one, on every device and on every rank
alike. So rankings are sorted, merged and sent as keys, and what is found does not depend on how rows are spread.
`torch.topk` over scores was rejected: which of equal scores it returns is not defined, and copies of a passage have
equal scores.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from realm_hf.index.base import ABSENT, Embeddings

__all__ = ["NO_KEY", "HeldRows", "best_keys", "read_keys"]

NO_KEY = -(1 << 63)
"""The key of no row: smaller than all others."""

_LOW = (1 << 32) - 1  # a row's half of its key; rows are counted down from it, so that the lower one is the better
_SIGN = (1 << 31) - 1
_ROWS_A_COPY = 65_536
_LEAST_ROWS_A_BLOCK = 1024
_ROWS_OF_FIRST_BLOCK = 4096
# Most scores and most rows of a block: a processor's caches hold both in part, and it converts a block's rows to
# float32, which must not become a copy of all; a GPU is kept busy by fewer, larger blocks.
_CELLS_A_BLOCK = {"cpu": 1 << 21, "cuda": 1 << 25}
_ROWS_A_BLOCK = {"cpu": 1 << 14, "cuda": 1 << 20}
_LOW_HALF = 2.0**11  # float16 keeps 11 bits


class HeldRows:
    """
    Some rows of the embeddings, copied to a device in the type in which they are stored.

    Args:
        embeddings (array of shape `[N, D]`, float16 or float32): May be memory-mapped; read piece by piece.
        rows (`slice`): Which rows; they keep their numbers.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where they are held and searched.
    """

    def __init__(self, embeddings: Embeddings, rows: slice, device: str | torch.device = "cpu"):
        self.first, stop, _ = rows.indices(len(embeddings))
        kind = torch.float16 if embeddings.dtype == np.float16 else torch.float32
        size = (max(0, stop - self.first), int(embeddings.shape[1]))
        self.vectors = torch.empty(size, dtype=kind, device=device)
        for start in range(0, len(self.vectors), _ROWS_A_COPY):
            piece = self.vectors[start : start + _ROWS_A_COPY]
            # np.array copies: a map is read-only, which tensors cannot be.
            stored = np.array(embeddings[self.first + start : self.first + start + len(piece)])
            piece.copy_(torch.from_numpy(stored))

    def __len__(self) -> int:
        return len(self.vectors)

    def best(self, queries: np.ndarray, depth: int) -> np.ndarray:
        """
        The best of the rows that are held.

        Args:
            queries (`np.ndarray` of shape `[Q, D]`, float32): Finite.
            depth (`int`): How many rows; may exceed those that are held.

        Returns:
            `np.ndarray`: int64 keys `[Q, min(depth, rows held)]`, best first.
        """
        depth = min(depth, len(self))
        device = self.vectors.device
        best = torch.full((len(queries), depth), NO_KEY, dtype=torch.int64, device=device)
        if not best.numel():
            return best.cpu().numpy()
        prepared = _Queries(queries, self.vectors)
        floor = torch.full((len(queries), 1), -torch.inf, device=device)
        # What surrounds a search must not make its products those of bfloat16.
        with torch.inference_mode(), torch.autocast(device.type, enabled=False), _full_precision():
            for start, stop in self._blocks(len(queries), depth):
                better = self._better(prepared.scores(self.vectors[start:stop]), floor, start)
                if better is None:
                    continue
                best = torch.cat([best, better], dim=1).topk(depth, dim=1).values
                floor = torch.where(best[:, -1:] == NO_KEY, -torch.inf, _scores(best[:, -1:]))
        return best.cpu().numpy()

    def _blocks(self, queries: int, depth: int) -> Iterator[tuple[int, int]]:
        """The first block is a small one: after it few rows of the others are good enough to be looked at."""
        device = "cuda" if self.vectors.device.type == "cuda" else "cpu"
        rows = max(min(_CELLS_A_BLOCK[device] // queries, _ROWS_A_BLOCK[device]), _LEAST_ROWS_A_BLOCK)
        # What was found so far is sorted again with each block: not often where that is much.
        rows = max(rows, depth // 4)
        start, stop = 0, min(rows, _ROWS_OF_FIRST_BLOCK)
        while start < len(self):
            yield start, min(stop, len(self))
            start, stop = stop, stop + rows

    def _better(self, scores: torch.Tensor, floor: torch.Tensor, start: int) -> torch.Tensor | None:
        """
        Keys of the rows of a block that are better than a query's worst so far, `[Q, most of one query]`.

        Args:
            scores (`torch.Tensor` of shape `(Q, block)`, float32): Of the block's rows.
            floor (`torch.Tensor` of shape `(Q, 1)`): The worst score so far. A later row of that score loses to it.
            start (`int`): The block's first row among those that are held.
        """
        is_better = scores > floor
        counts = is_better.sum(dim=1)
        most = int(counts.max())
        if not most:
            return None
        first = self.first + start
        if most == scores.shape[1]:
            return _keys(scores, torch.arange(first, first + most, device=scores.device))
        query, place = is_better.nonzero(as_tuple=True)
        column = torch.arange(len(query), device=query.device) - (counts.cumsum(0) - counts)[query]
        better = torch.full((len(scores), most), NO_KEY, dtype=torch.int64, device=scores.device)
        better[query, column] = _keys(scores[query, place], first + place)
        return better


class _Queries:
    """
    Queries as the rows' device multiplies them.

    A GPU multiplies float16 by float16 with float32 sums. A query is not rounded for that: it is written as two
    float16 parts, the second of which holds what the first has lost, and the scores of both are added.

    Args:
        queries (`np.ndarray` of shape `[Q, D]`, float32): The queries.
        rows (`torch.Tensor`): What they will be multiplied with.
    """

    def __init__(self, queries: np.ndarray, rows: torch.Tensor):
        given = torch.from_numpy(np.ascontiguousarray(queries, np.float32)).to(rows.device)
        self.in_halves = rows.dtype == torch.float16 and rows.device.type == "cuda"
        self.parts, self.scale = halves(given) if self.in_halves else (given, torch.ones(1, device=rows.device))

    def scores(self, block: torch.Tensor) -> torch.Tensor:
        """Inner products, float32 `(Q, block)`."""
        if not self.in_halves:
            return torch.mm(self.parts, block.float().T)
        return joined(torch.mm(self.parts, block.T, out_dtype=torch.float32), self.scale)


def halves(queries: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Queries in two float16 parts each.

    Args:
        queries (`torch.Tensor` of shape `(Q, D)`, float32): The queries.

    Returns:
        `tuple` of the parts, float16 `(2 Q, D)`, the upper ones first, and of what scores are multiplied with,
        `(Q, 1)`: each query is divided by a power of two first, so that none is too large for float16.
    """
    scale = torch.exp2(torch.frexp(queries.abs().amax(dim=1, keepdim=True)).exponent.float())
    scaled = queries / scale
    upper = scaled.half()
    lower = ((scaled - upper.float()) * _LOW_HALF).half()
    return torch.cat([upper, lower]), scale


def joined(scores: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The scores of both parts, float32 `(2 Q, n)`, as those of the queries, `(Q, n)`."""
    upper, lower = scores.chunk(2)
    return (upper + lower / _LOW_HALF) * scale


@contextmanager
def _full_precision() -> Iterator[None]:
    """Multiply float32 as float32: with "high" or "medium" a device may take tf32 or bfloat16. For the whole process,
    so a search is made where no other thread computes with gradient: on the main one.
    """
    before = torch.get_float32_matmul_precision()
    if before != "highest":
        torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        if before != "highest":
            torch.set_float32_matmul_precision(before)


def _keys(scores: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The bits of a float are in the order of its size, but for the sign: of negative ones all others are turned."""
    bits = (scores + 0.0).view(torch.int32)  # -0.0 becomes 0.0
    ordered = bits ^ ((bits >> 31) & _SIGN)
    return (ordered.long() << 32) | (_LOW - rows)


def _scores(keys: torch.Tensor) -> torch.Tensor:
    ordered = (keys >> 32).int()
    return (ordered ^ ((ordered >> 31) & _SIGN)).view(torch.float32)


def read_keys(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Scores and rows.

    Args:
        keys (`np.ndarray`, int64): Of any shape.

    Returns:
        `tuple` of scores float32 and rows int64 of that shape; `-inf` and [`ABSENT`] for [`NO_KEY`].
    """
    ordered = (keys >> 32).astype(np.int32)
    scores = (ordered ^ ((ordered >> 31) & np.int32(_SIGN))).view(np.float32)
    none = keys == NO_KEY
    return np.where(none, np.float32(-np.inf), scores), np.where(none, ABSENT, _LOW - (keys & _LOW))


def best_keys(keys: np.ndarray, depth: int) -> np.ndarray:
    """The `depth` largest of each query's keys `[Q, n]`, best first; all if there are fewer."""
    return np.sort(keys, axis=1)[:, ::-1][:, :depth]
