"""Words of texts that are stored as wordpieces, and runs of words, as hashes that can be counted and compared."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerBase

from realm_hf.data.flat_arrays import RaggedArray
from realm_hf.data.word_edges import WordEdges

__all__ = ["Words", "folded", "mixed"]

_BASE, _MIX = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD6E8FEB86659FD93)


@dataclass(frozen=True)
class Words:
    """
    The words of texts, W in all.

    Args:
        hashes (`np.ndarray`, uint64 `[W]`): Equal for equal words.
        starts (`np.ndarray`, int64 `[W]`): First wordpiece within the text.
        lengths (`np.ndarray`, int64 `[W]`): Wordpieces.
        rows (`np.ndarray`, int64 `[W]`): The text that each stands in, ascending.
        is_text (`np.ndarray`, bool `[W]`): Whether it has a letter or a digit, and is no punctuation.
    """

    hashes: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray
    rows: np.ndarray
    is_text: np.ndarray

    @classmethod
    def of(cls, texts: RaggedArray, tokenizer: PreTrainedTokenizerBase) -> Words:
        """The words of texts that this tokenizer has cut into wordpieces."""
        values, offsets = np.asarray(texts.values), np.asarray(texts.offsets)
        if not len(values):
            empty = np.zeros(0, np.int64)
            return cls(empty.astype(np.uint64), empty, empty, empty, empty.astype(bool))
        edges = WordEdges.of(tokenizer)
        begins = ~edges.continues(values)
        begins[offsets[:-1][np.diff(offsets) > 0]] = True
        firsts = np.flatnonzero(begins)
        lengths = np.diff(np.concatenate([firsts, [len(values)]]))
        # A polynomial of the wordpieces: equal words have equal hashes wherever they stand.
        place = np.arange(len(values)) - np.repeat(firsts, lengths)
        powers = np.cumprod(np.full(int(lengths.max()), _BASE))
        hashes = np.add.reduceat((values.astype(np.uint64) + np.uint64(1)) * powers[place], firsts)
        rows = np.searchsorted(offsets, firsts, side="right") - 1
        text = np.array([any(map(str.isalnum, piece)) for piece in edges.texts])
        return cls(hashes, firsts - offsets[rows], lengths, rows, text[values[firsts]])

    def common(self) -> np.ndarray:
        """Bool `[W]`: the words of which there are more than one in a thousand."""
        _, which, counts = np.unique(self.hashes, return_inverse=True, return_counts=True)
        return counts[which] > max(4.0, len(self.hashes) / 1000)


def folded(hashes: np.ndarray, first: np.ndarray, size: int, seed: np.ndarray | None = None) -> np.ndarray:
    """
    One hash of each run of words.

    Args:
        hashes (`np.ndarray`, uint64 `[W]`): Of the words.
        first (`np.ndarray`, int64 `[R]`): The first word of each run.
        size (`int`): Words of a run.
        seed (`np.ndarray`, uint64 `[R]`, *optional*): What keeps equal runs apart; nothing by default.
    """
    key = np.zeros(len(first), np.uint64) if seed is None else mixed(seed)
    for step in range(size):
        key = mixed(key ^ hashes[first + step])
    return key


def mixed(value: np.ndarray) -> np.ndarray:
    """Spread the bits of numbers, uint64, so that neighbours have nothing in common."""
    value = (value ^ (value >> np.uint64(32))) * _MIX
    return value ^ (value >> np.uint64(29))
