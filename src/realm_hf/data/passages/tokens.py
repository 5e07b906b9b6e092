"""Passages as wordpieces: what can be asked of ragged arrays of ids, whether they are mapped or in memory."""

from functools import cached_property

import numpy as np

from realm_hf.data.flat_arrays import RaggedArray, find_aligned, scatter_rows
from realm_hf.data.vocabulary import SpecialTokens
from realm_hf.models.host_facts import NULL_PASSAGE

_LONGEST_FIRST_WORD = 4
"""Wordpieces; of a sentence that begins with a longer word, the passage is not known again."""


class PassageTokens:
    """
    Wordpieces of N passages; the base of [`PassageStore`] and of the few passages that an edit adds.

    Attributes:
        dtype (`np.dtype`): Of the stored ids.
        max_length (`int`): Most wordpieces of `[CLS] title [SEP] body [SEP]`.
        special_tokens (`SpecialTokens`): Ids of the tokenizer's special tokens.
        title_tokens (`RaggedArray`): Wordpieces of the titles.
        body_tokens (`RaggedArray`): Wordpieces of the bodies.
    """

    dtype: np.dtype
    max_length: int
    special_tokens: SpecialTokens
    title_tokens: RaggedArray
    body_tokens: RaggedArray
    _sentence_starts: RaggedArray

    def __len__(self) -> int:
        return len(self.body_tokens)

    @cached_property
    def lengths(self) -> np.ndarray:
        """Wordpieces of each candidate input, special tokens included, int64 `[N]`."""
        return self.special_tokens.of_pair + np.diff(self.title_tokens.offsets) + np.diff(self.body_tokens.offsets)

    def title_ids(self, row: int) -> np.ndarray:
        """Wordpieces of the title, without special tokens; empty for the null passage."""
        return self.title_tokens[row] if self._check_row(row) else np.zeros(0, self.dtype)

    def body_ids(self, row: int) -> np.ndarray:
        """Wordpieces of the body, without special tokens; empty for the null passage."""
        return self.body_tokens[row] if self._check_row(row) else np.zeros(0, self.dtype)

    def sentence_starts(self, row: int) -> np.ndarray:
        """First wordpiece of each sentence within the body; empty for the null passage."""
        return self._sentence_starts[row] if self._check_row(row) else np.zeros(0, self.dtype)

    @cached_property
    def sentence_counts(self) -> np.ndarray:
        """Sentences of each passage, int64 `[N]`."""
        return np.diff(self._sentence_starts.offsets)

    def candidate_ids(self, row: int) -> np.ndarray:
        """`[CLS] title [SEP] body [SEP]` of one passage as int64; `[CLS] [SEP] [SEP]` for the null passage."""
        special = self.special_tokens
        return np.concatenate(
            [
                [special.cls],
                self.title_ids(row),
                [special.sep] * special.separators,
                self.body_ids(row),
                [special.sep],
            ],
            dtype=np.int64,
        )

    def pad_candidates(self, rows: np.ndarray, max_length: int | None = None) -> dict[str, np.ndarray]:
        """
        Candidate inputs of many passages, padded to the longest of them, without a Python loop.

        As released, truncation takes the end of the body first and never a `[SEP]`.

        Args:
            rows (`np.ndarray` of shape `[R]`): Passage rows; -1 is the null passage.
            max_length (`int`, *optional*): Most wordpieces of a row, at least 3 (4 where two `[SEP]` stand between
                texts); the store's by default.

        Returns:
            `dict[str, np.ndarray]`: `input_ids`, `attention_mask` and `token_type_ids`, int64 `[R, L]`. Segment 0 is
            `[CLS] title [SEP]`, segment 1 `body [SEP]`, padding has segment 0.
        """
        max_length = self.max_length if max_length is None else max_length
        special = self.special_tokens
        if max_length < special.of_pair:
            raise ValueError(
                f"max_length is {max_length}, but `[CLS] [SEP] [SEP]` alone takes {special.of_pair} wordpieces"
            )
        title_starts, title_lengths = self._extents(self.title_tokens, rows)
        body_starts, body_lengths = self._extents(self.body_tokens, rows)
        title_lengths = np.minimum(title_lengths, max_length - special.of_pair)
        body_lengths = np.minimum(body_lengths, max_length - special.of_pair - title_lengths)
        body_places = title_lengths + 1 + special.separators
        ends = body_places + body_lengths

        each = np.arange(len(rows))
        columns = np.arange(ends.max(initial=-1) + 1)
        input_ids = np.full((len(rows), len(columns)), special.pad, np.int64)
        input_ids[:, :1] = special.cls
        for place in range(special.separators):
            input_ids[each, title_lengths + 1 + place] = special.sep
        input_ids[each, ends] = special.sep
        scatter_rows(input_ids, np.ones_like(ends), self.title_tokens.values, title_starts, title_lengths)
        scatter_rows(input_ids, body_places, self.body_tokens.values, body_starts, body_lengths)
        attention_mask = columns <= ends[:, None]
        token_type_ids = attention_mask & (columns >= body_places[:, None])
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask.astype(np.int64),
            "token_type_ids": token_type_ids.astype(np.int64),
        }

    def body_extents(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Starts in `body_tokens.values` and lengths of the bodies of `rows`, int64 `[R]` each; -1 has length 0."""
        return self._extents(self.body_tokens, rows)

    def contains(self, sentence_tokens: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """
        Which passages would make retrieval trivial for a sentence (section 3.4): those whose body contains it.

        A body that is itself a piece of the sentence counts too: it comes from an over-long sentence that was split
        over passages. The null passage contains nothing.

        Args:
            sentence_tokens (`np.ndarray` of shape `[n]`): The unmasked sentence's wordpieces without special tokens,
                cut to the query's length or not.
            rows (`np.ndarray` of shape `[R]`): Candidate rows of one query; negative rows are never hits.

        Returns:
            `np.ndarray` of shape `[R]`: Booleans.
        """
        return bodies_contain(self.body_tokens, sentence_tokens, rows, self.special_tokens.first_word_differs)

    def _extents(self, array: RaggedArray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.min() < NULL_PASSAGE or rows.max() >= len(self)):
            raise IndexError(f"passage rows {rows.min()}..{rows.max()} are out of range for {len(self)} passages")
        null = rows == NULL_PASSAGE
        starts = np.where(null, 0, array.offsets[rows])
        return starts, np.where(null, 0, array.offsets[rows + 1] - starts)

    def _check_row(self, row: int) -> bool:
        """False for the null passage, True for a stored one; an `IndexError` for anything else."""
        if not NULL_PASSAGE <= row < len(self):
            raise IndexError(f"passage row {row} is out of range for {len(self)} passages (-1 is the null passage)")
        return row != NULL_PASSAGE


def bodies_contain(
    bodies: RaggedArray, sentence_tokens: np.ndarray, rows: np.ndarray, first_word_differs: bool = False
) -> np.ndarray:
    """
    [`PassageTokens.contains`] for the bodies of any passages.

    Where the first word of a text has ids of its own, up to four wordpieces at the beginning of the sentence, or of a
    body that is a piece of it, are not compared.
    """
    sentence = without_first_word(np.asarray(sentence_tokens)) if first_word_differs else np.asarray(sentence_tokens)
    rows = np.asarray(rows, np.int64)
    if sentence.ndim != 1 or not len(sentence):
        raise ValueError(f"sentence_tokens has shape {sentence.shape}: one non-empty row of wordpiece ids is needed")
    if len(rows) and rows.max() >= len(bodies):
        raise IndexError(f"passage row {rows.max()} is out of range for {len(bodies)} passages")
    found = np.zeros(len(rows), bool)
    stored = np.flatnonzero(rows >= 0)
    found[stored] = bodies.contains(sentence, rows[stored])
    shorter = stored[bodies.lengths(rows[stored]) < len(sentence)]
    if len(shorter):
        haystack = np.asarray(sentence_tokens).astype(np.int64).tobytes()
        for position in shorter:
            pieces = bodies[rows[position]]
            if first_word_differs:
                pieces = without_first_word(pieces)
            body = pieces.astype(np.int64).tobytes()
            found[position] = find_aligned(haystack, body, 0, len(haystack), 8) >= 0
    return found


def without_first_word(ids: np.ndarray) -> np.ndarray:
    """Token ids `[n]` of a text without what its first word may be: four of them, but at most half."""
    return ids[min(_LONGEST_FIRST_WORD, len(ids) // 2) :]
