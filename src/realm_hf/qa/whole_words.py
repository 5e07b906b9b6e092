"""Spans for the eye: cut at words, where the reader's spans are cut at wordpieces.

What is judged stays the span that was read, as released; only what a person sees is widened.
"""

from __future__ import annotations

import unicodedata

__all__ = ["whole_words"]

_WITHIN_NUMBERS = ".,"


def whole_words(text: str, start: int, end: int) -> tuple[int, int]:
    """
    Widen a span to the words that it cuts: "Lazo Peke" of "Lazo Pekevski", "68," of "68,636".

    A word is a run of letters, digits and marks on them; a point or comma between two digits belongs to a number.
    Hyphens and apostrophes part words.

    Args:
        text (`str`): The passage.
        start (`int`): First character of the span.
        end (`int`): The character after the last.

    Returns:
        `tuple[int, int]`: The same for the widened span; an empty span stays as it is.
    """
    if start >= end:
        return start, end
    while 0 < start < len(text) and _joined(text, start):
        start -= 1
    while 0 < end < len(text) and _joined(text, end):
        end += 1
    return start, end


def _joined(text: str, place: int) -> bool:
    """Whether one word goes on from the character before `place` to the one there."""
    before, after = text[place - 1], text[place]
    if _in_word(before) and _in_word(after):
        # Scripts without spaces between words are left as they were read.
        return not (_is_ideograph(before) or _is_ideograph(after))
    if before in _WITHIN_NUMBERS:
        return after.isdigit() and place > 1 and text[place - 2].isdigit()
    if after in _WITHIN_NUMBERS:
        return before.isdigit() and place + 1 < len(text) and text[place + 1].isdigit()
    return False


def _in_word(character: str) -> bool:
    return character.isalnum() or unicodedata.category(character).startswith("M")


def _is_ideograph(character: str) -> bool:
    return unicodedata.category(character) == "Lo" and unicodedata.east_asian_width(character) == "W"
