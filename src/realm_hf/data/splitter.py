# ruff: noqa: SIM905 - a list of words is easier to read and to change as text
"""English sentence boundaries without a dependency: terminal punctuation, then the exceptions that matter in prose.

A trained splitter (spaCy, Punkt) is better on odd text and can be passed wherever a `splitter` is asked for; this one
is deterministic, has no weights to fetch, and needs a tenth of the tokenizer's time. Every boundary lies at white
space, so a sentence's wordpieces are the same inside its document and alone.
"""

import re
from collections.abc import Callable

from datasets.fingerprint import Hasher

from realm_hf.data.common_words import SENTENCE_STARTERS

Splitter = Callable[[str], list[tuple[int, int]]]
"""Text -> character spans of its sentences, in order, without overlap; what lies between two spans is dropped."""

# Cached sentences are looked up by both. Raise the version ("2", "3", ...) with every change after which some text is
# split otherwise: of these rules, or of the sentence starters. The values are the hashes of source and module name of
# the time when those were hashed: what was split then is still found.
SPLITTER_VERSION = "4257d7dde37d9323"
SPLITTER_NAME = "6d5f44b48152f3a3"

# A boundary is possible after terminal punctuation with its closing quotes and brackets, and at a blank line.
_BOUNDARY = re.compile(r"(?P<stop>[.!?\u2026]+)[\"'\u201d\u2019\u00bb)\]]*\s+|\s*\n[^\S\n]*\n\s*")
_OPENER = "\"'\u201c\u2018\u00ab([\u00bf\u00a1"
_LAST_WORD = re.compile(r"[^\s\"'\u201c\u2018(\[]+$")
_INITIALS = re.compile(r"(?:[A-Z]\.)*[A-Z]$")
_NEXT_WORD = re.compile(r"[^\W\d_]+")

# Followed by a name, a number or a reference, hardly ever by a new sentence.
_NEVER_LAST = frozenset(
    """
    adm approx arch brig bros c ca capt cf ch col comdr dept det dr ed eds eg e.g esp est ex fig figs fl fr ft gen
    gov hon i.e ie illus insp lat lieut lit long lt lts maj messrs min mlle mme mr mrs ms msgr mt mts no nos nr op
    p par pl pp pres prof pt pvt ref rep reps rev rt sec sen sens sept sgt sr st ste str supt trans viz vol vols vs
    v
    """.split()
)
# May end a sentence, but also stand inside one: the next word decides.
_MAYBE_LAST = frozenset(
    """
    a.d a.k.a a.m al apr assn aug ave b.c b.c.e blvd c.e co corp d.c dec e.u etc feb inc jan jr jul jun ltd mar nov
    oct p.m ph.d plc rd u.k u.n u.s u.s.a u.s.s.r univ
    """.split()
)


def splitter_key(splitter: Splitter) -> tuple[str, str]:
    """Which splitter it is, and the version of the rules here, which one of somebody else's may call."""
    # `datasets` hashes a function by its module's name, which must be free to change.
    name = SPLITTER_NAME if splitter is split_sentences else Hasher.hash(splitter)
    return name, SPLITTER_VERSION


def split_sentences(text: str) -> list[tuple[int, int]]:
    """
    Character spans of the sentences of `text`, without surrounding white space.

    Abbreviations ("Dr.", "e.g.", "No. 5"), initials ("J. R. R. Tolkien"), decimals ("3.5"), list numbers ("1. ") and
    ellipses before a small letter do not end a sentence; abbreviations that may ("Inc.", "U.S.", "p.m.", and a single
    capital as in "World War I.") do when a common sentence opener such as "The" follows. A blank line always ends one.

    Args:
        text (`str`): A document.

    Returns:
        `list[tuple[int, int]]`: `(start, end)` of each sentence, end exclusive.
    """
    spans = []
    start = _skip_space(text, 0)
    for match in _BOUNDARY.finditer(text):
        if match.start() < start:
            continue
        if match["stop"] is None or _ends_sentence(text, start, match):
            end = match.start() if match["stop"] is None else match.start() + len(match[0].rstrip())
            spans.append((start, end))
            start = match.end()
    end = len(text.rstrip())
    if start < end:
        spans.append((start, end))
    return spans


def _ends_sentence(text: str, start: int, match: re.Match[str]) -> bool:
    following = match.end()
    while following < len(text) and text[following] in _OPENER:
        following += 1
    if following >= len(text):
        return True
    head = text[following]
    if "\n" in match[0] and match[0].count("\n") > 1:
        return True
    if head.islower() or not (head.isalnum() or following > match.end()):
        return False
    if match["stop"] != "." or match[0].rstrip() != ".":
        return True
    # No abbreviation is longer than 16 characters; without a bound a text without white space would be quadratic.
    previous = _LAST_WORD.search(text, max(start, match.start() - 16), match.start())
    if previous is None:
        return True
    return not _is_abbreviation(previous[0], previous.start() == start, text, following)


def _is_abbreviation(word: str, opens_sentence: bool, text: str, following: int) -> bool:
    """Whether the full stop after `word` belongs to it and the sentence goes on at `following`."""
    lower = word.lower().lstrip("-\u2013\u2014")
    if lower in _NEVER_LAST:
        # "no." and "col." are also words: only a capital or a number makes them abbreviations.
        return lower not in ("no", "long", "min", "par") or text[following].isdigit() or word[0].isupper()
    if opens_sentence and (word.isdigit() or len(word) == 1):
        return True
    if lower in _MAYBE_LAST or _INITIALS.match(word):
        following_word = _NEXT_WORD.match(text, following)
        return following_word is None or following_word[0] not in SENTENCE_STARTERS
    return False


def _skip_space(text: str, start: int) -> int:
    while start < len(text) and text[start].isspace():
        start += 1
    return start
