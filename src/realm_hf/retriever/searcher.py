"""Queries in, passages out (sections 3.2 and 3.4), from knowledge that does not change meanwhile.

Passages are numbered by row; -1 is the null passage, -2 says that there was nothing more to retrieve. Scores are the
search's own, good for figures: training computes p(z|x) again by the live towers, with gradient.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Self, overload

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from realm_hf.data.passages.build import NULL_PASSAGE, PassageStore
from realm_hf.index.base import SearchIndex
from realm_hf.index.exact import recall_at_k
from realm_hf.index.faiss_index import build_index
from realm_hf.index.faiss_search import IndexLike, as_search_index
from realm_hf.knowledge.edited_corpus import EditedCorpus
from realm_hf.knowledge.knowledge import Knowledge
from realm_hf.models.modeling_embedder import RealmEmbedder
from realm_hf.models.tower_files import Tower, TowerSource
from realm_hf.retriever.beam_embeddings import NullEmbedding, gather_embeddings
from realm_hf.retriever.candidates import CandidateSource, IndexSource, Queries
from realm_hf.retriever.edits import edit_counts
from realm_hf.retriever.reader_inputs import PassageReader
from realm_hf.retriever.selection import RetrievalBatch, SearchStats, as_queries, select_candidates
from realm_hf.retriever.text_search import SearchResult, search_texts

if TYPE_CHECKING:
    from realm_hf.generations.store import Generation
    from realm_hf.index.base import Embeddings, SearchIndex

__all__ = ["PassageSearcher"]

logger = logging.get_logger(__name__)

INDEX_NAME = "embeddings"


class PassageSearcher(PassageReader):
    """Holds the [`Knowledge`] that is searched, replaced as a whole, and both towers. See [`RealmRetriever`]."""

    def __init__(
        self,
        passages: PassageStore | Dataset,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        index: IndexLike | None = None,
        embeddings: np.ndarray | None = None,
        generation_name: str | None = None,
        threads: int | None = None,
        embedder: TowerSource = None,
        query_embedder: TowerSource = None,
        candidate_source: CandidateSource | None = None,
    ):
        super().__init__(passages, tokenizer)
        self.threads = threads
        self.candidate_source = candidate_source
        self.fingerprints: dict[str, str] = {}
        self.search_stats = SearchStats()
        self._tower, self._query_tower = Tower(embedder), Tower(query_embedder)
        self._null_embedding = NullEmbedding()
        if index is None and embeddings is None and INDEX_NAME in self._corpus.columns:
            embeddings = self._corpus.column(INDEX_NAME).astype(np.float32, copy=False)
        if index is None and embeddings is not None:
            index = build_index(embeddings, threads=threads)
        self._attached = False
        self._knowledge: Knowledge | None = None
        if index is not None:
            self._serve(Knowledge(self._corpus, as_search_index(index), embeddings, generation_name))

    @classmethod
    def from_generation(
        cls,
        passages: PassageStore | Dataset,
        generation: Generation,
        tokenizer: PreTrainedTokenizerBase | None = None,
        *,
        threads: int | None = None,
        embedder: RealmEmbedder | None = None,
        query_embedder: RealmEmbedder | None = None,
    ) -> Self:
        """
        A retriever over an open generation, which stays the caller's to close.

        Args:
            passages ([`PassageStore`] or `Dataset`): The passages that it was built from.
            generation ([`Generation`]): From [`GenerationStore.open`].
            tokenizer (`PreTrainedTokenizerBase`, *optional*): As for the class.
            threads (`int`, *optional*): As for the class.
            embedder ([`RealmEmbedder`], *optional*): As for the class.
            query_embedder ([`RealmEmbedder`], *optional*): As for the class.
        """
        retriever = cls(passages, tokenizer, index=generation.index, threads=threads)
        retriever.swap(generation, embedder, query_embedder)
        return retriever

    # What is searched

    @property
    def index(self) -> SearchIndex:
        """
        The index that is searched: of a `faiss.Index` a [`FaissIndex`], whose `faiss` it is; after edits an
        [`EditedIndex`]. A `ValueError` if there is none yet.
        """
        return self._searched().index

    @property
    def embeddings(self) -> Embeddings | None:
        """What the index was built from, `[N, D]`, or `None`; after edits [`EditedEmbeddings`]."""
        return None if self._knowledge is None else self._knowledge.embeddings

    @property
    def generation_name(self) -> str | None:
        """The generation that is searched; `+n` behind it counts edits."""
        return None if self._knowledge is None else self._knowledge.name

    @property
    def embedder(self) -> RealmEmbedder | None:
        """The passage tower; one that was saved with the retriever is loaded when it is first asked for."""
        return self._tower.get()

    @embedder.setter
    def embedder(self, embedder: TowerSource) -> None:
        self._tower = Tower(embedder)

    @property
    def query_embedder(self) -> RealmEmbedder | None:
        """The query tower, loaded when it is first asked for; editing passages leaves it alone."""
        return self._query_tower.get()

    @query_embedder.setter
    def query_embedder(self, query_embedder: TowerSource) -> None:
        self._query_tower = Tower(query_embedder)

    @property
    def dataset(self) -> Dataset:
        """
        The rows with the index attached under the name `"embeddings"`, for `datasets`' own search:
        `retriever.dataset.get_nearest_examples("embeddings", query, k=5)`. A `ValueError` after edits.
        """
        if not self._attached and self._knowledge is not None:
            self._corpus.attach(self._knowledge.index, INDEX_NAME)
            self._attached = True
        return self._corpus.dataset

    def swap(
        self,
        generation: Generation,
        embedder: RealmEmbedder | None = None,
        query_embedder: RealmEmbedder | None = None,
    ) -> None:
        """
        Search another generation from now on. A search that runs in another thread ends on the one it began with.

        Args:
            generation ([`Generation`]): Over the same passages.
            embedder ([`RealmEmbedder`], *optional*): Its passage tower. Without one the retriever has none from now
                on: the earlier tower's embeddings would not belong to this generation.
            query_embedder ([`RealmEmbedder`], *optional*): The query tower, likewise.

        Raises:
            ValueError: If it was built from other passages, or the knowledge was edited.
        """
        if isinstance(self._corpus, EditedCorpus):
            raise ValueError(
                f"Generation {generation.name} knows nothing of the edits made here ({edit_counts(self._corpus)}): "
                "save them with `save_pretrained`, or make another retriever of the generation."
            )
        expected, found = self._corpus.fingerprint, generation.info.passages_fingerprint
        if expected is not None and expected != found:
            raise ValueError(
                f"Generation {generation.name} was built from passages {found}, the retriever has {expected}: its row "
                "numbers mean other texts."
            )
        self._serve(Knowledge(self._corpus, generation.index, generation.embeddings, generation.name))
        self.embedder, self.query_embedder = embedder, query_embedder

    def snapshot(self) -> Self:
        """This retriever as it is now, which later edits and swaps do not reach; it shares all memory."""
        return copy.copy(self)

    def _searched(self) -> Knowledge:
        knowledge = self._knowledge
        if knowledge is None:
            raise ValueError(
                "The retriever has no index yet: pass `index` or `embeddings`, or `swap` a generation in."
            )
        return knowledge

    def _serve(self, knowledge: Knowledge) -> None:
        """Search this from now on; a search in another thread ends on what it began with."""
        knowledge.check()
        self._knowledge, self._corpus = knowledge, knowledge.corpus
        if self._attached:
            self._corpus.attach(knowledge.index, INDEX_NAME)

    # Search

    def retrieve(
        self,
        query_embeddings: np.ndarray | torch.Tensor,
        k: int,
        *,
        token_ids: Sequence[np.ndarray] | None = None,
        exclude: Sequence[np.ndarray | str | None] | None = None,
        null_passage: bool = True,
        over_retrieve: int = 16,
    ) -> RetrievalBatch:
        """
        The `k` best candidates of each query, without trivial ones and without repetitions.

        Where sentences are excluded, `over_retrieve` rows more than wanted are searched and filtered. A query for
        which that is not enough, because many passages contain its sentence or share one text, is searched again four
        times as deep, up to the whole corpus; what is missing even then is filled with -2, counted in
        `search_stats.absent` and warned of once.

        Args:
            query_embeddings (`np.ndarray` or `torch.Tensor` of shape `[B, D]`): The queries.
            k (`int`): Candidates of each query, the null passage counted (paper: 8).
            token_ids (sequence of B `np.ndarray`, *optional*): The tokens that were embedded, for a
                `candidate_source` that reads them; masked queries masked.
            exclude (sequence of B `np.ndarray`, `str` or `None`, *optional*): For each query the sentence whose
                passages are left out: token ids without special tokens, or text; `None` leaves out nothing.
            null_passage (`bool`, *optional*, defaults to `True`): Put the null passage (-1) first.
            over_retrieve (`int`, *optional*, defaults to 16): Rows searched beyond those wanted. Without excluded
                sentences only queries among whose best there are copies of one text are searched so deep.

        Returns:
            [`RetrievalBatch`]

        Raises:
            ValueError: If there is no index, shapes do not fit, or a query holds NaN.
        """
        started = time.perf_counter()
        knowledge = self._searched()
        queries = Queries(as_queries(query_embeddings), token_ids)
        if self.candidate_source is not None and knowledge.embeddings is None:
            raise ValueError(
                "The scores of a `candidate_source` of your own are no relevance: give the retriever `embeddings` too."
            )
        batch, deeper = select_candidates(
            knowledge,
            queries,
            k,
            source=self.candidate_source or IndexSource(),
            exclude=exclude,
            null_passage=null_passage,
            over_retrieve=over_retrieve,
            threads=self.threads,
        )
        if self.search_stats.count(batch, searched_deeper=deeper, seconds=time.perf_counter() - started):
            logger.warning_once(
                "Some queries got fewer candidates than asked for: the corpus is small, an approximate index reaches "
                "no more, or many passages contain the sentence. The places are filled with -2 and counted in "
                "`search_stats.absent`; this is said once."
            )
        return batch

    @overload
    def search(  # type: ignore[overload-overlap]  # a str is a sequence of str, and the first that fits is taken
        self, queries: str, k: int = 5, *, batch_size: int = 32, show_progress_bar: bool | None = None
    ) -> SearchResult: ...

    @overload
    def search(
        self, queries: Sequence[str], k: int = 5, *, batch_size: int = 32, show_progress_bar: bool | None = None
    ) -> list[SearchResult]: ...

    def search(
        self, queries: str | Sequence[str], k: int = 5, *, batch_size: int = 32, show_progress_bar: bool | None = None
    ) -> SearchResult | list[SearchResult]:
        """
        The passages that answer best to each query: text in, passages out. The query tower embeds it.

        Args:
            queries (`str` or sequence of `str`): One or any number. `[MASK]` is the token, as in pre-training.
            k (`int`, *optional*, defaults to 5): Passages of each, without copies of one text.
            batch_size (`int`, *optional*, defaults to 32): Queries that are embedded at once.
            show_progress_bar (`bool`, *optional*): By default on a terminal, after two seconds.

        Returns:
            [`SearchResult`] for a `str`, else a list of them.

        Raises:
            TypeError: If a query is no string.
            ValueError: If there is no index, query tower or tokenizer, or the tower is not the index's.
        """
        texts = [queries] if isinstance(queries, str) else list(queries)
        found = search_texts(self.snapshot(), texts, k, batch_size=batch_size, show_progress_bar=show_progress_bar)
        return found[0] if isinstance(queries, str) else found

    # The embeddings behind it

    def beam_embeddings(self, rows: np.ndarray) -> np.ndarray:
        """
        The stored embeddings of retrieved rows, for scores with gradient or without an index's compression.

        Args:
            rows (`np.ndarray`, int64 `[B, S]`): Passage rows; -2 gives zeros, -1 what [`null_embedding`] gives.

        Returns:
            `np.ndarray`: float32 `[B, S, D]`.

        Raises:
            ValueError: If the retriever has no embeddings, or the null passage is asked for without an `embedder`.
            IndexError: If a row is no passage.
        """
        knowledge = self._searched()
        if knowledge.embeddings is None:
            raise ValueError("The retriever was made without embeddings: pass `embeddings` beside the index.")
        has_null = bool((np.asarray(rows) == NULL_PASSAGE).any())
        return gather_embeddings(knowledge.embeddings, rows, self.null_embedding() if has_null else None)

    def recall_against_exact(self, queries: np.ndarray | torch.Tensor, k: int) -> float:
        """
        The share of the exact top `k` that the index finds, so that an approximate one is never taken for exact.

        Args:
            queries (`np.ndarray` or `torch.Tensor` of shape `[Q, D]`): Probe queries.
            k (`int`): The depth.

        Returns:
            `float`: 1.0 for "Flat". Equal scores count as found.

        Raises:
            ValueError: If the retriever has no embeddings to compare with.
        """
        knowledge = self._searched()
        if knowledge.embeddings is None:
            raise ValueError("Recall is measured against the embeddings, but the retriever was made without them.")
        rows = knowledge.corpus.live_rows if knowledge.corpus.live_count < len(knowledge.corpus) else None
        return recall_at_k(knowledge.embeddings, knowledge.index, as_queries(queries), k, rows=rows)

    def null_embedding(self) -> np.ndarray | None:
        """
        The null passage's embedding by the passage tower as it is now, float32 `[D]`; `None` without an `embedder`.

        It is kept until the tower is replaced or its weights are written to.
        """
        if self.embedder is None:
            return None
        return self._null_embedding.of(self.embedder, self._corpus.special_tokens(self.tokenizer))
