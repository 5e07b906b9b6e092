"""Retrieved passages as the reader's input: for batches of questions, and for one as in transformers 4.57.6."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import BatchEncoding, PreTrainedTokenizerBase

from realm_hf.data.passages.build import PassageStore
from realm_hf.data.reader_batch import ReaderBatch, make_reader_batch
from realm_hf.knowledge.corpus import Corpus

__all__ = ["PassageReader", "answer_positions", "reader_inputs"]


class PassageReader:
    """
    Passages by row: their texts, and what a reader makes of them.

    Args:
        passages ([`PassageStore`] or `datasets.Dataset`): N passages.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed by `__call__`, and to read a dataset's passages.
    """

    def __init__(self, passages: PassageStore | Dataset, tokenizer: PreTrainedTokenizerBase | None = None):
        self.passages = passages
        self.tokenizer = tokenizer
        self._corpus = Corpus(passages)

    def __len__(self) -> int:
        """Passages that can be found."""
        return self._corpus.live_count

    @property
    def live_rows(self) -> np.ndarray:
        """Rows that can be retrieved, int64, ascending. A saved copy numbers them anew in this order, from 0."""
        return self._corpus.live_rows

    def texts(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Texts of passages; empty for the null passage (-1). An `IndexError` if a row is neither."""
        return self._corpus.texts(np.asarray(rows))

    def titles(self, rows: Sequence[int] | np.ndarray) -> list[str]:
        """Titles of passages; empty where there are none. An `IndexError` as for [`texts`]."""
        return self._corpus.titles(np.asarray(rows))

    def reader_batch(self, question_ids: Sequence[np.ndarray], rows: np.ndarray, max_length: int) -> ReaderBatch:
        """
        Join questions with the passages of their beams: `[CLS] question [SEP] body [SEP]`, titles left out.

        The wordpieces of a [`PassageStore`] are mapped; those of a dataset are made, each passage once.

        Args:
            question_ids (sequence of B `np.ndarray`): Wordpieces of each question with `[CLS]` and `[SEP]`; cut to
                half of `max_length`, the `[SEP]` kept.
            rows (`np.ndarray`, int64 `[B, R]`): Passage rows; -1 (null passage) and -2 (absent) are left out.
            max_length (`int`): Most wordpieces of question and passage, at least 4; the body's end is cut.

        Returns:
            [`~realm_hf.data.reader_batch.ReaderBatch`]

        Raises:
            ValueError: If shapes do not fit, or a dataset's passages need a tokenizer and there is none.
            IndexError: If a row is no passage.
        """
        return make_reader_batch(
            question_ids,
            rows,
            lambda present: self._corpus.body_wordpieces(present, self.tokenizer),
            self._corpus.special_tokens(self.tokenizer),
            max_length,
        )

    def __call__(
        self,
        retrieved_block_ids: np.ndarray | torch.Tensor,
        question_input_ids: torch.Tensor | np.ndarray,
        answer_ids: Sequence[Sequence[int]] | None,
        max_length: int | None = None,
        return_tensors: str | None = "pt",
    ) -> tuple[list[bool] | None, list[list[int]] | None, list[list[int]] | None, BatchEncoding]:
        """
        The reader's input for one question, as in transformers 4.57.6.

        Args:
            retrieved_block_ids (array or tensor of shape `[K]`): Passage rows; -1 is the null passage.
            question_input_ids (array or tensor of shape `[1, L]`): The question, special tokens included.
            answer_ids (`list[list[int]]`, *optional*): Token ids of each acceptable answer.
            max_length (`int`, *optional*): Most wordpieces of question and passage; the tokenizer's limit by default.
            return_tensors (`str`, *optional*, defaults to `"pt"`): Type of the inputs.

        Returns:
            `tuple` of `has_answers` (K booleans), `start_pos` and `end_pos` (K lists of inclusive positions in the
            inputs, answers in the order given, padded with -1), and `concat_inputs` ([`~transformers.BatchEncoding`]
            of `[CLS] question [SEP] passage [SEP]`, `[K, L]`). The first three are `None` without `answer_ids`.

        Raises:
            ValueError: If the retriever has no tokenizer.
            IndexError: If a row is no passage; -2 ("absent") has no text.
        """
        if self.tokenizer is None:
            raise ValueError("Calling a retriever needs a tokenizer: RealmRetriever(passages, tokenizer, ...).")
        inputs, ids = reader_inputs(
            self.tokenizer,
            question_input_ids[0],
            self._corpus.texts(np.asarray(retrieved_block_ids)),
            max_length=max_length,
            return_tensors=return_tensors,
        )
        if answer_ids is None:
            return None, None, None, inputs
        return *answer_positions(ids, answer_ids, self.tokenizer.sep_token_id), inputs


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
        while row[first] == sep_token_id and sep_token_id in row[first + 1 :]:  # RoBERTa's template has two
            first += 1
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
