"""What a retriever must offer to be published: the Hub's code knows nothing else of it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from realm_hf.data.passages.store import PassageStore
from realm_hf.index.base import Embeddings
from realm_hf.knowledge.files import RetrieverFiles
from realm_hf.models.modeling_embedder import RealmEmbedder

__all__ = ["Publishable"]


class Publishable(Protocol):
    """A retriever as it is published; [`RealmRetriever`] is one."""

    passages: PassageStore | Dataset
    tokenizer: PreTrainedTokenizerBase | None

    @property
    def embeddings(self) -> Embeddings | None:
        """What the index was built from, `[N, D]`."""

    @property
    def embedder(self) -> RealmEmbedder | None:
        """The passage tower."""

    @property
    def query_embedder(self) -> RealmEmbedder | None:
        """The query tower."""

    def files(self) -> RetrieverFiles:
        """What is published of it; a `ValueError` without an index, or with edits."""

    def recall_against_exact(self, queries: np.ndarray, k: int) -> float:
        """The share of the exact `k` best that the index finds."""
