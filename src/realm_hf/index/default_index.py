"""`"auto"`: the index for a corpus of a given size, and the recall that it keeps.

Up to 100,000 passages the exact index is the right one: a search takes milliseconds, beside a training step of
seconds, and there is nothing to train. Beyond, lists (IVF) over half-precision vectors: about as fast as lists of
float32 in half the memory, and within rounding of exact in what they score. Two others were rejected: a graph (HNSW)
takes half as long again to build, at every refresh, and found half of the exact best 5 among a million; byte codes
(SQ8) lose about one neighbour in a hundred before a single list is left out. docs/results/indexes.md has the
measurements.
"""

from __future__ import annotations

from dataclasses import dataclass

import faiss
import numpy as np
from transformers.utils import logging

from realm_hf.index.exact import exact_search, share_found

__all__ = [
    "AUTO",
    "AUTO_RECALL",
    "EXACT_SHARDED",
    "FLAT_ROWS",
    "RECALL_DEPTH",
    "IndexPlan",
    "SearchDevices",
    "plan_index",
    "reach_recall",
]

logger = logging.get_logger(__name__)

AUTO = "auto"
EXACT_SHARDED = "exact-sharded"
"""No index is built: the ranks of a training search the embeddings themselves, each a share of the rows."""

AUTO_RECALL = 0.97
"""Share of the exact best 5 that the index of "auto" finds, on a sample of the passages taken as queries."""

FLAT_ROWS = 100_000
RECALL_DEPTH = 5
_PROBES = 256
_LEAST_GAIN = 0.003  # of twice as many lists, about four of the 1,280 neighbours
_MOST_LISTS = 16_384
_TRAINING_ROWS_A_LIST = 64  # FAISS takes up to 256 and warns below 39; what is lost is searched in more lists


@dataclass(frozen=True)
class SearchDevices:
    """
    The accelerators that could hold the rows of an exact index.

    Args:
        ranks (`int`): How many there are.
        memory (`int`): Bytes of each, all in all.
        dimension (`int`): D.
    """

    ranks: int
    memory: int
    dimension: int

    def can_hold(self, rows: int) -> bool:
        """Whether a rank's share in float16, twice while a new one is swapped in, is under a tenth of its memory."""
        return 2 * -(-rows // self.ranks) * self.dimension * 2 < self.memory / 10


@dataclass(frozen=True)
class IndexPlan:
    """
    An index as it will be built.

    Args:
        factory (`str`): A FAISS factory string, or "exact-sharded"; never "auto".
        train_size (`int`, *optional*): Rows that train it; all by default.
        recall (`float`, *optional*): What [`reach_recall`] is to reach; `None` leaves the search as it is.
    """

    factory: str
    train_size: int | None = None
    recall: float | None = None


def plan_index(
    factory: str, rows: int, train_size: int | None = None, devices: SearchDevices | None = None
) -> IndexPlan:
    """
    What "auto" means for a corpus; every other factory is taken as it is.

    Args:
        factory (`str`): A FAISS factory string, or "auto".
        rows (`int`): Passages of the corpus.
        train_size (`int`, *optional*): As the caller asks for.
        devices ([`SearchDevices`], *optional*): Of the training that will search it, where it has accelerators.

    Returns:
        [`IndexPlan`]: For "auto": "Flat" up to 100,000 rows; beyond, "exact-sharded" where accelerators can hold the
        rows beside all else, and `IVFn,SQfp16` elsewhere with the power of two nearest to 4 √rows as n, at most
        16,384, and a recall of 0.97.
    """
    if factory != AUTO:
        return IndexPlan(factory, train_size)
    if rows <= FLAT_ROWS:
        return IndexPlan("Flat", train_size)
    if devices is not None and devices.can_hold(rows):
        return IndexPlan(EXACT_SHARDED)
    lists = min(_MOST_LISTS, 2 ** round(np.log2(4 * rows**0.5)))
    return IndexPlan(f"IVF{lists},SQfp16", train_size or _TRAINING_ROWS_A_LIST * lists, AUTO_RECALL)


def reach_recall(index: faiss.Index, embeddings: np.ndarray, recall: float, *, seed: int = 0) -> float:
    """
    Search more lists, twice as many each time, until enough of the exact best 5 is found; never fewer than before.

    The probes are passages between two passages (three parts of one, one part of another): a passage itself would
    find itself in the first list, and no questions are known where an index is built.

    Args:
        index (`faiss.Index`): Built from `embeddings`; one without lists is only measured.
        embeddings (`np.ndarray` of shape `[N, D]`): May be memory-mapped.
        recall (`float`): The share to reach, between 0 and 1.
        seed (`int`, *optional*, defaults to 0): Draws the probes.

    Returns:
        `float`: The share that is found now. If it stays below `recall` because more lists add next to nothing (the
            codes are too short), or because there are no more, a warning says so.
    """
    drawn = np.random.default_rng(seed).integers(len(embeddings), size=(2, min(_PROBES, len(embeddings))))
    one, other = (np.array([embeddings[row] for row in rows], dtype=np.float32) for rows in drawn)
    probes = 0.75 * one + 0.25 * other
    lists = faiss.try_extract_index_ivf(index)
    best, _ = exact_search(embeddings, probes, min(RECALL_DEPTH, len(embeddings)))
    found, before = share_found(embeddings, index, probes, best), -1.0
    while True:
        if found >= recall:
            return found
        if lists is None or lists.nprobe >= lists.nlist or found - before < _LEAST_GAIN:
            logger.warning(
                "The index finds %.3f of the exact best %d, and %.2f was to be reached: take a factory that "
                "compresses less, or 'Flat'.",
                found,
                RECALL_DEPTH,
                recall,
            )
            return found
        lists.nprobe = min(2 * lists.nprobe, lists.nlist)
        found, before = share_found(embeddings, index, probes, best), found
