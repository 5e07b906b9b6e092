"""The gold passages of the questions that a trainer learns from."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from realm_hf.data.passages.store import PassageStore
from realm_hf.data.questions.gold import find_gold_rows
from realm_hf.data.questions.load import OpenQAExample
from realm_hf.storage.files import json_sha256

logger = logging.getLogger(__name__)


def gold_rows_to_read(
    examples: Sequence[OpenQAExample], passages: PassageStore, tokenizer: PreTrainedTokenizerBase
) -> list[np.ndarray]:
    """
    The rows of each question's gold passages, for training.

    Args:
        examples (sequence of [`OpenQAExample`]): The questions.
        passages ([`PassageStore`]): The knowledge corpus.
        tokenizer (`PreTrainedTokenizerBase`): The one that made it.

    Returns:
        `list` of `np.ndarray`: See [`find_gold_rows`]. How many questions have none is said as a warning.

    Raises:
        ValueError: If no question has any, or a number is no document of the corpus.
    """
    rows = find_gold_rows(examples, passages, tokenizer)
    without, named = sum(not len(each) for each in rows), sum(bool(example.gold) for example in examples)
    if without == len(rows):
        raise ValueError(
            f"gold_passages is set, but of {len(rows)} questions {named} name a gold passage, and none of these is "
            "in the corpus: name the column that holds them (gold_column), and check that the corpus is theirs."
        )
    if without:
        logger.warning(
            "%d of %d questions have no gold passage: %d name none, %d one that is not in the corpus.",
            without,
            len(rows),
            len(rows) - named,
            without - (len(rows) - named),
        )
    return rows


def questions_sha256(examples: Sequence[OpenQAExample], gold_rows: Sequence[np.ndarray] | None) -> str:
    """A name of what is asked, for checkpoints: questions, answers and, where they are read, gold passages."""
    asked = [[example.question, list(example.answers), example.regex] for example in examples]
    gold = {} if gold_rows is None else {"gold": [rows.tolist() for rows in gold_rows]}
    return json_sha256({"questions": asked, **gold})
