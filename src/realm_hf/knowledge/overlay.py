"""Edits beside an immutable corpus: a few passages in memory, searched exactly, and the rows that no longer count.

The base index and its embeddings stay mapped and untouched, so an edit costs what the edited passages cost, whatever
the size of the corpus. Every edit makes a new [`Overlay`]; a search that runs in another thread keeps the one it began
with.

Rows of the base that were replaced or removed are searched past: a little more is asked for, and again four times as
much where that is not enough. FAISS's own filter (`IDSelectorNot`) was rejected: it takes an exact index away from
BLAS (200,000 x 128, one thread, 64 queries: 1,900 ms against 150 ms), and its parameters replace `nprobe` and
`efSearch`, for every family of indexes by another class.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from realm_hf.data.passages.in_memory import PassageRecord
from realm_hf.index.asking import deepening, rank_deeper
from realm_hf.index.base import ABSENT, Embeddings, SearchIndex
from realm_hf.index.exact import ExactIndex
from realm_hf.index.ranking import RankingIndex

__all__ = ["EditedEmbeddings", "EditedIndex", "Overlay"]

_SLACK = 16


@dataclass(frozen=True, eq=False)
class Overlay:
    """
    What differs from the base.

    Args:
        base_rows (`int`): Passages of the base, rows 0 to `base_rows - 1`.
        row_count (`int`): Rows that were ever given out; those from `base_rows` on were added.
        records (`Mapping[int, PassageRecord]`): Row -> passage, for replaced and added rows. Removed ones may stay in
            it: whoever still holds their number can read them.
        vectors (`Mapping[int, np.ndarray]`): Row -> embedding `[D]`, for the same rows.
        removed (`frozenset[int]`): Rows that are never found again.
        edits (`int`): How many calls made it.
    """

    base_rows: int
    row_count: int
    records: Mapping[int, PassageRecord]
    vectors: Mapping[int, np.ndarray]
    removed: frozenset[int]
    edits: int

    @cached_property
    def numbers(self) -> np.ndarray:
        """Rows with a passage of their own here, int64 `[M]`, ascending."""
        return np.array(sorted(self.records), np.int64)

    @cached_property
    def superseded(self) -> np.ndarray:
        """Rows of the base that its index must not return, int64, ascending."""
        rows = {*self.records, *self.removed}
        return np.array(sorted(row for row in rows if row < self.base_rows), np.int64)

    @cached_property
    def live_rows(self) -> np.ndarray:
        """Rows that can be found, int64, ascending: row `i` of a saved copy is row `live_rows[i]` of this one."""
        return np.delete(np.arange(self.row_count), sorted(self.removed))

    @property
    def live_count(self) -> int:
        """How many those are."""
        return self.row_count - len(self.removed)

    def positions(self, rows: np.ndarray) -> np.ndarray:
        """Place of each of `rows` in [`numbers`], -1 where the base has the passage; int64, the shape of `rows`."""
        if not len(self.numbers):
            return np.full(np.shape(rows), -1, np.int64)
        place = np.minimum(np.searchsorted(self.numbers, rows), len(self.numbers) - 1)
        return np.where(self.numbers[place] == rows, place, -1)

    def with_passages(
        self, rows: Iterable[int], records: Iterable[PassageRecord], vectors: Iterable[np.ndarray]
    ) -> Overlay:
        """A new overlay with these passages at these rows; rows from `row_count` on are added."""
        rows = list(rows)
        return Overlay(
            self.base_rows,
            max([self.row_count, *(row + 1 for row in rows)]),
            {**self.records, **dict(zip(rows, records, strict=True))},
            {**self.vectors, **dict(zip(rows, vectors, strict=True))},
            self.removed,
            self.edits + 1,
        )

    def without(self, rows: Iterable[int]) -> Overlay:
        """A new overlay that finds these rows no more."""
        removed = self.removed | set(rows)
        return Overlay(self.base_rows, self.row_count, self.records, self.vectors, removed, self.edits + 1)


class EditedIndex(RankingIndex):
    """
    A base index with an overlay.

    Scores of passages in the overlay are exact. Beside an index that compresses, whose scores are not, they may rank a
    little higher or lower than once they are in it themselves.

    Args:
        base ([`SearchIndex`]): Over the base's rows.
        overlay ([`Overlay`]): What differs.
    """

    def __init__(self, base: SearchIndex, overlay: Overlay):
        self.base, self.overlay = base, overlay
        self._live = np.array([row for row in overlay.numbers.tolist() if row not in overlay.removed], np.int64)
        vectors = [np.asarray(overlay.vectors[row], np.float32) for row in self._live.tolist()]
        self._fresh = ExactIndex(np.stack(vectors) if vectors else np.empty((0, base.dimension), np.float32))

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""
        return self.base.dimension

    def __len__(self) -> int:
        """Row numbers are below it; those of removed passages are never found."""
        return self.overlay.row_count

    def rank(self, queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """As [`RankingIndex.rank`]: rows that were not removed, those of the overlay among the base's."""
        scores, rows = self._rank_base(queries, depth)
        if not len(self._live):
            return scores, rows
        fresh = self._fresh.search(queries, min(depth, len(self._live)))
        scores = np.concatenate([scores, fresh.scores], axis=1)
        rows = np.concatenate([rows, self._live[fresh.rows]], axis=1)
        # Stable, and -inf where there is no row: those stay last.
        best = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
        return np.take_along_axis(scores, best, 1), np.take_along_axis(rows, best, 1)

    def _rank_base(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """The base's ranking without the rows that the overlay supersedes."""
        scores = np.full((len(queries), k), -np.inf, np.float32)
        rows = np.full((len(queries), k), ABSENT, np.int64)
        superseded = self.overlay.superseded

        def ranked(queries: np.ndarray, depth: int) -> tuple[np.ndarray, np.ndarray]:
            found = self.base.search(queries, depth)
            return found.scores, found.rows

        def take(part: np.ndarray, found_scores: np.ndarray, found: np.ndarray) -> np.ndarray:
            live = (found >= 0) & ~np.isin(found, superseded)
            order = np.argsort(~live, axis=1, kind="stable")[:, :k]  # the live ones first, in their order
            kept = np.take_along_axis(live, order, 1)
            width = order.shape[1]
            rows[part, :width] = np.where(kept, np.take_along_axis(found, order, 1), ABSENT)
            scores[part, :width] = np.where(kept, np.take_along_axis(found_scores, order, 1), -np.inf)
            exhausted = (found < 0).any(axis=1)
            return part[(live.sum(axis=1) < k) & ~exhausted]

        enough = min(k + len(superseded), len(self.base))
        rank_deeper(ranked, queries, deepening(k + min(len(superseded), _SLACK), enough), take)
        return scores, rows


class EditedEmbeddings:
    """
    Embeddings of all rows, the edited ones in their places; indexed like the array `[N, D]` that it stands for.

    Args:
        base (`np.ndarray` of shape `[base_rows, D]`): May be memory-mapped; it is not copied.
        overlay ([`Overlay`]): What differs.
        rows (`np.ndarray`, int64 `[n]`, *optional*): Stand for these rows only, in this order; for all by default. A
            removed row has what it had.
    """

    def __init__(self, base: Embeddings, overlay: Overlay, rows: np.ndarray | None = None):
        self.base, self.overlay = base, overlay
        self.rows = rows
        self.dtype = base.dtype
        self.shape = (overlay.row_count if rows is None else len(rows), base.shape[1])
        self.ndim = 2

    @property
    def nbytes(self) -> int:
        """Bytes of the array that this stands for."""
        return self.shape[0] * self.shape[1] * self.dtype.itemsize

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: slice | np.ndarray) -> np.ndarray:
        """A copy, of the base's type."""
        rows = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index, np.int64)
        if self.rows is not None:
            rows = self.rows[rows]
        places = self.overlay.positions(rows)
        in_base = places < 0
        gathered = np.empty((*np.shape(rows), self.shape[1]), self.dtype)
        gathered[in_base] = self.base[rows[in_base]]
        for row in np.unique(rows[~in_base]).tolist():
            gathered[rows == row] = self.overlay.vectors[row]
        return gathered

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(self.dtype if dtype is None else dtype, copy=False)
