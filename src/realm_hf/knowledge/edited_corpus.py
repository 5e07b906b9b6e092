"""The passages of a retriever whose knowledge was edited: the base's, with an overlay in front of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from realm_hf.data.flat_arrays import RaggedArray
from realm_hf.data.passages.packing import normalised_text_hash
from realm_hf.data.passages.tokens import bodies_contain
from realm_hf.data.reader_batch import Wordpieces
from realm_hf.knowledge.corpus import Corpus

if TYPE_CHECKING:
    from realm_hf.index.base import SearchIndex
    from realm_hf.knowledge.knowledge import Knowledge
    from realm_hf.knowledge.overlay import Overlay

__all__ = ["EditedCorpus"]

_HASHES_REMEMBERED = 100_000


class EditedCorpus(Corpus):
    """
    Passages by row number, as they are now.

    Args:
        original ([`Knowledge`]): What was edited.
        overlay ([`Overlay`]): What differs.
    """

    def __init__(self, original: Knowledge, overlay: Overlay):
        self.original = original
        self.overlay = overlay
        self.base = original.corpus
        self.store = self.base.store
        self._passages = self.base._passages
        self._records = [overlay.records[row] for row in overlay.numbers.tolist()]
        dtype = self._records[0].body_ids.dtype if self._records else np.dtype(np.uint16)
        self._bodies = RaggedArray.from_rows([record.body_ids for record in self._records], dtype)
        self._hashes: dict[int, int] = {}

    def __len__(self) -> int:
        return self.overlay.row_count

    @property
    def live_count(self) -> int:
        """Passages that were not removed."""
        return self.overlay.live_count

    @property
    def live_rows(self) -> np.ndarray:
        """Rows that were not removed, int64, ascending."""
        return self.overlay.live_rows

    @property
    def dataset(self) -> Dataset:
        """Refused: a dataset and its index would not know of the edits."""
        raise ValueError(
            "The knowledge was edited, and `datasets` would search it as it was: save the retriever with "
            "`save_pretrained` and load the copy, whose dataset holds the edits."
        )

    def attach(self, index: SearchIndex, name: str) -> None:
        """Nothing: there is no [`dataset`] to attach an index to."""

    def groups_of(self, rows: np.ndarray) -> np.ndarray:
        """
        Duplicate groups of the rows of one ranking; equal numbers mean equal texts within these rows only.

        The base's groups are stored without texts or hashes. So where an edited passage ranks, the texts of the base's
        passages around it are hashed, instead of all texts at the edit.
        """
        places = self.overlay.positions(rows)
        edited = places >= 0
        groups = self.base.groups_of(np.where(edited, 0, rows)).astype(np.int64)
        if edited.any():
            stored = ~edited & (rows >= 0)
            texts = dict(zip(self._text_hashes(rows[stored]), groups[stored].tolist(), strict=True))
            for position in np.flatnonzero(edited).tolist():
                text = self._records[places[position]].text_hash
                # Negative numbers are no group of the base.
                groups[position] = texts.setdefault(text, -1 - len(texts))
        return groups

    def body_wordpieces(self, rows: np.ndarray, tokenizer: PreTrainedTokenizerBase | None) -> Wordpieces:
        """As [`Corpus.body_wordpieces`]."""
        rows = np.asarray(rows, np.int64)
        self._check(rows)
        places = self.overlay.positions(rows)
        edited = places >= 0
        values, starts, lengths = self.base.body_wordpieces(rows[~edited], tokenizer)
        if not edited.any():
            return values, starts, lengths
        # Only the wordpieces asked for are copied: `values` may be the map of a whole corpus.
        used = np.repeat(starts - np.cumsum(lengths) + lengths, lengths) + np.arange(lengths.sum())
        all_lengths, all_starts = np.empty(len(rows), np.int64), np.empty(len(rows), np.int64)
        all_lengths[~edited], all_starts[~edited] = lengths, np.cumsum(lengths) - lengths
        all_lengths[edited] = self._bodies.lengths(places[edited])
        all_starts[edited] = len(used) + self._bodies.offsets[places[edited]]
        return np.concatenate([values[used], self._bodies.values]), all_starts, all_lengths

    def containing(self, sentence: np.ndarray | str, rows: np.ndarray) -> np.ndarray:
        """As [`Corpus.containing`]."""
        if isinstance(sentence, str) or self.store is None:
            return super().containing(sentence, rows)
        places = self.overlay.positions(rows)
        edited = places >= 0
        found = np.zeros(len(rows), bool)
        found[~edited] = self.base.containing(sentence, rows[~edited])
        found[edited] = bodies_contain(self._bodies, sentence, places[edited])
        return found

    def _strings(self, rows: np.ndarray, column: str) -> list[str]:
        rows = np.asarray(rows, np.int64).reshape(-1)
        self._check(rows)
        places = self.overlay.positions(rows)
        stored = iter(self.base._strings(rows[places < 0], column))
        return [next(stored) if place < 0 else getattr(self._records[place], column) for place in places.tolist()]

    def _check(self, rows: np.ndarray) -> None:
        wrong = rows[(rows < -1) | (rows >= len(self))]
        if len(wrong):
            raise IndexError(f"Passage row {wrong[0]} is out of range for {len(self)} rows (-1: null passage).")

    def _text_hashes(self, rows: np.ndarray) -> list[int]:
        """Hashes of the base's texts, remembered: the same passages rank near an edited one again and again."""
        if len(self._hashes) > _HASHES_REMEMBERED:
            self._hashes = {}
        hashes = self._hashes  # another thread may begin a new one
        missing = [row for row in rows.tolist() if row not in hashes]
        hashes.update(zip(missing, map(normalised_text_hash, self.base.texts(np.array(missing))), strict=True))
        return [hashes[row] for row in rows.tolist()]
