"""What a swap changed, measured on a few fixed queries by the thread that opens the new generation.

Churn says how much the candidates move between generations; stale recall what training on the old one cost the
queries of today; the most-retrieved share warns of collapse: the same passage for every query.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from realm_hf.training.prefetch import LiveIndex, encode_queries

if TYPE_CHECKING:
    from realm_hf.models.modeling_realm import RealmEmbedder

logger = logging.getLogger(__name__)

COLLAPSE_SHARE = 0.5
_ENOUGH_PROBES = 8


@dataclass(frozen=True)
class ProbeReport:
    """Figures of one swap.

    Args:
        churn (`float`, *optional*): 1 - the mean share of a query's candidates that the previous generation, searched
            with its own query weights, had given too; `None` for the first generation.
        stale_recall (`float`, *optional*): The mean share of the new generation's candidates that the new query
            weights find in the previous index; `None` for the first.
        most_retrieved_share (`float`): The share of queries whose best passage is the same one.
    """

    churn: float | None
    stale_recall: float | None
    most_retrieved_share: float


def overlap(first: np.ndarray, second: np.ndarray) -> float:
    """Mean share of each row's passages in `first` `[n, k]` that are in the same row of `second`; -2 is no passage."""
    shares = [
        float(np.isin(a[a >= 0], b[b >= 0]).mean()) if (a >= 0).any() else 1.0
        for a, b in zip(first, second, strict=True)
    ]
    return float(np.mean(shares))


class SwapProbes:
    """Probe queries, and what the last generation answered to them.

    Args:
        queries (`Sequence[np.ndarray]`): Token ids of each, special tokens included; fixed for the run.
        k (`int`): Passages retrieved for each.
        exclude (`Sequence[np.ndarray]`, *optional*): For each the sentence whose passages are left out.
    """

    def __init__(self, queries: Sequence[np.ndarray], k: int, exclude: Sequence[np.ndarray] | None = None):
        self.queries, self.k, self.exclude = list(queries), k, exclude
        self._last: np.ndarray | None = None

    def measure(self, new: LiveIndex, old: LiveIndex | None, encoder: RealmEmbedder) -> ProbeReport | None:
        """Compare a generation that is being opened with the one still served; `None` without any query.

        Args:
            new ([`LiveIndex`]): The generation being opened.
            old ([`LiveIndex`], *optional*): The served one, if there is one.
            encoder ([`RealmEmbedder`]): The weights behind `new`.
        """
        if not self.queries:
            return None
        embeddings = encode_queries(encoder, self.queries, bf16=new.bf16)
        rows = self._search(new, embeddings)
        best = rows[:, 0][rows[:, 0] >= 0]
        share = float(np.unique(best, return_counts=True)[1].max() / len(rows)) if len(best) else 0.0
        if share > COLLAPSE_SHARE and len(rows) >= _ENOUGH_PROBES:
            logger.warning(
                "%s: %.0f %% of %d probe queries have the same best passage: the retriever may be collapsing. Look at "
                "null mass and utility; a longer warm start or freeze_retriever_steps helps.",
                new.name,
                100 * share,
                len(rows),
            )
        churn = None if self._last is None else 1.0 - overlap(self._last, rows)
        stale = None if old is None else overlap(rows, self._search(old, embeddings))
        self._last = rows
        return ProbeReport(churn=churn, stale_recall=stale, most_retrieved_share=share)

    def _search(self, generation: LiveIndex, embeddings: np.ndarray) -> np.ndarray:
        retriever = generation.retriever.alone()  # by the main process only, in the thread that opens the generation
        retriever.candidate_source = None  # one that matches words would hide what the swap changed, and a collapse
        found = retriever.retrieve(
            embeddings, self.k, token_ids=self.queries, exclude=self.exclude, null_passage=False
        )
        return np.asarray(found.rows)
