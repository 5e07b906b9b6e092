"""Exact match and F1 of answers, kept as sums of each article as recall is (harness/retrieval.py)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from realm_hf.data.questions.load import OpenQAExample
from realm_hf.data.questions.matching import exact_match, token_f1

from .retrieval import Sums, figure, shown

SCORES = ("exact_match", "f1")


def score_sums(predictions: Sequence[str], asked: Sequence[OpenQAExample], articles: np.ndarray) -> Sums:
    """What a line keeps.

    Args:
        predictions: An answer to each question.
        asked: The questions.
        articles: Of each question, `[Q]`.
    """
    pairs = list(zip(predictions, asked, strict=True))
    values = {
        "exact_match": [float(exact_match(text, example.answers)) for text, example in pairs],
        "f1": [token_f1(text, example.answers) for text, example in pairs],
    }
    _, article = np.unique(articles, return_inverse=True)
    sums = {name: np.round(np.bincount(article, value), 4).tolist() for name, value in values.items()}
    return {"questions": np.bincount(article).tolist(), **sums}


def score_means(sums: Sums) -> dict[str, float]:
    """In percent, for whoever reads the file."""
    return {name: round(100 * sum(sums[name]) / sum(sums["questions"]), 2) for name in SCORES}


def score_table(first: str, rows: Sequence[tuple[str, Sums]]) -> list[str]:
    """Lines of Markdown, a row an arm, with the 95 % intervals over articles.

    Args:
        first: Heading of the first column.
        rows: Name and sums.
    """
    parts = [f"| {first} | exact match | F1 |", "|---" * 3 + "|"]
    return parts + [
        f"| {name} | {' | '.join(shown(figure([sums], each)) for each in SCORES)} |" for name, sums in rows
    ]
