"""Candidates that share words with the query: BM25 over the passages' own wordpieces.

A masked query is searched for without its masks: special tokens are no words, so that neither what stood under a mask
nor how long it was can change the ranking.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from datasets import Dataset

from realm_hf.data.passages.store import PassageStore
from realm_hf.index.base import ABSENT
from realm_hf.knowledge.bm25 import BM25Index, build_bm25
from realm_hf.knowledge.edited_corpus import EditedCorpus
from realm_hf.retriever.candidates import Queries, RankingSource

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from realm_hf.knowledge.corpus import Corpus
    from realm_hf.knowledge.knowledge import Knowledge
    from realm_hf.knowledge.overlay import Overlay

__all__ = ["BM25Source", "best_rows"]


class BM25Source(RankingSource):
    """
    Ranks passages by BM25; a passage without a word of the query is not found.

    Passages that were added or replaced are found by the words that they have now, weighed by the frequencies of the
    corpus as it was indexed; removed ones are not found. Saving the retriever indexes them anew.

    Args:
        index ([`BM25Index`]): Of the passages, without their edits.

    Example:
    ```python
    >>> retriever.candidate_source = BM25Source.build(passages, tokenizer)
    >>> retriever.search("Which sea is the saltiest?", k=5)
    ```
    """

    def __init__(self, index: BM25Index):
        self.index = index
        self._edited: tuple[Overlay, np.ndarray, BM25Index] | None = None

    @classmethod
    def build(
        cls,
        passages: PassageStore | Dataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        k1: float = 1.5,
        b: float = 0.75,
    ) -> Self:
        """
        Index passages: title and body, whole words joined from wordpieces, English stop words left out.

        Args:
            passages ([`PassageStore`] or `Dataset`): A store's wordpieces are read as they are; the texts of a
                dataset are tokenized once.
            tokenizer (`PreTrainedTokenizerBase`): Theirs.
            k1 (`float`, *optional*, defaults to 1.5): How fast a repeated word counts less.
            b (`float`, *optional*, defaults to 0.75): How much a long passage's words count less, 0 to 1.

        Raises:
            ValueError: If a number is out of range, or no passage holds a word.
        """
        return cls(build_bm25(passages, tokenizer, k1=k1, b=b))

    def save(self, directory: str | Path) -> None:
        """Write the index, from which [`load`] maps it; an `OSError` in words if the disk is full or read-only."""
        self.index.save(directory)

    @classmethod
    def load(cls, directory: str | Path, *, mmap: bool = True) -> Self:
        """
        Open what [`save`] wrote.

        Args:
            directory (`str` or `Path`): Where it is.
            mmap (`bool`, *optional*, defaults to `True`): Map the index instead of reading it.

        Raises:
            FileNotFoundError: If there is none.
            ValueError: If files are missing or cut.
        """
        return cls(BM25Index.open(directory, mmap=mmap))

    def rank(self, knowledge: Knowledge, queries: Queries, depth: int) -> tuple[np.ndarray, np.ndarray]:
        """As [`RankingSource.rank`]; equal scores in the order of the rows."""
        scores = np.full((len(queries), depth), -np.inf, np.float32)
        rows = np.full((len(queries), depth), ABSENT, np.int64)
        for place, found in enumerate(self._scored(knowledge, queries)):
            best = best_rows(found, depth)
            scores[place, : len(best)], rows[place, : len(best)] = found[best], best
        return scores, rows

    def scores(self, knowledge: Knowledge, queries: Queries, rows: np.ndarray) -> np.ndarray:
        """
        The BM25 scores of given passages.

        Args:
            knowledge ([`Knowledge`]): Passages as they are now.
            queries ([`Queries`]): B queries.
            rows (`np.ndarray`, int64 `[B, R]`): Passages; negative rows are none.

        Returns:
            `np.ndarray`: float32 `[B, R]`; 0 where no word is shared, and for no passage.
        """
        scores = np.zeros(rows.shape, np.float32)
        for place, found in enumerate(self._scored(knowledge, queries)):
            scores[place] = np.where(rows[place] < 0, 0.0, found[rows[place]])
        return scores

    def _scored(self, knowledge: Knowledge, queries: Queries) -> Iterator[np.ndarray]:
        """For each query the scores of all rows, float32 `[N]`."""
        terms = self.index.query_terms(queries.tokens())
        corpus = knowledge.corpus
        self._check(corpus)
        if not isinstance(corpus, EditedCorpus):
            yield from map(self.index.score, terms)
            return
        overlay, rows, edited = self._edited_part(corpus.overlay)
        added = np.zeros(overlay.row_count - overlay.base_rows, np.float32)
        for of_query in terms:
            scores = np.concatenate([self.index.score(of_query), added])
            scores[overlay.superseded] = 0
            scores[rows] = edited.score(of_query)
            yield scores

    def _check(self, corpus: Corpus) -> None:
        rows = corpus.overlay.base_rows if isinstance(corpus, EditedCorpus) else len(corpus)
        expected, found = corpus.fingerprint, self.index.passages_fingerprint
        if rows != len(self.index) or (expected is not None and found is not None and expected != found):
            raise ValueError(
                f"The BM25 index is of {len(self.index)} passages (fingerprint {found}), the retriever has {rows} "
                f"({expected}): build it from these passages with `BM25Source.build`."
            )

    def _edited_part(self, overlay: Overlay) -> tuple[Overlay, np.ndarray, BM25Index]:
        """The rows of an overlay that can be found, int64, and an index of their passages; kept until an edit."""
        part = self._edited  # another thread may put a new one in its place
        if part is None or part[0] is not overlay:
            rows = overlay.numbers[~np.isin(overlay.numbers, list(overlay.removed))]
            records = [overlay.records[row] for row in rows.tolist()]
            edited = self.index.like([record.title_ids for record in records], [record.body_ids for record in records])
            part = self._edited = overlay, rows, edited
        return part

    def __getstate__(self) -> dict[str, object]:
        return {"index": self.index, "_edited": None}


def best_rows(scores: np.ndarray, depth: int) -> np.ndarray:
    """
    The passages that a query finds.

    Args:
        scores (`np.ndarray`, float32 `[N]`): Of all passages, see [`BM25Index.score`].
        depth (`int`): At most so many.

    Returns:
        `np.ndarray`: int64, those with the best scores above 0, best first; equal ones in their order.
    """
    places = np.flatnonzero(scores > 0)
    found = scores[places]
    if depth < len(places):
        # numpy's partition took 1.4 s for a million scores, most of them equal, where this takes 2 ms.
        least = torch.topk(torch.from_numpy(found), depth).values[-1].item()
        places = places[found >= least]
        found = scores[places]
    return places[np.argsort(-found, kind="stable")][:depth]
