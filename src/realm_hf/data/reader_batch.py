"""Questions and their retrieved passages -> the reader's input, without a Python loop over passages.

    joint      [CLS] question [SEP] body [SEP]     segments 0 / 1, the title left out as released

Only pairs that exist are made: a question with fewer passages than others has fewer rows, not padded ones, and the
null passage, which holds no span, has none.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from realm_hf.data.collators import ABSENT, pad_rows
from realm_hf.data.flat_arrays import scatter_rows
from realm_hf.data.vocabulary import SpecialTokens, encode_texts
from realm_hf.models.host_facts import ReaderFacts
from realm_hf.models.transfer import to_device

_SHORTEST = 4  # [CLS] [SEP], one wordpiece of a body, [SEP]

Wordpieces = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Ragged rows: flat values, the first index of each row in them, and the length of each row."""


@dataclass(frozen=True)
class ReaderBatch:
    """
    P pairs of a question and a passage of its beam, in the order of questions and then of ranks.

    Args:
        input_ids (`np.ndarray`, int64 `[P, L]`): `[CLS] question [SEP] body [SEP]`, padded on the right.
        attention_mask (`np.ndarray`, int64 `[P, L]`): 1 at tokens, 0 at padding.
        token_type_ids (`np.ndarray`, int64 `[P, L]`): 0 up to the first `[SEP]`, 1 from the body to the second.
        block_mask (`np.ndarray`, bool `[P, L]`): True at the body's wordpieces, where spans may stand.
        question (`np.ndarray`, int64 `[P]`): Number of the question, ascending.
        rank (`np.ndarray`, int64 `[P]`): The passage's place in the question's beam, from 0.
        row (`np.ndarray`, int64 `[P]`): The passage's row.
        body_start (`np.ndarray`, int64 `[P]`): Position of the body's first wordpiece.
    """

    input_ids: np.ndarray
    attention_mask: np.ndarray
    token_type_ids: np.ndarray
    block_mask: np.ndarray
    question: np.ndarray
    rank: np.ndarray
    row: np.ndarray
    body_start: np.ndarray

    def __len__(self) -> int:
        return len(self.row)

    def tensors(self, device: str | torch.device | None = None) -> dict[str, torch.Tensor]:
        """
        What the reader takes: `reader.score_spans(**batch.tensors(device))`.

        Args:
            device (`str` or `torch.device`, *optional*): Where to; the CPU by default.

        Returns:
            `dict[str, torch.Tensor]`: `input_ids`, `attention_mask`, `token_type_ids` (int64) and `block_mask` (bool),
            each `[P, L]`.
        """
        names = ("input_ids", "attention_mask", "token_type_ids", "block_mask")
        return to_device({name: getattr(self, name) for name in names}, device)

    def facts(self) -> ReaderFacts:
        """What the reader need not ask a device: `reader.score_spans(..., facts=batch.facts())`."""
        return ReaderFacts.of(self.input_ids, self.attention_mask, self.block_mask)


def encode_questions(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, special_tokens: SpecialTokens, max_length: int
) -> list[np.ndarray]:
    """
    The wordpieces of questions.

    Args:
        texts (sequence of `str`): The questions. Half of a surrogate pair, as in text that was cut by UTF-16 units,
            becomes a question mark: tokenizers refuse it.
        tokenizer (`PreTrainedTokenizerBase`): A fast one.
        special_tokens ([`SpecialTokens`]): Ids of its special tokens.
        max_length (`int`): Most wordpieces of a question with its special tokens; what is longer is cut, the `[SEP]`
            kept.

    Returns:
        `list[np.ndarray]`: `[CLS] question [SEP]` of each, int64.
    """
    if not texts:
        return []
    clean = [text.encode("utf-8", "replace").decode("utf-8") for text in texts]
    return [
        np.array([special_tokens.cls, *ids[: max_length - 2], special_tokens.sep], np.int64)
        for ids in encode_texts(tokenizer, clean)["input_ids"]
    ]


def make_reader_batch(
    question_ids: Sequence[np.ndarray],
    rows: np.ndarray,
    wordpieces: Callable[[np.ndarray], Wordpieces],
    special_tokens: SpecialTokens,
    max_length: int,
) -> ReaderBatch:
    """
    Join B questions with the bodies of their beams.

    A question is cut to half of `max_length`, its `[SEP]` kept, so that a passage always has room; then the end of the
    body is cut.

    Args:
        question_ids (sequence of B `np.ndarray`): Wordpieces of each question with `[CLS]` and `[SEP]`.
        rows (`np.ndarray`, int64 `[B, R]`): Passage rows; -1 (null passage) and -2 (absent) are left out.
        wordpieces (`Callable`): From passage rows `[P]` to the [`Wordpieces`] of their bodies.
        special_tokens ([`SpecialTokens`]): Ids of the special tokens.
        max_length (`int`): Most wordpieces of a row, at least 4.

    Returns:
        [`ReaderBatch`]

    Raises:
        ValueError: If shapes do not fit, or `max_length` leaves no room.
        IndexError: If a row is no passage.
    """
    rows = np.asarray(rows, np.int64)
    if max_length < _SHORTEST:
        raise ValueError(f"max_length is {max_length}: `[CLS] [SEP]`, one wordpiece and `[SEP]` take {_SHORTEST}.")
    if rows.ndim != 2 or len(rows) != len(question_ids):
        raise ValueError(f"`rows` has shape {list(rows.shape)}: one row of passages for each of {len(question_ids)}.")
    if rows.size and rows.min() < ABSENT:
        raise IndexError(f"Passage row {rows.min()} is none: only -1 (null passage) and -2 (absent) are negative.")
    question, rank = np.nonzero(rows >= 0)
    row = rows[question, rank]
    values, starts, lengths = wordpieces(row)
    if not len(row):
        empty = np.zeros((0, 0), np.int64)
        return ReaderBatch(empty, empty, empty, empty.astype(bool), question, rank, row, row)

    longest = max_length // 2
    cut = [ids if len(ids) <= longest else np.append(ids[: longest - 1], special_tokens.sep) for ids in question_ids]
    padded, mask = pad_rows(cut, special_tokens.pad)
    question_end = mask.sum(1)[question]
    # The question ends with one [SEP]; some templates have another before the body.
    body_start = question_end + special_tokens.separators - 1
    body_end = body_start + np.minimum(lengths, max_length - 1 - body_start)

    columns = np.arange(body_end.max() + 1)
    input_ids = np.full((len(row), len(columns)), special_tokens.pad, np.int64)
    # What hangs over of the longest question is padding in each row that is shorter.
    shared = min(padded.shape[1], len(columns))
    input_ids[:, :shared] = padded[question, :shared]
    for place in range(special_tokens.separators - 1):
        input_ids[np.arange(len(row)), question_end + place] = special_tokens.sep
    scatter_rows(input_ids, body_start, values, starts, body_end - body_start)
    input_ids[np.arange(len(row)), body_end] = special_tokens.sep
    attention_mask = columns <= body_end[:, None]
    in_body = columns >= body_start[:, None]
    return ReaderBatch(
        input_ids=input_ids,
        attention_mask=attention_mask.astype(np.int64),
        token_type_ids=(attention_mask & in_body).astype(np.int64),
        block_mask=in_body & (columns < body_end[:, None]),
        question=question,
        rank=rank,
        row=row,
        body_start=body_start,
    )


__all__ = ["ReaderBatch", "Wordpieces", "encode_questions", "make_reader_batch"]
