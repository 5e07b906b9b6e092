"""Synthetic embeddings at the paper's size, with neighbourhoods like those of real passages, from a seed.

Isotropic noise has no neighbourhoods, and an approximate index looks hopeless on it. Real passages have them: those of
one document resemble each other, documents of one topic too. So a vector is the sum of a topic's, its document's and
its own normal vector, then brought to mean 0 and variance 1 as the embedder's last LayerNorm does (length √128).
A query lies between two passages, nearer to one: questions differ from passages in what passages differ in.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

DIMENSION = 128
CHUNK = 65_536
TOPICS = 1024
PASSAGES_A_DOCUMENT = 8
TOPIC, DOCUMENT, PASSAGE = 1.0, 0.8, 0.6
NEARNESS = 0.7


def chunks(rows: int, seed: int = 0) -> Iterator[np.ndarray]:
    """The passages, float32 `[n, 128]` piece by piece; a longer corpus begins with the shorter one of that seed."""
    topics = np.random.default_rng([seed, 0]).standard_normal((TOPICS, DIMENSION), dtype=np.float32)
    for number, start in enumerate(range(0, rows, CHUNK)):
        rng = np.random.default_rng([seed, 1, number])
        documents = CHUNK // PASSAGES_A_DOCUMENT
        # Topics of unequal size, as in an encyclopaedia: squaring gives the first one about 3 % of all documents.
        of_document = (TOPICS * rng.random(documents) ** 2).astype(np.int64)
        middle = TOPIC * topics[of_document]
        middle += DOCUMENT * rng.standard_normal((documents, DIMENSION), dtype=np.float32)
        piece = np.repeat(middle, PASSAGES_A_DOCUMENT, axis=0)
        piece += PASSAGE * rng.standard_normal(piece.shape, dtype=np.float32)
        yield normalised(piece)[: rows - start]


def passages(rows: int, seed: int = 0) -> np.ndarray:
    """All of [`chunks`] in memory, float32 `[rows, 128]`."""
    embeddings = np.empty((rows, DIMENSION), np.float32)
    filled = 0
    for piece in chunks(rows, seed):
        embeddings[filled : filled + len(piece)] = piece
        filled += len(piece)
    return embeddings


def queries(embeddings: np.ndarray, count: int, seed: int = 0) -> np.ndarray:
    """`count` queries, float32 `[count, D]`, each between two passages drawn at random.

    Args:
        embeddings: `[N, D]`, synthetic or real; may be memory-mapped.
        count: How many.
        seed: Draws the passages.
    """
    drawn = np.random.default_rng([seed, 2]).integers(len(embeddings), size=(2, count))
    near, far = (np.array([embeddings[row] for row in rows], dtype=np.float32) for rows in drawn)
    return NEARNESS * near + (1 - NEARNESS) * far


def normalised(vectors: np.ndarray) -> np.ndarray:
    """LayerNorm without weights: mean 0 and variance 1 of each row, in place."""
    vectors -= vectors.mean(axis=1, keepdims=True)
    vectors /= vectors.std(axis=1, keepdims=True)
    return vectors
