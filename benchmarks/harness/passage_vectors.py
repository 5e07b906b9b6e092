"""Passages as vectors, in the precision that a comparison asks for."""

from __future__ import annotations

import numpy as np

from realm_hf import RealmForPreTraining
from realm_hf.data.passages.store import PassageStore
from realm_hf.generations.embedding import embed_passages
from realm_hf.generations.manifest import newest_generation
from realm_hf.generations.store import GenerationStore
from realm_hf.models.fingerprints import state_fingerprint
from realm_hf.models.precision import encoding_in, resolved_encode_dtype
from realm_hf.runs.snapshots import copy_embedder_state

from .stages import INDEX, Stage


def stage_vectors(stage: Stage, model: RealmForPreTraining, passages: PassageStore, encode_dtype: str) -> np.ndarray:
    """All passages as vectors by the model of a stage, float32 `[N, D]`: of its last index where that is its own.

    Args:
        stage: It may have left an index.
        model: Its model, or one that was made of it: where that has the same passage tower, the index is its own.
        passages: All are embedded.
        encode_dtype: One of ENCODE_DTYPES; the index was made in it, too.
    """
    store = GenerationStore(stage.folder / INDEX)
    newest = newest_generation(store.list())
    if newest is not None:
        made_of = newest.embedder_fingerprint, newest.passages_fingerprint
        if made_of == (state_fingerprint(copy_embedder_state(model.embedder)), passages.fingerprint):
            with store.open(newest.name) as generation:
                return np.array(generation.embeddings, np.float32)
    return passage_vectors(model, passages, encode_dtype)


def passage_vectors(model: RealmForPreTraining, passages: PassageStore, encode_dtype: str) -> np.ndarray:
    """All passages by the passage tower of a model, `[N, D]`.

    Args:
        model: In evaluation mode.
        passages: What is embedded.
        encode_dtype: One of ENCODE_DTYPES.
    """
    with encoding_in(resolved_encode_dtype(encode_dtype, model.device), model.device):
        return embed_passages(model.embedder, passages)
