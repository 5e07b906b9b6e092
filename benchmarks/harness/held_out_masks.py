"""What is found for masked sentences kept back: a passage that holds the masked span, and not the sentence itself.

This is what REALM trains retrieval for. A question of SQuAD asks for the paragraph that it was written from; here the
paragraph of the sentence is left out, and another one must say the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from realm_hf.data.masking import MaskedQuery, Skip, example_rng, mask_example
from realm_hf.data.vocabulary import SpecialTokens
from realm_hf.retriever.bm25 import best_rows
from realm_hf.storage.files import json_sha256
from realm_hf.training.prefetch import encode_queries

from .paragraph_corpus import ParagraphCorpus
from .results import Line
from .retrieval import DEPTH, means, sums_by_article

HELD_OUT_MASKS = "held-out masks"
_DEEP = 4 * DEPTH  # passages of the sentence itself are left out of so many


class HeldOutMasks:
    """Sentences kept back from REALM's steps, each with one span masked that other passages hold.

    Args:
        corpus: Passages, sentences and which of their spans recur.
    """

    def __init__(self, corpus: ParagraphCorpus):
        self.corpus = corpus
        special = SpecialTokens.from_tokenizer(corpus.tokenizer)
        self.queries: list[MaskedQuery] = []
        articles = []
        kept_back = corpus.sentences.select(np.flatnonzero(corpus.kept_back))
        for number in range(len(kept_back)):
            sentence, row = kept_back[number], kept_back.row_of(number)
            masked = mask_example(
                sentence.input_ids,
                sentence.spans[corpus.masks.kept(row)],
                special_tokens=special,
                rng=example_rng(0, 0, row),
                max_query_length=corpus.max_query_length,
            )
            if not isinstance(masked, Skip):
                self.queries.append(masked)
                articles.append(corpus.articles[sentence.document])
        self.articles = np.array(articles)

    def settings(self) -> dict[str, Any]:
        """What a line was measured on."""
        texts = [[*query.input_ids.tolist(), *query.labels.tolist()] for query in self.queries]
        return {"questions": len(texts), "asked": f"{HELD_OUT_MASKS} {json_sha256({'queries': texts})[:12]}"}

    def line(self, vectors: np.ndarray, tower: torch.nn.Module) -> Line:
        """What a query tower finds, by exact search.

        Args:
            vectors: Of all passages, `[N, D]`.
            tower: Embeds the masked sentences.
        """
        asked = encode_queries(tower, [query.input_ids for query in self.queries])  # type: ignore[arg-type]
        return self._figures([np.argsort(-(vectors @ query), kind="stable")[:_DEEP] for query in asked])

    def line_of_bm25(self) -> Line:
        """The project's BM25, which does not see the masks."""
        bm25 = self.corpus.bm25.index
        scores = map(bm25.score, bm25.query_terms([query.input_ids for query in self.queries]))
        return self._figures([best_rows(each, _DEEP) for each in scores])

    def _figures(self, rows: list[np.ndarray]) -> Line:
        sums = sums_by_article(np.array(list(map(self._rank, self.queries, rows))), self.articles)
        return {**means(sums), "by_article": sums}

    def _rank(self, query: MaskedQuery, rows: np.ndarray) -> int:
        passages = self.corpus.passages
        others = rows[~passages.contains(query.sentence_ids, rows)]
        holding = np.flatnonzero(passages.contains(query.labels, others))
        return int(holding[0]) if len(holding) else DEPTH
