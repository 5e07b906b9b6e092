"""What an index is to the rest of the package: [`SearchIndex`], and what some indexes can do beside searching.

Whoever searches asks once for `k` rows and says which rows it does not want ([`Exclusion`]); the index answers with
what is left, and searches deeper by itself where that takes it. The other way round, a caller that asks again until it
has enough, was rejected: an index whose rows are spread over the ranks of a run can be searched by all of them
together only, so that the number of searches must not depend on what one rank's queries find. Behind this protocol
each shard leaves out what is not wanted among its own rows and gives its best `k`; of the best `k` of all shards, by
score and each text once, nothing is missing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np

__all__ = [
    "ABSENT",
    "Collective",
    "Embeddings",
    "Exclusion",
    "Extendable",
    "Found",
    "IndexFileError",
    "Saveable",
    "SearchIndex",
    "extendable",
    "saveable",
]

ABSENT = -2
"""The row number that says "nothing found"; -1 is the null passage everywhere in this package."""


class IndexFileError(RuntimeError):
    """A `.faiss` file cannot be what it is said to be; the message says in which respect."""


@dataclass(frozen=True)
class Found:
    """
    What a search found for Q queries.

    Args:
        scores (`np.ndarray`, float32 `[Q, k]`): Inner products, best first; `-inf` where there was nothing more.
        rows (`np.ndarray`, int64 `[Q, k]`): Their rows; [`ABSENT`] where there was nothing more.
        excluded (`np.ndarray`, int64 `[Q]`): Unwanted rows left out, ranked before the last one kept.
        duplicates (`np.ndarray`, int64 `[Q]`): Rows left out because a better ranked one has the same text, likewise.
        searched_deeper (`int`): Queries for which [`Exclusion.over_retrieve`] was not enough.
    """

    scores: np.ndarray
    rows: np.ndarray
    excluded: np.ndarray
    duplicates: np.ndarray
    searched_deeper: int = 0


class Embeddings(Protocol):
    """N stored vectors, read piece by piece: an array `[N, D]`, or what stands for one and gathers its rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """`(N, D)`."""

    @property
    def dtype(self) -> np.dtype:
        """Of the numbers: float32 or float16."""

    @property
    def ndim(self) -> int:
        """2."""

    @property
    def nbytes(self) -> int:
        """Bytes of the whole array."""

    def __len__(self) -> int:
        """N."""

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        """Rows, by a slice or by their numbers, as an array."""


class Exclusion(Protocol):
    """
    Which rows the Q queries of one search do not want: those with a certain content, and repetitions.

    What it says of a row depends on that row and the query only, so an index may ask it again for a deeper search, and
    a shard for the rows that it holds.
    """

    @property
    def over_retrieve(self) -> int:
        """Rows beyond those wanted that a first search takes where something is to be left out."""

    @property
    def filtered(self) -> np.ndarray:
        """Bool `[Q]`: for which queries [`unwanted`] can be true; for the others only repetitions are left out."""

    def unwanted(self, query: int, rows: np.ndarray) -> np.ndarray:
        """
        Args:
            query (`int`): Its place among the Q queries.
            rows (`np.ndarray`, int64 `[R]`): Rows; negative ones are never unwanted.

        Returns:
            `np.ndarray`: bool `[R]`.
        """

    def groups(self, rows: np.ndarray) -> np.ndarray:
        """
        Args:
            rows (`np.ndarray`, int64 `[R]`): Rows.

        Returns:
            `np.ndarray`: int `[R]`, equal among these rows where texts are the same: the best ranked one is kept.
                Any number where a row is negative.
        """


@runtime_checkable
class SearchIndex(Protocol):
    """
    Finds the rows of N vectors that have the largest inner products with a query; row `i` is passage `i`.

    An index that can rank its rows becomes one by [`~realm_hf.index.ranking.RankingIndex`], which does the rest.
    """

    @property
    def dimension(self) -> int:
        """D, the length of a vector."""

    def __len__(self) -> int:
        """N: row numbers are below it."""

    def search(self, queries: np.ndarray, k: int, *, exclude: Exclusion | None = None) -> Found:
        """
        The `k` best rows of each query that it wants.

        Args:
            queries (`np.ndarray` of shape `[Q, D]`): The queries, of any float type.
            k (`int`): How many rows; may exceed the index.
            exclude ([`Exclusion`], *optional*): What is left out, by the index; nothing by default.

        Returns:
            [`Found`]

        Raises:
            ValueError: If shapes do not fit or a query holds NaN or infinity.
        """


@runtime_checkable
class Extendable(SearchIndex, Protocol):
    """An index that takes further vectors: an edited retriever is saved into a new one of its kind."""

    def emptied(self) -> Self:
        """A new index of the same kind without rows, with this one's centroids, codebooks and search parameters."""

    def add(self, embeddings: np.ndarray) -> None:
        """Add vectors `[n, D]` as the next rows."""


@runtime_checkable
class Saveable(SearchIndex, Protocol):
    """An index that can be written as a file which [`~realm_hf.index.file.open_index`] opens."""

    @property
    def kind(self) -> str:
        """The FAISS class of what is written: `"IndexFlatIP"`."""

    def write(self, write: Callable[[bytes], Any]) -> None:
        """Hand the file to `write`, piece by piece; its exceptions come through."""


@runtime_checkable
class Collective(SearchIndex, Protocol):
    """
    An index whose search all ranks of a job make together: each at the same point, one without queries too, and on its
    main thread only.
    """

    def alone(self) -> SearchIndex:
        """The same rows for a search of one rank's own, in any thread. It is slower."""


def extendable(index: SearchIndex) -> Extendable:
    """The index, if rows can be added to its kind; else a `ValueError`."""
    if not isinstance(index, Extendable):
        raise ValueError(
            f"No rows can be added to an index of type {type(index).__name__}: it has no `emptied` and `add` (see "
            "`realm_hf.index.base.Extendable`). Build one with `build_index`."
        )
    return index


def saveable(index: SearchIndex) -> Saveable:
    """The index, if it can be written as a file; else a `ValueError`."""
    if not isinstance(index, Saveable):
        raise ValueError(
            f"An index of type {type(index).__name__} cannot be saved: it has no `kind` and `write` (see "
            "`realm_hf.index.base.Saveable`). Build one with `build_index` from the embeddings."
        )
    return index
