"""The sparse baseline of the benchmarks: the library bm25s over title and text of a passage store."""

import logging
from collections.abc import Sequence

import bm25s
import numpy as np

from realm_hf.data import PassageStore

# It sets its own logger to DEBUG, which shows on the screen wherever a library has set logging up.
logging.getLogger("bm25s").setLevel(logging.WARNING)


def bm25_rows(passages: PassageStore, questions: Sequence[str], k: int) -> np.ndarray:
    """Rows int64 `[Q, k]` of the passages that BM25 ranks first, best first."""
    documents = [f"{passages.title(row)} {passages.text(row)}" for row in range(len(passages))]
    ranker = bm25s.BM25()
    ranker.index(bm25s.tokenize(documents, stopwords="en", show_progress=False), show_progress=False)
    queries = bm25s.tokenize(list(questions), stopwords="en", show_progress=False)
    rows: np.ndarray = ranker.retrieve(queries, k=k, show_progress=False)[0]
    return rows
