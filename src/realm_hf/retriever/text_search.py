"""Questions in, passages out: texts are embedded by the query tower, searched for, and shown with their passages."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from realm_hf.models.modeling_embedder import RealmEmbedder
    from realm_hf.retriever.candidates import CandidateSource

__all__ = ["FoundPassage", "SearchResult", "embedded_texts", "search_texts", "texts_token_ids"]


class FoundPassage(NamedTuple):
    """
    One passage that was found.

    Args:
        title (`str`): Its title; empty where it has none.
        text (`str`): Its text.
        score (`float`): Inner product of query and passage, as the index has it.
        row (`int`): Its number among the passages.
    """

    title: str
    text: str
    score: float
    row: int


@dataclass(frozen=True)
class SearchResult:
    """
    What was found for one query, best first; iterating gives a [`FoundPassage`] each.

    Args:
        query (`str`): The query.
        titles (`list[str]`): Of each passage; empty strings where there are none.
        texts (`list[str]`): Of each passage.
        scores (`np.ndarray`, float32 `[n]`): Inner products, as the index has them.
        rows (`np.ndarray`, int64 `[n]`): Numbers of the passages. n is `k`, or less where there is no more to find.
    """

    query: str
    titles: list[str]
    texts: list[str]
    scores: np.ndarray
    rows: np.ndarray

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[FoundPassage]:
        return map(FoundPassage, self.titles, self.texts, self.scores.tolist(), self.rows.tolist())


class SearchedRetriever(Protocol):
    """What is asked of a [`RealmRetriever`]."""

    tokenizer: PreTrainedTokenizerBase | None
    candidate_source: CandidateSource | None

    @property
    def query_embedder(self) -> RealmEmbedder | None:
        """The query tower."""

    @property
    def index(self) -> Any:
        """The index, of dimension `d`."""

    def __len__(self) -> int: ...

    def retrieve(
        self, query_embeddings: np.ndarray, k: int, *, token_ids: Sequence[np.ndarray] | None, null_passage: bool
    ) -> Any:
        """Return `rows` and `scores` `[B, k]`."""

    def titles(self, rows: np.ndarray) -> list[str]:
        """Titles of rows."""

    def texts(self, rows: np.ndarray) -> list[str]:
        """Texts of rows."""


def search_texts(
    retriever: SearchedRetriever, queries: Sequence[str], k: int, *, batch_size: int, show_progress_bar: bool | None
) -> list[SearchResult]:
    """
    The work of [`RealmRetriever.search`].

    Args:
        retriever ([`RealmRetriever`]): As it is now: nobody else may change it meanwhile.
        queries (sequence of `str`): The queries.
        k (`int`): Passages of each.
        batch_size (`int`): Queries that are embedded at once.
        show_progress_bar (`bool`, *optional*): By default on a terminal, after two seconds.

    Raises:
        ValueError: There is no query tower or no tokenizer, or the tower is not of the index's dimension.
    """
    vectors = embedded_texts(retriever, queries, batch_size=batch_size, show_progress_bar=show_progress_bar)
    if not len(vectors):
        return []
    # The index needs none, and tokenizing a second time takes a while.
    ids = None if retriever.candidate_source is None else texts_token_ids(retriever, queries)
    found = retriever.retrieve(vectors, min(k, len(retriever)), token_ids=ids, null_passage=False)
    results = []
    for query, rows, scores in zip(queries, found.rows, found.scores, strict=True):
        kept = rows >= 0
        titles, texts = retriever.titles(rows[kept]), retriever.texts(rows[kept])
        results.append(SearchResult(query, titles, texts, scores[kept], rows[kept]))
    return results


def embedded_texts(
    retriever: SearchedRetriever, queries: Sequence[str], *, batch_size: int, show_progress_bar: bool | None
) -> np.ndarray:
    """
    The embeddings of texts by the query tower, float32 `[B, D]`; the arguments are those of [`search_texts`].

    Raises:
        ValueError: There is no query tower or no tokenizer, or the tower is not of the index's dimension.
    """
    tower, tokenizer, dimension = retriever.query_embedder, retriever.tokenizer, retriever.index.dimension
    if tower is None:
        raise ValueError(
            "Texts must be embedded by the query tower, and this retriever was made or saved without one: set "
            "`retriever.query_embedder` (`model.query_embedder` of a pre-trained model, `model.embedder` of a "
            "fine-tuned one), or embed the queries and call `retrieve`."
        )
    if tokenizer is None:
        raise ValueError("Texts must be tokenized: set `retriever.tokenizer` to the tokenizer of the passages.")
    if tower.config.retriever_proj_size != dimension:
        raise ValueError(
            f"The query tower gives {tower.config.retriever_proj_size} dimensions, the index has {dimension}: it is "
            "another model's."
        )
    return tower.encode(queries, tokenizer=tokenizer, batch_size=batch_size, show_progress_bar=show_progress_bar)


def texts_token_ids(retriever: SearchedRetriever, texts: Sequence[str]) -> list[np.ndarray]:
    """What a [`CandidateSource`] reads of texts beside their embeddings: `[CLS] text [SEP]` of each."""
    tokenizer = retriever.tokenizer
    assert tokenizer is not None  # they were embedded
    # Half of a surrogate pair, as in text that was cut by UTF-16 units, is no character: tokenizers refuse it.
    clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    return [np.asarray(ids, np.int64) for ids in tokenizer(clean)["input_ids"]]
