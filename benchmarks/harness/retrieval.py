"""Figures of retrieval where each question has one gold passage: recall and nDCG, from the rank of the passage.

A line of results keeps the sums of each article: means, intervals and differences between lines follow from them, so
that no question's rank need be kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .bootstrap import interval_of_totals

KS = (1, 5, 20)
DEPTH = max(KS)
NDCG_DEPTH = 10
FIGURES = (*(f"recall@{k}" for k in KS), f"ndcg@{NDCG_DEPTH}")

Sums = dict[str, list[float]]
"""Of each article: `questions`, and for each of FIGURES the sum over them."""


def gold_ranks(rows: np.ndarray, gold: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The rank, from 0, of each question's passage among those that were found.

    Args:
        rows: What was found, best first, `[Q, depth]`; negative where nothing more was.
        gold: The row of each question's passage, `[Q]`.
        groups: Of all passages, `[N]`: those of the same text have the same number, and count as the same.

    Returns:
        int64 `[Q]`; `depth` where it was not found.
    """
    found = (rows >= 0) & (groups[np.maximum(rows, 0)] == groups[gold][:, None])
    return np.where(found.any(1), found.argmax(1), rows.shape[1])


def ndcg(ranks: np.ndarray) -> np.ndarray:
    """nDCG@10 of each question: 1 / log2(rank + 1), ranks from 1, for there is one passage to find."""
    return np.where(ranks < NDCG_DEPTH, 1 / np.log2(ranks + 2.0), 0.0)


def sums_by_article(ranks: np.ndarray, articles: np.ndarray) -> Sums:
    """What a line keeps.

    Args:
        ranks: From 0, at least `DEPTH` where nothing was found, `[Q]`.
        articles: Of each question, `[Q]`; of the same questions in the same order in all lines that are compared.
    """
    _, article = np.unique(articles, return_inverse=True)
    values = dict(zip(FIGURES, [*((ranks < k).astype(float) for k in KS), ndcg(ranks)], strict=True))
    sums = {name: np.round(np.bincount(article, value), 4).tolist() for name, value in values.items()}
    return {"questions": np.bincount(article).tolist(), **sums}


def figure(seeds: Sequence[Sums], name: str, less: Sequence[Sums] = ()) -> tuple[float, float, float]:
    """Mean over seeds, and its 95 % interval over articles, in percent.

    Args:
        seeds: Of one arm.
        name: One of FIGURES.
        less: Of another arm over the same questions, if the difference is asked for.

    Raises:
        ValueError: The arms were asked other questions.
    """
    sizes = np.array(seeds[0]["questions"])
    if any(other["questions"] != seeds[0]["questions"] for other in (*seeds, *less)):
        raise ValueError("The lines are of other questions: they cannot be compared.")
    totals = np.mean([sums[name] for sums in seeds], axis=0)
    if less:
        totals = totals - np.mean([sums[name] for sums in less], axis=0)
    low, high = interval_of_totals(totals, sizes)
    return 100 * float(totals.sum() / sizes.sum()), 100 * low, 100 * high


def shown(values: tuple[float, float, float], *, signed: bool = False) -> str:
    """A figure with its interval, for a table."""
    mean, low, high = (f"{value:+.1f}" if signed else f"{value:.1f}" for value in values)
    return f"{mean} ({low} to {high})"


def means(sums: Sums) -> dict[str, float]:
    """The figures of one line in percent, for whoever reads the file."""
    return {name: round(100 * sum(sums[name]) / sum(sums["questions"]), 2) for name in FIGURES}


def recall_table(first: str, rows: Sequence[tuple[str, Sequence[Sums], str]], last: str) -> list[str]:
    """Lines of Markdown, a row an arm.

    Args:
        first: Heading of the first column.
        rows: Name, sums of each seed and what stands in the last column.
        last: Heading of the last column.
    """
    return [
        f"| {first} | {' | '.join(FIGURES)} | {last} |",
        "|---" * (len(FIGURES) + 2) + "|",
        *(
            f"| {name} | {' | '.join(shown(figure(seeds, each)) for each in FIGURES)} | {end} |"
            for name, seeds, end in rows
        ),
    ]


def gain_table(rows: Sequence[tuple[str, Sequence[Sums], Sequence[Sums]]]) -> list[str]:
    """Lines of Markdown: by how much an arm is better than another, question by question, in percentage points.

    Args:
        rows: What is compared, sums of the better arm and of the other.
    """
    return [
        f"| difference | {' | '.join(FIGURES)} |",
        "|---" * (len(FIGURES) + 1) + "|",
        *(
            f"| {name} | {' | '.join(shown(figure(seeds, each, less), signed=True) for each in FIGURES)} |"
            for name, seeds, less in rows
        ),
    ]


def newest(lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lines that were measured on the same as the last one."""
    return [line for line in lines if line["on"] == lines[-1]["on"]]
