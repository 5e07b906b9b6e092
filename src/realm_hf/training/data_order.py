"""The order of the examples as a pure function: (seed, epoch, position) -> row.

A Feistel network over the next power of four, walked until it lands inside the corpus, permutes any number of rows in
constant memory. There is no state but a cursor, so that a resumed run, or one on another number of processes, goes on
with the very next example. Rejected: shuffling an index array (13 million rows on every rank, remade each epoch), and
samplers whose state is a position inside a worker's buffer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_ROUNDS = 8  # four make a pseudo-random permutation of a good round function; this one is a cheap hash


def _mix(value: np.ndarray, key: np.ndarray | int) -> np.ndarray:
    """splitmix64's finaliser over `value + key`, on uint64 arrays with wrap-around."""
    x = value + np.uint64(key)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def permute(positions: np.ndarray, size: int, seed: int, epoch: int) -> np.ndarray:
    """Row of each position in the permutation of `range(size)` that belongs to `(seed, epoch)`.

    Args:
        positions (`np.ndarray` of shape `[n]`, int64): Each in `range(size)`.
        size (`int`): Number of rows.
        seed (`int`): Of the run.
        epoch (`int`): Each pass over the rows has its own permutation.

    Returns:
        int64 `[n]`.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    shift, mask = np.uint64(half), np.uint64((1 << half) - 1)
    start = np.array([(seed << 32) ^ epoch], dtype=np.uint64)
    keys = [int(_mix(start, (0x9E3779B97F4A7C15 * (r + 1)) & (2**64 - 1))[0]) for r in range(_ROUNDS)]
    values = positions.astype(np.uint64)
    outside = np.ones(len(values), dtype=bool)
    while outside.any():
        left, right = values[outside] >> shift, values[outside] & mask
        for key in keys:
            left, right = right, left ^ (_mix(right, key) & mask)
        values[outside] = (left << shift) | right
        outside = values >= np.uint64(size)
    return values.astype(np.int64)


@dataclass(frozen=True)
class DataOrder:
    """An endless stream of examples; example `position` (from 0) is row `rows[i]` on its `epochs[i]`-th visit.

    Args:
        size (`int`): Number of rows.
        seed (`int`): Of the run.

    Raises:
        ValueError: there is no row to order.
    """

    size: int
    seed: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(
                "There are 0 examples to train on. Check the corpus, and what was skipped in building it."
            )

    def __call__(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`positions` int64 `[n]`, any non-negative -> `(rows, epochs)`, int64 `[n]` each."""
        epochs, inside = np.divmod(np.asarray(positions, dtype=np.int64), self.size)
        rows = np.empty_like(inside)
        for epoch in np.unique(epochs):
            here = epochs == epoch
            rows[here] = permute(inside[here], self.size, self.seed, int(epoch))
        return rows, epochs


def step_positions(cursor: int, batch: int, accumulation: int, rank: int, world_size: int) -> np.ndarray:
    """Stream positions that a rank trains on in the step that begins at `cursor`: `[accumulation, batch]`.

    Micro-batch `a` of rank `r` is slice `a * world_size + r`, so that one process with `accumulation * world_size`
    micro-batches sees the same slices in the same order as `world_size` processes.
    """
    slices = np.arange(accumulation, dtype=np.int64) * world_size + rank
    return cursor + slices[:, None] * batch + np.arange(batch, dtype=np.int64)
