"""Recurring masks that what is found answers: one of BM25's best passages for the masked sentence holds the span."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from realm_hf.data.passages.store import PassageStore
from realm_hf.data.sentences.recurring import RecurringMasks
from realm_hf.data.sentences.store import SentenceStore
from realm_hf.knowledge.bm25 import BM25Index


def find_answered_masks(
    masks: RecurringMasks, sentences: SentenceStore, passages: PassageStore, bm25: BM25Index, *, depth: int, room: int
) -> RecurringMasks:
    """
    Count for each kept span how many of the best passages for its masked sentence hold it.

    Args:
        masks: Of these sentences and passages.
        sentences: All of its rows are looked at.
        passages: The knowledge corpus.
        bm25: Over the passages.
        depth: How many passages are looked at; those that hold the sentence itself are left out.
        room: Wordpieces of a query, special tokens not included; a span that ends behind them counts nothing.
    """
    counts = np.zeros_like(masks.counts)
    everything = sentences.select(np.arange(len(sentences.rows)))
    for row in range(len(everything)):
        kept = masks.kept(row)
        if not kept.any():
            continue
        sentence = everything[row]
        ids = np.asarray(sentence.input_ids, np.int64)[:room]
        numbers = [n for n in np.flatnonzero(kept).tolist() if sentence.spans[n][1] <= len(ids)]
        for number in numbers:
            start, end = (int(edge) for edge in sentence.spans[number])
            (terms,) = bm25.query_terms([np.concatenate([ids[:start], ids[end:]])])
            scores = bm25.score(terms)
            best = np.argpartition(-scores, 2 * depth)[: 2 * depth]
            best = best[scores[best] > 0]
            best = best[np.argsort(-scores[best], kind="stable")]
            best = best[~passages.contains(ids, best)][:depth]
            counts[masks.offsets[row] + number] = passages.contains(ids[start:end], best).sum()
    return replace(masks, counts=counts)
