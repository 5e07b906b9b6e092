"""The retriever: query embeddings in, candidate passages out (sections 3.2 and 3.4).

Passages are numbered by row; -1 is the null passage, -2 says that there was nothing more to retrieve. Scores are the
search's own, good for figures: training computes p(z|x) again by the live towers, with gradient.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, overload

import numpy as np
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from realm_hf.data.passages.build import NULL_PASSAGE, PassageStore
from realm_hf.hub.retriever import HubRetriever
from realm_hf.index.base import ABSENT
from realm_hf.index.faiss_index import build_index
from realm_hf.index.faiss_search import as_search_index
from realm_hf.knowledge.compaction import CompactedFiles
from realm_hf.knowledge.corpus import Corpus
from realm_hf.knowledge.edited_corpus import EditedCorpus
from realm_hf.knowledge.files import RetrieverFiles, save_retriever_files
from realm_hf.knowledge.knowledge import Knowledge
from realm_hf.models.towers import TowerSource
from realm_hf.retriever.beam_embeddings import BeamEmbeddings, NullEmbedding
from realm_hf.retriever.edits import KnowledgeEdits
from realm_hf.retriever.reader_inputs import ReaderInputs
from realm_hf.retriever.selection import RetrievalBatch, SearchStats, as_queries, select_candidates
from realm_hf.retriever.sources import find_retriever
from realm_hf.retriever.text_search import SearchResult, search_texts

if TYPE_CHECKING:
    from realm_hf.generations.store import Generation
    from realm_hf.index.base import SearchIndex
    from realm_hf.index.faiss_search import IndexLike
    from realm_hf.models.modeling_embedder import RealmEmbedder

__all__ = ["ABSENT", "NULL_PASSAGE", "RealmRetriever", "RetrievalBatch", "SearchResult", "SearchStats"]

logger = logging.get_logger(__name__)

INDEX_NAME = "embeddings"


class RealmRetriever(KnowledgeEdits, ReaderInputs, BeamEmbeddings, HubRetriever):
    """
    Retrieves passages by inner product.

    Args:
        passages ([`PassageStore`] or `datasets.Dataset`): N passages. A dataset needs a column `text`; a column
            `embeddings` serves as `embeddings`. They stay as they are when knowledge is edited.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed by `__call__`, and to read a dataset's passages.
        index (`faiss.Index` or [`SearchIndex`], *optional*): Inner product, row `i` is passage `i`. Built ("Flat") if
            there are embeddings.
        embeddings (`np.ndarray` of shape `[N, D]`, *optional*): For [`recall_against_exact`] and `save_pretrained`.
        generation_name (`str`, *optional*): Name of the generation, handed on with every batch.
        threads (`int`, *optional*): Threads of a search; FAISS's setting by default. With a builder on the same
            cores one thread is up to 20 times faster than two.
        embedder ([`RealmEmbedder`], *optional*): The passage tower that the embeddings come from (or the directory
            that it was saved in, from which it is loaded when it is first needed), for the null passage's and those of
            passages that are added.
        query_embedder ([`RealmEmbedder`], *optional*): The query tower, for [`search`]; given as `embedder` is.

    Attributes:
        search_stats ([`SearchStats`]): Running totals.
        fingerprints (`dict[str, str]`): Of a published retriever: what belongs together, see [`check_model`].

    Example:
    ```python
    >>> retriever = RealmRetriever.from_pretrained("runs/mine")
    >>> for passage in retriever.search("[MASK] is the capital of Nicaragua.", k=5):
    ...     print(f"{passage.score:6.2f}  {passage.title}: {passage.text}")
    >>> retriever.retrieve(query_embeddings, k=8, exclude=sentences).rows.shape
    (12, 8)
    ```
    """

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
    ):
        self.passages = passages
        self.tokenizer = tokenizer
        self.threads = threads
        self.embedder = embedder
        self.query_embedder = query_embedder
        self.fingerprints: dict[str, str] = {}
        self._null_embedding = NullEmbedding()
        self.search_stats = SearchStats()
        self._corpus = Corpus(passages)
        if index is None and embeddings is None and INDEX_NAME in self._corpus.columns:
            embeddings = self._corpus.column(INDEX_NAME).astype(np.float32, copy=False)
        if index is None and embeddings is not None:
            index = build_index(embeddings, threads=threads)
        self._attached = False
        self._served: Knowledge | None = None
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

    def __len__(self) -> int:
        """Passages that can be found."""
        return self._corpus.live_count

    @property
    def index(self) -> SearchIndex:
        """
        The index that is searched: of a `faiss.Index` a [`FaissIndex`], whose `faiss` it is; after edits an
        [`EditedIndex`]. A `ValueError` if there is none yet.
        """
        return self._served_index().index

    @property
    def embeddings(self) -> np.ndarray | None:
        """What the index was built from, `[N, D]`, or `None`; after edits [`EditedEmbeddings`]."""
        return None if self._served is None else self._served.embeddings

    @property
    def generation_name(self) -> str | None:
        """The generation that is searched; `+n` behind it counts edits."""
        return None if self._served is None else self._served.name

    @property
    def dataset(self) -> Dataset:
        """
        The rows with the index attached under the name `"embeddings"`, for `datasets`' own search:
        `retriever.dataset.get_nearest_examples("embeddings", query, k=5)`. A `ValueError` after edits.
        """
        if not self._attached and self._served is not None:
            self._corpus.attach(self._served.index, INDEX_NAME)
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
                f"Generation {generation.name} knows nothing of the edits made here ({self.edits}): save them with "
                "`save_pretrained`, or make another retriever of the generation."
            )
        expected, found = self._corpus.fingerprint, generation.info.passages_fingerprint
        if expected is not None and expected != found:
            raise ValueError(
                f"Generation {generation.name} was built from passages {found}, the retriever has {expected}: its row "
                "numbers mean other texts."
            )
        self._serve(Knowledge(self._corpus, generation.index, generation.embeddings, generation.name))
        self.embedder, self.query_embedder = embedder, query_embedder

    def _serve(self, served: Knowledge) -> None:
        served.check()
        self._served, self._corpus = served, served.corpus
        if self._attached:
            self._corpus.attach(served.index, INDEX_NAME)

    def retrieve(
        self,
        query_embeddings: np.ndarray | torch.Tensor,
        k: int,
        *,
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
        served = self._served_index()
        queries = as_queries(query_embeddings)
        if k < 1 or over_retrieve < 0:
            raise ValueError(f"k is {k} and over_retrieve {over_retrieve}: at least 1 and 0 are needed.")
        if exclude is not None and len(exclude) != len(queries):
            raise ValueError(f"`exclude` has {len(exclude)} entries for {len(queries)} queries: give one for each.")
        batch, deeper = select_candidates(
            served,
            queries,
            k,
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
        self, queries: str, k: int = 5, *, batch_size: int = 32, show_progress_bar: bool = False
    ) -> SearchResult: ...

    @overload
    def search(
        self, queries: Sequence[str], k: int = 5, *, batch_size: int = 32, show_progress_bar: bool = False
    ) -> list[SearchResult]: ...

    def search(
        self, queries: str | Sequence[str], k: int = 5, *, batch_size: int = 32, show_progress_bar: bool = False
    ) -> SearchResult | list[SearchResult]:
        """
        The passages that answer best to each query: text in, passages out. The query tower embeds it.

        Args:
            queries (`str` or sequence of `str`): One or any number. `[MASK]` is the token, as in pre-training.
            k (`int`, *optional*, defaults to 5): Passages of each, without copies of one text.
            batch_size (`int`, *optional*, defaults to 32): Queries that are embedded at once.
            show_progress_bar (`bool`, *optional*, defaults to `False`): Show one, of queries.

        Returns:
            [`SearchResult`] for a `str`, else a list of them.

        Raises:
            TypeError: If a query is no string.
            ValueError: If there is no index, query tower or tokenizer, or the tower is not the index's.
        """
        texts = [queries] if isinstance(queries, str) else list(queries)
        found = search_texts(self.snapshot(), texts, k, batch_size=batch_size, show_progress_bar=show_progress_bar)
        return found[0] if isinstance(queries, str) else found

    def save_pretrained(self, save_directory: str | Path) -> None:
        """
        Write passages, embeddings, index, tokenizer and towers into a directory, which may hold a model beside them: a
        query tower that is the model's is not written again.

        Edits are worked in: the passages are numbered anew in the order of their rows, without the removed ones
        ([`live_rows`]). This retriever keeps its rows, also where the directory is its own.

        Args:
            save_directory (`str` or `Path`): Made if need be. An earlier retriever in it is replaced; searches that
                have it mapped are not disturbed.

        Raises:
            ValueError: If there is no index, or there are edits and no embeddings.
            OSError: If the disk is full or read-only.
        """
        folder, served = Path(save_directory), self._served_index()
        if isinstance(served.corpus, EditedCorpus):
            content: RetrieverFiles | CompactedFiles = CompactedFiles.of(served.corpus, served.name)
        else:
            content = self.files()
        save_retriever_files(folder, content, self.embedder, self.query_embedder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        *,
        revision: str | None = None,
        index: bool | str = True,
        mmap: bool = True,
        verify: Literal["sizes", "sha256"] = "sizes",
        threads: int | None = None,
        **hub: Any,
    ) -> Self:
        """
        Load the retriever of a run, what [`save_pretrained`] wrote, or what was published: equal to the original bit
        for bit. Towers are loaded when they are first needed.

        Args:
            pretrained_model_name_or_path (`str` or `Path`): A run directory (the retriever that it left beside its
                model; until then its newest generation), one generation of it (`RUN/index/step-...`), a directory
                with a saved retriever, such as the `model` folder of a run, or the name of a model's or a dataset's
                repository on the Hub. Checkpoints of transformers 4 (`google/realm-orqa-nq-openqa`) load as they are.
            revision (`str`, *optional*): A branch, tag or commit of the repository.
            index (`bool` or `str`, *optional*, defaults to `True`): Of a publication: its default index, the name of
                a variant, `"exact"` for a "Flat" one that is built here, or `False` for none. The others are not
                downloaded.
            mmap (`bool`, *optional*, defaults to `True`): Map index and embeddings: opening takes milliseconds, and
                processes share the memory. `False` reads them.
            verify (`str`, *optional*, defaults to `"sizes"`): `"sha256"` also hashes every file of a saved retriever;
                those of a publication are always hashed when they come.
            threads (`int`, *optional*): See [`RealmRetriever`].
            hub (*optional*): `token`, `cache_dir`, `local_files_only`, `embedder` and `force`, see
                [`~realm_hf.hub.load.load_published`].

        Raises:
            FileNotFoundError: If there is no retriever.
            ValueError: If a file is missing or cut, or the parts do not fit.
            HubArtefactError: If a publication is damaged, is not what it says, or its parts do not belong together.
            CorruptGenerationError: If a file was changed (found with `"sha256"` only).
            IndexFileError: If the index file is none that may be loaded.
        """
        parts = find_retriever(
            pretrained_model_name_or_path, revision=revision, index=index, mmap=mmap, verify=verify, **hub
        )
        arguments = {name: part for name, part in vars(parts).items() if name != "fingerprints"}
        retriever = cls(**arguments, threads=threads)
        retriever.fingerprints = parts.fingerprints
        return retriever

    def _served_index(self) -> Knowledge:
        served = self._served
        if served is None:
            raise ValueError(
                "The retriever has no index yet: pass `index` or `embeddings`, or `swap` a generation in."
            )
        return served
