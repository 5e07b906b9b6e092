"""Recurring masks that what is found answers: one of BM25's best passages for the masked sentence holds the span."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from realm_hf.data.passages.store import PassageStore
from realm_hf.data.sentences.recurring import RecurringMasks
from realm_hf.data.sentences.store import SentenceStore
from realm_hf.knowledge.bm25 import BM25Index
from realm_hf.retriever.bm25 import best_rows


def find_answered_masks(
    masks: RecurringMasks, sentences: SentenceStore, passages: PassageStore, bm25: BM25Index, *, depth: int, room: int
) -> RecurringMasks:
    """
    Count for each kept span how many of the best passages for its masked sentence hold it.

    Args:
        masks: Of these sentences and passages.
        sentences: A whole store, no view of one.
        passages: The knowledge corpus.
        bm25: Over the passages.
        depth: How many passages are looked at; those that hold the sentence itself are left out.
        room: Wordpieces of a query, special tokens not included; a span that ends behind them counts nothing.
    """
    counts = np.zeros_like(masks.counts)
    for row in range(len(sentences)):
        numbers = np.flatnonzero(masks.kept(row)).tolist()
        if not numbers:
            continue
        sentence = sentences[row]
        ids = sentence.input_ids[:room]
        for number in numbers:
            start, end = sentence.spans[number].tolist()
            if end > len(ids):
                continue
            (terms,) = bm25.query_terms([np.concatenate([ids[:start], ids[end:]])])
            best = best_rows(bm25.score(terms), 2 * depth)
            best = best[~passages.contains(ids, best)][:depth]
            counts[masks.offsets[row] + number] = passages.contains(ids[start:end], best).sum()
    return replace(masks, counts=counts)
