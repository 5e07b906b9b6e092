"""Passages as vectors, in the precision that a comparison asks for."""

from __future__ import annotations

import numpy as np

from realm_hf import RealmForPreTraining
from realm_hf.data.passages.store import PassageStore
from realm_hf.generations.embedding import embed_passages
from realm_hf.models.precision import encoding_in, resolved_encode_dtype


def passage_vectors(model: RealmForPreTraining, passages: PassageStore, encode_dtype: str) -> np.ndarray:
    """All passages by the passage tower of a model, `[N, D]`.

    Args:
        model: In evaluation mode.
        passages: What is embedded.
        encode_dtype: One of ENCODE_DTYPES.
    """
    with encoding_in(resolved_encode_dtype(encode_dtype, model.device), model.device):
        return embed_passages(model.embedder, passages)
