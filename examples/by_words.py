"""The sparse baseline: BM25 as a retriever searches with it, here alone."""

from collections.abc import Sequence

import numpy as np

from realm_hf import BM25Source, RealmRetriever
from realm_hf.data import PassageStore


def word_rows(words: BM25Source, passages: PassageStore, token_ids: Sequence[np.ndarray], k: int) -> np.ndarray:
    """Rows int64 `[Q, k]` of the passages that BM25 ranks first, best first; negative where no word is shared."""
    # A retriever has vectors; these are not searched.
    nothing = np.zeros((len(passages), 1), np.float32)
    retriever = RealmRetriever(passages, embeddings=nothing, candidate_source=words)
    no_vectors = np.zeros((len(token_ids), 1), np.float32)
    return np.asarray(retriever.retrieve(no_vectors, k, token_ids=token_ids, null_passage=False).rows)
