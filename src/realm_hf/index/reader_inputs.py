"""Retrieved passages as the reader's input, with the positions of known answers; as in transformers 4.57.6."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

__all__ = ["answer_positions", "reader_inputs"]


def reader_inputs(
    tokenizer: PreTrainedTokenizerBase,
    question_ids: Any,
    texts: Sequence[str],
    *,
    max_length: int | None,
    return_tensors: str | None,
) -> tuple[BatchEncoding, list[list[int]]]:
    """
    Encode one question with each of K passages.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): Decodes the question and encodes the pairs.
        question_ids (token ids): The question, special tokens included.
        texts (K texts): The passages.
        max_length (`int`, *optional*): Most wordpieces of question and passage; the tokenizer's limit by default.
        return_tensors (`str`, *optional*): Type of the inputs.

    Returns:
        `tuple` of the inputs `[K, L]`, `[CLS] question [SEP] passage [SEP]`, and their token ids as lists.
    """
    question = tokenizer.decode(question_ids, skip_special_tokens=True)
    inputs = tokenizer(
        [question] * len(texts),
        list(texts),
        padding=True,
        truncation=True,
        return_special_tokens_mask=True,
        max_length=max_length,
    )
    rows = inputs["input_ids"]
    return inputs.convert_to_tensors(return_tensors), rows


def answer_positions(
    input_ids: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], sep_token_id: int
) -> tuple[list[bool], list[list[int]], list[list[int]]]:
    """
    Where answers stand between the first two `[SEP]` of each row.

    Args:
        input_ids (K rows of token ids): `[CLS] question [SEP] passage [SEP]`, padded.
        answers (lists of token ids): Acceptable answers.
        sep_token_id (`int`): Id of `[SEP]`.

    Returns:
        `tuple` of `has_answers`, `start_pos` and `end_pos`, see [`RealmRetriever.__call__`].
    """
    starts: list[list[int]] = []
    ends: list[list[int]] = []
    for row in map(list, input_ids):
        first = row.index(sep_token_id) + 1
        second = row.index(sep_token_id, first)
        found = [
            (start, start + len(answer) - 1)
            for answer in map(list, answers)
            for start in range(first, second)
            if row[start : start + len(answer)] == answer and answer
        ]
        starts.append([start for start, _ in found])
        ends.append([end for _, end in found])
    longest = max(map(len, starts), default=0)
    has_answers = [bool(positions) for positions in starts]
    for positions in (*starts, *ends):
        positions += [-1] * (longest - len(positions))
    return has_answers, starts, ends
