"""Candidates of other queries that take part in p(z|x) without being read."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from realm_hf.data.passages.store import NULL_PASSAGE

if TYPE_CHECKING:
    from realm_hf.data.masking import MaskedQuery
    from realm_hf.data.passages.build import PassageStore


def unread_mask(passages: PassageStore, queries: Sequence[MaskedQuery], rows: np.ndarray) -> np.ndarray:
    """
    Which candidates of the other queries may count for a query as if they were the null passage.

    Not its own; not passages that hold its sentence, which would be trivial (section 3.4); and not those that hold its
    masked span: they may well be worth something, and are no negatives. A query without the null passage has none.

    Args:
        passages (`PassageStore`): The corpus.
        queries (sequence of `MaskedQuery`): The B queries of a micro-batch.
        rows (`np.ndarray` of shape `[B, K]`): Their candidates; -1 is the null passage, -2 an absent one.

    Returns:
        `np.ndarray` of shape `[B, B * K]`, bool: the `unread_mask` of [`RealmForPreTraining.forward`].
    """
    distinct, first = np.unique(rows, return_index=True)
    real = distinct > NULL_PASSAGE
    distinct, first = distinct[real], first[real]
    groups = passages.duplicate_groups
    mask = np.zeros((len(rows), rows.size), bool)
    for query, own, row in zip(queries, rows, mask, strict=True):
        if own[0] != NULL_PASSAGE:
            continue
        unread = ~np.isin(groups[distinct], groups[own[own > NULL_PASSAGE]])
        for tokens in (query.sentence_ids, query.labels):
            unread &= ~passages.contains(tokens, distinct)
        row[first[unread]] = True
    return mask
