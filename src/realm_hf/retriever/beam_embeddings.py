"""Embeddings of the rows of a beam: stored ones, and that of the null passage, which is in no index."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from realm_hf.data.passages.build import NULL_PASSAGE
from realm_hf.data.vocabulary import SpecialTokens
from realm_hf.index.base import ABSENT
from realm_hf.index.exact import recall_at_k
from realm_hf.models.modeling_embedder import RealmEmbedder
from realm_hf.retriever.selection import as_queries

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from realm_hf.knowledge.corpus import Corpus
    from realm_hf.knowledge.knowledge import Knowledge

__all__ = ["BeamEmbeddings", "NullEmbedding", "gather_embeddings"]


class BeamEmbeddings:
    """The part of a retriever that gives the embeddings behind a beam's scores, and holds an index to them."""

    embedder: RealmEmbedder | None
    tokenizer: PreTrainedTokenizerBase | None
    _corpus: Corpus
    _null_embedding: NullEmbedding

    def _served_index(self) -> Knowledge:
        raise NotImplementedError

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
        served = self._served_index()
        if served.embeddings is None:
            raise ValueError("The retriever was made without embeddings: pass `embeddings` beside the index.")
        has_null = bool((np.asarray(rows) == NULL_PASSAGE).any())
        return gather_embeddings(served.embeddings, rows, self.null_embedding() if has_null else None)

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
        served = self._served_index()
        if served.embeddings is None:
            raise ValueError("Recall is measured against the embeddings, but the retriever was made without them.")
        rows = served.corpus.live_rows if served.corpus.live_count < len(served.corpus) else None
        return recall_at_k(served.embeddings, served.index, as_queries(queries), k, rows=rows)

    def null_embedding(self) -> np.ndarray | None:
        """
        The null passage's embedding by the passage tower as it is now, float32 `[D]`; `None` without an `embedder`.

        It is kept until the tower is replaced or its weights are written to.
        """
        if self.embedder is None:
            return None
        return self._null_embedding.of(self.embedder, self._corpus.special_tokens(self.tokenizer))


class NullEmbedding:
    """The null passage's embedding, computed again only when the passage tower or its weights are others."""

    def __init__(self) -> None:
        self._state: tuple[RealmEmbedder, tuple[tuple[int, int], ...]] | None = None
        self._value = np.zeros(0, np.float32)

    def of(self, embedder: RealmEmbedder, special_tokens: SpecialTokens) -> np.ndarray:
        """
        Embed `[CLS] [SEP] [SEP]`, an empty title and an empty body.

        Args:
            embedder ([`RealmEmbedder`]): The passage tower. Its training mode is restored.
            special_tokens ([`SpecialTokens`]): Ids of the special tokens.

        Returns:
            `np.ndarray`: float32 `[D]`.
        """
        # Every write into a tensor raises its version, so that a tower that is trained in place is noticed.
        state = embedder, tuple((weight.data_ptr(), weight._version) for weight in embedder.parameters())
        if self._state is None or self._state[0] is not embedder or self._state[1] != state[1]:
            ids = torch.tensor([[special_tokens.cls, special_tokens.sep, special_tokens.sep]], device=embedder.device)
            was_training = embedder.training
            embedder.eval()
            try:
                with torch.no_grad():
                    projected = embedder(ids, token_type_ids=torch.tensor([[0, 0, 1]], device=ids.device))
            finally:
                embedder.train(was_training)
            self._value = projected.projected_score[0].float().cpu().numpy()
            self._state = state
        return self._value


def gather_embeddings(embeddings: np.ndarray, rows: np.ndarray, null: np.ndarray | None) -> np.ndarray:
    """
    Look up the embeddings of rows.

    Args:
        embeddings (`np.ndarray` of shape `[N, D]`): Those that the index was built from.
        rows (`np.ndarray`, int64, any shape): Passage rows; -1 is the null passage, -2 gives zeros.
        null (`np.ndarray` of shape `[D]`, *optional*): Embedding of the null passage.

    Returns:
        `np.ndarray`: float32, the shape of `rows` with D behind it.

    Raises:
        IndexError: If a row is no passage.
        ValueError: If the null passage is asked for, and `null` is not given.
    """
    rows = np.asarray(rows, np.int64)
    wrong = rows[(rows < ABSENT) | (rows >= len(embeddings))]
    if len(wrong):
        raise IndexError(f"Passage row {wrong[0]} is out of range for {len(embeddings)} passages.")
    # A copy of at least float32's width: a map is not written to.
    gathered = np.asarray(embeddings[np.maximum(rows, 0)], np.float32)
    gathered[rows == ABSENT] = 0.0
    if (rows == NULL_PASSAGE).any():
        if null is None:
            raise ValueError(
                "The null passage (-1) is in no index: give the retriever the passage tower (`embedder=`), which "
                "embeds it, or leave -1 out."
            )
        gathered[rows == NULL_PASSAGE] = null
    return gathered
