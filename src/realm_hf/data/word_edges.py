"""Where words begin in token ids, whatever kind of tokenizer made them.

WordPiece marks what goes on with a word ("##ing"); byte-level BPE and SentencePiece mark the space before one ("Ġthe",
"▁the") and leave the first word of a text, and a word behind a parenthesis, without a mark. So a piece of theirs goes
on with a word if it begins with a letter or digit, and the piece before it ends with one.
"""

import json
import unicodedata
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Self

import numpy as np
from transformers import PreTrainedTokenizerBase

Scheme = Literal["wordpiece", "bytes", "metaspace"]

_SPACE_OF_PIECES = "▁"
_IDEOGRAPHS = ((0x3400, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF))  # each is a word by itself, as in BERT


def marks_continuations(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it is a WordPiece tokenizer, of which each piece says alone whether it goes on with a word."""
    return type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece"


@dataclass(frozen=True)
class WordEdges:
    """
    What each piece of a vocabulary does at its edges.

    Args:
        joins_left (`np.ndarray`, bool `[V]`): It goes on with a word that the piece before it leaves open.
        joins_right (`np.ndarray`, bool `[V]`): It leaves a word open.
        texts (`tuple[str, ...]`): Its characters, without a mark; "\ufffd" for half of one.
    """

    joins_left: np.ndarray
    joins_right: np.ndarray
    texts: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Self:
        """
        The edges of a tokenizer's vocabulary.

        Raises:
            ValueError: If nothing tells where a word ends.
        """
        pieces = list(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))))
        scheme = _scheme(tokenizer, pieces)
        if scheme == "wordpiece":
            left = np.array([piece.startswith("##") for piece in pieces])
            return cls(left, np.ones(len(pieces), bool), tuple(piece.removeprefix("##") for piece in pieces))
        special = set(tokenizer.all_special_ids)
        texts = tuple("" if number in special else _text(piece, scheme) for number, piece in enumerate(pieces))
        return cls(
            np.array([bool(text) and _is_of_word(text[0]) for text in texts]),
            np.array([bool(text) and _is_of_word(text[-1]) for text in texts]),
            tuple(text.strip() for text in texts),
        )

    def continues(self, ids: np.ndarray) -> np.ndarray:
        """Bool, of the shape of token ids `[n]`: those that go on with a word that another one began."""
        before = np.empty(len(ids), bool)
        # What stood before the first is unknown: WordPiece says it by itself, of others it begins a word.
        before[:1] = self.joins_right.all()
        before[1:] = self.joins_right[ids[:-1]]
        return self.joins_left[ids] & before


def _scheme(tokenizer: PreTrainedTokenizerBase, pieces: list[str]) -> Scheme:
    if any(piece.startswith("##") for piece in pieces) and (not tokenizer.is_fast or marks_continuations(tokenizer)):
        return "wordpiece"
    if tokenizer.is_fast:
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        kinds = _types(backend.get("pre_tokenizer")) | _types(backend.get("decoder"))
        if "ByteLevel" in kinds:
            return "bytes"
        if "Metaspace" in kinds:
            return "metaspace"
    raise ValueError(
        f"{type(tokenizer).__name__} marks no wordpiece with '##', and no space with 'Ġ' or '▁', so that whole words "
        "cannot be told from their pieces: use a WordPiece, byte-level BPE or SentencePiece tokenizer"
    )


def _types(part: Any) -> set[str]:
    """The types that a part of a `tokenizer.json` names, also inside a sequence."""
    if isinstance(part, dict):
        return {str(part.get("type"))} | set().union(*map(_types, part.values()))
    return set().union(*map(_types, part)) if isinstance(part, list) else set()


def _text(piece: str, scheme: Scheme) -> str:
    if scheme == "metaspace":
        return piece.replace(_SPACE_OF_PIECES, " ")
    codes = _bytes_of_letters()
    if not all(letter in codes for letter in piece):
        return piece  # a token that was added as text
    return bytes(codes[letter] for letter in piece).decode("utf-8", "replace")


@cache
def _bytes_of_letters() -> dict[str, int]:
    """The byte that each letter stands for in byte-level BPE: printable ones for themselves, others from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


def _is_of_word(letter: str) -> bool:
    if letter == "\ufffd":  # half of a letter: its pieces stay together
        return True
    if any(first <= ord(letter) <= last for first, last in _IDEOGRAPHS):
        return False
    return letter.isalnum() or unicodedata.category(letter).startswith("M")


__all__ = ["WordEdges", "marks_continuations"]
