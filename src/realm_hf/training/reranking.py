"""The best candidates by the towers as they are now, out of more that a stale index found (`rerank_depth`).

The L candidates are retrieved ahead like any others, and kept in checkpoints. They are embedded and scored at the step
itself, by its own weights, without gradient: so a resumed run keeps the same K, and the worker thread never reads
weights that the optimizer writes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch

from realm_hf.data.masking import MaskedQuery
from realm_hf.data.passages.store import PassageStore
from realm_hf.generations.embedding import evaluating
from realm_hf.index.base import ABSENT
from realm_hf.models.host_facts import RowFacts
from realm_hf.models.modeling_realm import RealmForPreTraining
from realm_hf.models.precision import autocast
from realm_hf.models.transfer import to_device
from realm_hf.training.prefetch import RetrievedStep, encode_queries

_PASSAGES_AT_ONCE = 2048


class LiveReranker:
    """
    Keeps the K best of L candidates.

    Args:
        model ([`RealmForPreTraining`]): Its towers, as they are when they are asked.
        passages ([`PassageStore`]): The candidates.
        max_candidate_length (`int`): Wordpieces of a candidate, as in a step; a prompt is not counted.
        bf16 (`bool`, *optional*, defaults to `False`): Compute in bfloat16, as the run does.
    """

    def __init__(
        self, model: RealmForPreTraining, passages: PassageStore, max_candidate_length: int, *, bf16: bool = False
    ):
        self.model, self.passages, self.bf16 = model, passages, bf16
        self.max_candidate_length = max_candidate_length

    def __call__(self, queries: Sequence[MaskedQuery], rows: np.ndarray, k: int) -> np.ndarray:
        """
        The K best candidates of n queries.

        Args:
            queries (sequence of n [`MaskedQuery`]): The queries.
            rows (`np.ndarray`, int64 `[n, L]`): Their candidates, the null passage first; -2 where there is none.
            k (`int`): K, the null passage counted.

        Returns:
            `np.ndarray`: int64 `[n, K]`, the null passage first, then best first; equal scores in the order given.
            `rows` themselves where L is K already.
        """
        if rows.shape[1] <= k or not len(rows):
            return rows[:, :k]
        found = rows[:, 1:]
        unique, place = np.unique(np.maximum(found, 0), return_inverse=True)
        embedded = self._embed(unique)[place.reshape(found.shape)]
        embeddings = encode_queries(self.model.query_embedder, [query.input_ids for query in queries], bf16=self.bf16)
        scores = np.einsum("nd,nld->nl", embeddings, embedded)
        scores[found == ABSENT] = -np.inf
        best = np.argsort(-scores, axis=1, kind="stable")[:, : k - 1]
        return np.concatenate([rows[:, :1], np.take_along_axis(found, best, 1)], axis=1)

    def of(self, model: RealmForPreTraining) -> LiveReranker:
        """The same by the towers of another model."""
        return type(self)(model, self.passages, self.max_candidate_length, bf16=self.bf16)

    def step(self, retrieved: RetrievedStep, k: int) -> RetrievedStep:
        """The candidates of a step; each micro-batch by itself, so that they do not depend on who shares the step."""
        return replace(
            retrieved, micro_batches=[(queries, self(queries, rows, k)) for queries, rows in retrieved.micro_batches]
        )

    def _embed(self, rows: np.ndarray) -> np.ndarray:
        """Embeddings of passages by the passage tower, float32 `[R, D]`."""
        tower = self.model.embedder
        pieces = []
        for start in range(0, len(rows), _PASSAGES_AT_ONCE):
            inputs = self.passages.pad_candidates(rows[start : start + _PASSAGES_AT_ONCE], self.max_candidate_length)
            facts = RowFacts.of(inputs["input_ids"], inputs["attention_mask"])
            sent = to_device(inputs, tower.device)
            with torch.no_grad(), evaluating(tower), autocast(tower.device, self.bf16):
                embeddings = tower.encode_tokens(
                    sent["input_ids"], sent["attention_mask"], sent["token_type_ids"], facts=facts, role="document"
                )
            pieces.append(embeddings.float().cpu().numpy())
        return np.concatenate(pieces)
