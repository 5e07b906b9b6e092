"""Words of texts that are stored as wordpieces, as numbers that a lexical index counts.

A term is a hash of a word's letters in lower case, joined from its wordpieces: no text is tokenized again, and a term
does not depend on where a tokenizer cuts the word. Punctuation and special tokens are no terms. A word that begins
with a special token is none either: what is left of a word whose beginning is masked says nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np
from transformers import PreTrainedTokenizerBase

from realm_hf.data.flat_arrays import RaggedArray
from realm_hf.data.word_edges import WordEdges

__all__ = ["STOP_TERMS", "TermReader", "term_of"]

_BASE = np.uint64(0x9E3779B97F4A7C15)
_LONGEST_PIECE = 255
_CONTINUES, _TEXT, _IS_OPEN = 1, 2, 4

# The 33 English stop words of Lucene, and words that only say what kind of thing a question asks for.
_STOP_WORDS = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with did do does how what when where which who whom whose why"
)


@dataclass(frozen=True)
class TermReader:
    """
    Reads the terms of token ids.

    Args:
        hashes (`np.ndarray`, uint64 `[V]`): Of each wordpiece's letters.
        lengths (`np.ndarray`, uint8 `[V]`): Letters of each wordpiece.
        kinds (`np.ndarray`, uint8 `[V]`): 1 if it goes on with a word, plus 2 if it is text, plus 4
            if it leaves a word open.
    """

    hashes: np.ndarray
    lengths: np.ndarray
    kinds: np.ndarray

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Self:
        """
        The reader of a tokenizer's ids.

        Raises:
            ValueError: If nothing tells where a word ends, see [`~realm_hf.data.word_edges.WordEdges`].
        """
        edges = WordEdges.of(tokenizer)
        letters = [piece.lower()[:_LONGEST_PIECE] for piece in edges.texts]
        text = np.array([any(map(str.isalnum, piece)) for piece in letters])
        text[list(tokenizer.all_special_ids)] = False
        kinds = _CONTINUES * edges.joins_left.astype(np.uint8) + _TEXT * text.astype(np.uint8)
        kinds += _IS_OPEN * edges.joins_right.astype(np.uint8)
        lengths = np.array([len(piece) for piece in letters], np.uint8)
        return cls(_hashes(letters), lengths, kinds)

    def __call__(self, texts: RaggedArray) -> tuple[np.ndarray, np.ndarray]:
        """
        The terms of texts, as often as they stand there.

        Args:
            texts ([`RaggedArray`]): Token ids of each.

        Returns:
            `tuple` of the terms uint64 `[T]` and the text of each int64 `[T]`, ascending.

        Raises:
            ValueError: If an id is none of the vocabulary.
        """
        values, offsets = np.asarray(texts.values), np.asarray(texts.offsets)
        if not len(values):
            return np.zeros(0, np.uint64), np.zeros(0, np.int64)
        if values.min() < 0 or values.max() >= len(self.kinds):
            raise ValueError(
                f"Token id {int(values.max())} is not in a vocabulary of {len(self.kinds)}: the ids are another "
                "tokenizer's."
            )
        kinds = self.kinds[values]
        begins = kinds & _CONTINUES == 0
        begins[1:] |= kinds[:-1] & _IS_OPEN == 0
        begins[offsets[:-1][np.diff(offsets) > 0]] = True
        firsts = np.flatnonzero(begins)
        pieces = np.diff(np.append(firsts, len(values)))
        # A polynomial of the letters: the letters before a wordpiece in its word are the power it begins with.
        ends = np.cumsum(self.lengths[values], dtype=np.int64)
        before = ends - self.lengths[values]
        before -= np.repeat(before[firsts], pieces)
        powers = _powers(int(before.max()) + 1)
        terms = np.add.reduceat(self.hashes[values] * powers[before], firsts)
        rows = np.searchsorted(offsets, firsts, side="right") - 1
        kept = kinds[firsts] & _TEXT > 0
        return terms[kept], rows[kept]


def term_of(word: str) -> int:
    """The term of a word."""
    return int(_hashes([word.lower()])[0])


def _powers(count: int) -> np.ndarray:
    powers = np.full(count, _BASE)
    powers[0] = 1
    return np.cumprod(powers, dtype=np.uint64)


def _hashes(words: list[str]) -> np.ndarray:
    """A polynomial of the letters of each word, uint64."""
    codes = np.frombuffer("".join(words).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    lengths = np.array([len(word) for word in words], np.int64)
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(codes)) - np.repeat(starts, lengths)
    weighted = (codes + np.uint64(1)) * _powers(int(lengths.max(initial=0)) + 1)[place]
    hashes = np.zeros(len(words), np.uint64)
    if len(codes):
        filled = lengths > 0
        hashes[filled] = np.add.reduceat(weighted, starts[filled])
    return hashes


STOP_TERMS = np.unique(_hashes(_STOP_WORDS.split()))
"""Terms that stand in most passages and tell none apart, uint64, ascending."""
