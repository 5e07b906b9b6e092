"""What a retriever must know of its passages, whether they come as a [`PassageStore`] or as any `datasets.Dataset`."""

from __future__ import annotations

import copy
import re
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from transformers import PreTrainedTokenizerBase

from realm_hf.data.passages.build import NULL_PASSAGE, PassageStore
from realm_hf.data.passages.packing import normalised_text_hash
from realm_hf.data.reader_batch import Wordpieces
from realm_hf.data.vocabulary import SpecialTokens, encode_texts
from realm_hf.index.faiss_search import raw_faiss

if TYPE_CHECKING:
    from realm_hf.index.base import SearchIndex

__all__ = ["Corpus"]

_SPACE = re.compile(r"\s+")


class Corpus:
    """
    Passages by row number.

    Args:
        passages ([`PassageStore`] or `datasets.Dataset`): A dataset needs a column `text`; `title` and
            `duplicate_group` are used if they are there.

    Raises:
        ValueError: If there are no passages, or the column is missing.
    """

    def __init__(self, passages: PassageStore | Dataset):
        if isinstance(passages, Dataset) and "text" not in passages.column_names:
            raise ValueError(
                f"The passages have columns {passages.column_names}, but 'text' is needed: rename the column "
                "that holds the passages' text with `rename_column`."
            )
        if not len(passages):
            raise ValueError("There are no passages: a retriever needs at least one.")
        self.store = passages if isinstance(passages, PassageStore) else None
        self._passages = passages

    def __len__(self) -> int:
        return len(self._passages)

    @property
    def passages(self) -> PassageStore | Dataset:
        """What the corpus was made from."""
        return self._passages

    @property
    def fingerprint(self) -> str | None:
        """The store's fingerprint; `None` for a dataset."""
        return None if self.store is None else self.store.fingerprint

    @property
    def columns(self) -> list[str]:
        """Names of a dataset's columns; a store's rows are not opened for this, and it keeps no vectors in them."""
        return self._passages.column_names if isinstance(self._passages, Dataset) else []

    @cached_property
    def dataset(self) -> Dataset:
        """The rows as a dataset of its own: a FAISS index attached to it is not attached to the user's object."""
        rows = self._passages.rows if isinstance(self._passages, PassageStore) else self._passages
        own = copy.copy(rows)
        own._indexes = {}  # shared by a shallow copy, and a deep one would copy in-memory tables
        return own

    def column(self, name: str) -> np.ndarray:
        """A numeric column of a dataset as one array."""
        return np.asarray(self.dataset.with_format("numpy")[name][:])

    def attach(self, index: SearchIndex, name: str) -> None:
        """Give [`dataset`] an index of that name, in place of an earlier one; a `ValueError` if it is not FAISS's."""
        raw = raw_faiss(index)
        silent = are_progress_bars_disabled()
        disable_progress_bars()  # `datasets` would show one over no vectors
        try:
            nothing = np.empty((0, index.dimension), dtype=np.float32)
            self.dataset.add_faiss_index_from_external_arrays(nothing, name, custom_index=raw)
        finally:
            if not silent:
                enable_progress_bars()

    @cached_property
    def duplicate_groups(self) -> np.ndarray:
        """Group of each passage, int32 `[N]`: equal for passages whose text is the same up to case and punctuation."""
        if self.store is not None:
            return self.store.duplicate_groups
        if "duplicate_group" in self.columns:
            return self.column("duplicate_group").astype(np.int32, copy=False)
        hashes = [normalised_text_hash(text) for batch in self.dataset.iter(1000) for text in batch["text"]]
        return np.unique(np.array(hashes, dtype=np.int64), return_inverse=True)[1].astype(np.int32)

    @property
    def live_count(self) -> int:
        """Passages that can be found: all of them, as long as none was removed."""
        return len(self)

    @property
    def live_rows(self) -> np.ndarray:
        """Rows that can be found, int64, ascending."""
        return np.arange(len(self))

    def groups_of(self, rows: np.ndarray) -> np.ndarray:
        """[`duplicate_groups`] of the rows of one ranking, int `[R]`; any number where a row is negative."""
        return self.duplicate_groups[np.maximum(rows, 0)]

    def texts(self, rows: np.ndarray) -> list[str]:
        """
        The passages' texts; empty for the null passage.

        Raises:
            IndexError: If a row is neither a passage nor the null passage.
        """
        return self._strings(rows, "text")

    def titles(self, rows: np.ndarray) -> list[str]:
        """
        The passages' titles; empty for the null passage, and for passages without a column `title`.

        Raises:
            IndexError: If a row is neither a passage nor the null passage.
        """
        return self._strings(rows, "title")

    def special_tokens(self, tokenizer: PreTrainedTokenizerBase | None) -> SpecialTokens:
        """Ids of the special tokens: the store's, or the tokenizer's for a dataset; a `ValueError` without one."""
        if self.store is not None:
            return self.store.special_tokens
        return SpecialTokens.from_tokenizer(self._needed(tokenizer))

    def body_wordpieces(self, rows: np.ndarray, tokenizer: PreTrainedTokenizerBase | None) -> Wordpieces:
        """
        Wordpieces of the passages' bodies: mapped for a [`PassageStore`], made now for a dataset.

        Args:
            rows (`np.ndarray`, int64 `[R]`): Passages, or the null passage, which has none.
            tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed for a dataset.

        Returns:
            [`~realm_hf.data.reader_batch.Wordpieces`]

        Raises:
            IndexError: If a row is neither a passage nor the null passage.
            ValueError: If the passages are a dataset and there is no tokenizer.
        """
        if self.store is not None:
            return self.store.body_tokens.values, *self.store.body_extents(rows)
        distinct, place = np.unique(rows, return_inverse=True)
        encoded = encode_texts(self._needed(tokenizer), self.texts(distinct))["input_ids"] if len(distinct) else []
        lengths = np.array([len(ids) for ids in encoded], dtype=np.int64)
        values = np.array([token for ids in encoded for token in ids], dtype=np.int64)
        return values, (np.cumsum(lengths) - lengths)[place], lengths[place]

    def _strings(self, rows: np.ndarray, column: str) -> list[str]:
        rows = np.asarray(rows, dtype=np.int64).reshape(-1)
        wrong = rows[(rows < NULL_PASSAGE) | (rows >= len(self))]
        if len(wrong):
            raise IndexError(f"Passage row {wrong[0]} is out of range for {len(self)} passages (-1: null passage).")
        if column not in self.dataset.column_names:
            return [""] * len(rows)
        stored = rows[rows != NULL_PASSAGE]
        strings = iter(self.dataset[stored.tolist()][column] if len(stored) else [])
        return ["" if row == NULL_PASSAGE else next(strings) or "" for row in rows]

    def _needed(self, tokenizer: PreTrainedTokenizerBase | None) -> PreTrainedTokenizerBase:
        if tokenizer is None:
            raise ValueError(
                "These passages are a Dataset without wordpieces: give the retriever a tokenizer, or build a "
                "PassageStore with `build_passages`."
            )
        return tokenizer

    def containing(self, sentence: np.ndarray | str, rows: np.ndarray) -> np.ndarray:
        """
        Which passages contain a sentence (section 3.4: they would make retrieval trivial).

        Args:
            sentence (`np.ndarray` or `str`): Token ids without special tokens, for a [`PassageStore`]; or the text,
                compared without regard to case and to the width of white space.
            rows (`np.ndarray` of shape `[R]`): Passages; negative rows contain nothing.

        Returns:
            `np.ndarray`: bool `[R]`.

        Raises:
            TypeError: If token ids are given for passages that have none.
        """
        if not isinstance(sentence, str):
            if self.store is None:
                raise TypeError(
                    "`exclude` holds token ids, but these passages are a Dataset without tokens: give sentences as "
                    "text, or build a PassageStore with `build_passages`."
                )
            return self.store.contains(np.asarray(sentence), rows)
        needle = _plain(sentence)
        if not needle:
            raise ValueError(
                "`exclude` holds an empty sentence, which every passage contains: use None for no filter."
            )
        found = np.zeros(len(rows), dtype=bool)
        stored = np.flatnonzero(rows >= 0)
        found[stored] = [needle in _plain(text) for text in self.texts(rows[stored])]
        return found


def _plain(text: str) -> str:
    return _SPACE.sub(" ", text).strip().casefold()
