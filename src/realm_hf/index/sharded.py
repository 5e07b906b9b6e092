"""Exact search by all ranks of a job together: each holds a part of the rows.

    ranks say how many queries they have and how deep they want them ranked    one small gather
    all queries go to all ranks                                                one gather
    each rank ranks its own rows for them                                      matrix products
    each rank sends what it found to those that asked, who merge it            one exchange

A search is a collective call: every rank makes it at the same point, one without queries too. What a query does not
want is left out by the rank that asked it, which then asks deeper where too little is left; the others rank for it,
and so the ranks meet as often as the one that asks the most. What a rank finds does not depend on the others' queries.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch

from realm_hf.index.asking import CELLS_A_SEARCH, Asking, ask_excluding, ask_plain, nothing_found
from realm_hf.index.base import Embeddings, Exclusion, Found
from realm_hf.index.exact import ExactIndex
from realm_hf.index.held_rows import NO_KEY, HeldRows, best_keys, read_keys
from realm_hf.index.ranking import check_queries

__all__ = ["OneRank", "RankExchange", "ShardedIndex", "ShardedSearchError"]


class ShardedSearchError(RuntimeError):
    """Another rank could not make the search that all make together."""


class RankExchange(Protocol):
    """What ranks send each other in a search; both are collective calls."""

    @property
    def rank(self) -> int:
        """This rank, from 0."""

    @property
    def world_size(self) -> int:
        """W, the number of ranks."""

    def gather(self, own: np.ndarray) -> np.ndarray:
        """What each rank gave, `[W, ...]`: arrays of one shape and type."""

    def deal(self, parts: np.ndarray) -> np.ndarray:
        """Send `parts[r]` to rank `r`; returns what each rank sent to this one, `[W, ...]`."""


class OneRank:
    """The exchange of a job of one rank."""

    rank, world_size = 0, 1

    def gather(self, own: np.ndarray) -> np.ndarray:
        """As [`RankExchange.gather`]."""
        return own[None]

    def deal(self, parts: np.ndarray) -> np.ndarray:
        """As [`RankExchange.deal`]."""
        return parts


class ShardedIndex:
    """
    A [`~realm_hf.index.base.SearchIndex`], exact, whose rows are spread over the ranks of a job.

    Args:
        embeddings (array of shape `[N, D]`): Of all rows, the same on every rank; may be memory-mapped.
        ranks ([`RankExchange`], *optional*): Those of the job; by default this process alone.
        rows (`slice`, *optional*): What this rank holds: of all ranks in their order they cover all rows, and none
            holds more than N / W, rounded up. All rows by default.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where they are held and searched.
    """

    def __init__(
        self,
        embeddings: Embeddings,
        ranks: RankExchange | None = None,
        *,
        rows: slice = slice(None),
        device: str | torch.device = "cpu",
    ):
        self.embeddings, self.ranks = embeddings, ranks or OneRank()
        self.held = HeldRows(embeddings, rows, device)
        self._widest = -(-len(embeddings) // self.ranks.world_size)
        if len(self.held) > self._widest:
            raise ValueError(
                f"Rank {self.ranks.rank} of {self.ranks.world_size} would hold {len(self.held)} of {len(embeddings)} "
                f"rows: at most {self._widest} are its share."
            )

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""
        return int(self.embeddings.shape[1])

    def __len__(self) -> int:
        return len(self.embeddings)

    def alone(self) -> ExactIndex:
        """As [`~realm_hf.index.base.Collective.alone`]: over the stored embeddings, piece by piece."""
        return ExactIndex(self.embeddings)

    def search(self, queries: np.ndarray, k: int, *, exclude: Exclusion | None = None) -> Found:
        """
        As [`~realm_hf.index.base.SearchIndex`]'s, on every rank at the same point, each with queries of its own.

        Raises:
            ValueError: If shapes do not fit or a query holds NaN or infinity; on that rank.
            ShardedSearchError: On the others, which would wait for it for ever.
        """
        queries = np.ascontiguousarray(queries, np.float32)
        own = _Asker(self._asking(queries, k, exclude))
        while self._round(own, queries):
            pass
        assert own.found is not None
        return own.found

    def _asking(self, queries: np.ndarray, k: int, exclude: Exclusion | None) -> Asking[Found]:
        check_queries(queries, k, self.dimension)
        count, size, cells = len(queries), len(self), CELLS_A_SEARCH // self.ranks.world_size
        if not size:
            return nothing_found(count, k)
        if exclude is None:
            return (yield from ask_plain(count, k, size, cells=cells))
        return (yield from ask_excluding(count, k, size, exclude, cells=cells))

    def _round(self, own: _Asker, queries: np.ndarray) -> bool:
        """Rank once what the ranks ask for; false when none asks for anything any more."""
        counts, depths, failed = self.ranks.gather(np.array([len(own.places), own.depth, own.error is not None])).T
        own.require_all_well(failed)
        if not counts.any():
            return False
        served = _served(counts, depths)
        depth = int(depths[served].max())
        asks = bool(served[self.ranks.rank])
        sent = np.zeros((counts[served].max(), self.dimension), np.float32)
        if asks:
            sent[: len(own.places)] = queries[own.places]
        found = self.ranks.deal(self._ranked(self.ranks.gather(sent), np.where(served, counts, 0), depth))
        if asks:
            keys = np.concatenate(list(found[:, : len(own.places)]), axis=1)
            own.go_on(read_keys(best_keys(keys, own.depth)))
        return True

    def _ranked(self, queries: np.ndarray, counts: np.ndarray, depth: int) -> np.ndarray:
        """
        Keys of the best rows that this rank holds.

        Args:
            queries (`np.ndarray`, float32 `[W, n, D]`): Of all ranks, filled up with zeros.
            counts (`np.ndarray`, int `[W]`): How many there are of each.
            depth (`int`): How many rows.

        Returns:
            `np.ndarray`: int64 `[W, n, depth or the largest share]`; [`NO_KEY`] where there is no query or no row.
        """
        there = np.arange(queries.shape[1]) < counts[:, None]
        keys = np.full((*there.shape, min(depth, self._widest)), NO_KEY)
        found = self.held.best(queries[there], depth)
        keys[there, : found.shape[1]] = found
        return keys


def _served(counts: np.ndarray, depths: np.ndarray) -> np.ndarray:
    """
    Whose queries are ranked next, bool `[W]`: all, as deep as the deepest asks for, unless that came to more than is
    ranked at once; then those that ask the least deep. Every rank comes to the same.
    """
    asking = counts > 0
    if len(counts) * int(counts.max()) * int(depths[asking].max()) <= CELLS_A_SEARCH:
        return asking
    return asking & (depths == depths[asking].min())


class _Asker:
    """
    This rank's search, as far as it has come: what it asks for next, what it found, or what it failed with.

    Args:
        asking (`Asking`): The search.
    """

    def __init__(self, asking: Asking[Found]):
        self.places, self.depth = np.zeros(0, np.int64), 0
        self.found: Found | None = None
        self.error: Exception | None = None
        self._asking = asking
        self.go_on(None)

    def go_on(self, ranking: tuple[np.ndarray, np.ndarray] | None) -> None:
        """Hand over the ranking that was asked for; none at first."""
        places, self.depth = self.places[:0], 0
        try:
            places, self.depth = next(self._asking) if ranking is None else self._asking.send(ranking)
        except StopIteration as end:
            self.found = end.value
        except Exception as error:  # noqa: BLE001 - raised below, when the other ranks know of it
            self.error = error
        self.places = places

    def require_all_well(self, failed: np.ndarray) -> None:
        """Raise what this rank failed with, or that another one did (`failed`, `[W]`)."""
        if self.error is not None:
            raise self.error
        if failed.any():
            raise ShardedSearchError(
                f"Rank {int(failed.argmax())} could not search with the others; its own output says why. Mend that, "
                "and resume from the newest checkpoint."
            )
