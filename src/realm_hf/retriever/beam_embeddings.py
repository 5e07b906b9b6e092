"""Embeddings of the rows of a beam: stored ones, and that of the null passage, which is in no index."""

from __future__ import annotations

import numpy as np
import torch

from realm_hf.data.passages.build import NULL_PASSAGE
from realm_hf.data.vocabulary import SpecialTokens
from realm_hf.index.base import ABSENT, Embeddings
from realm_hf.models.modeling_embedder import RealmEmbedder

__all__ = ["NullEmbedding", "gather_embeddings", "inner_products"]

_NUMBERS_AT_ONCE = 1 << 24


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
            between = [special_tokens.sep] * special_tokens.separators
            ids = torch.tensor([[special_tokens.cls, *between, special_tokens.sep]], device=embedder.device)
            segments = torch.zeros_like(ids)
            segments[0, -1] = 1
            rows, _ = embedder.with_prompt("document", {"input_ids": ids, "token_type_ids": segments})
            was_training = embedder.training
            embedder.eval()
            try:
                with torch.no_grad():
                    projected = embedder(**rows)
            finally:
                embedder.train(was_training)
            self._value = projected.projected_score[0].float().cpu().numpy()
            self._state = state
        return self._value


def gather_embeddings(embeddings: Embeddings, rows: np.ndarray, null: np.ndarray | None) -> np.ndarray:
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


def inner_products(embeddings: Embeddings | None, queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """
    Exact inner products of queries with stored embeddings.

    Args:
        embeddings (`np.ndarray` of shape `[N, D]`, *optional*): Those that the index was built from.
        queries (`np.ndarray` of shape `[B, D]`): The queries.
        rows (`np.ndarray`, int64 `[B, R]`): Passage rows; -2 is none.

    Returns:
        `np.ndarray`: float32 `[B, R]`; `-inf` at -2.

    Raises:
        ValueError: If there are no embeddings.
    """
    if embeddings is None:
        raise ValueError("Passages are scored by their stored embeddings: give the retriever `embeddings`.")
    products = np.full(rows.shape, -np.inf, np.float32)
    at_once = max(1, _NUMBERS_AT_ONCE // max(1, rows.shape[1] * queries.shape[1]))
    for start in range(0, len(rows), at_once):
        part = slice(start, start + at_once)
        vectors = gather_embeddings(embeddings, rows[part], None)
        summed = np.einsum("brd,bd->br", vectors, queries[part].astype(np.float32))
        products[part] = np.where(rows[part] == ABSENT, -np.inf, summed)
    return products
