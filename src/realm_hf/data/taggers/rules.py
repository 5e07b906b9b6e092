# ruff: noqa: RUF001, SIM905 - apostrophes of real text; word lists as text
"""Salient spans of English encyclopedic prose by rules alone: no weights, no download, thousands of sentences a
second.

A trained tagger is better (the paper's is BERT on CoNLL-2003). This one serves where none can be fetched, in the demo
and in the tests; it favours precision, since a masked common word teaches the retriever nothing.
"""

import re

from realm_hf.data.common_words import (
    COMMON_ENDINGS,
    CONTENT_WORDS,
    FUNCTION_WORDS,
    MONTHS_AND_DAYS,
    NAME_CONNECTORS,
    NAMES_WITH_COMMON_ENDINGS,
)
from realm_hf.data.taggers.dates import DateTagger
from realm_hf.data.taggers.spans import Span, merge_spans

# Cached tags are looked up by it. Raise it ("2", "3", ...) with every change after which some text gets other spans:
# of these rules, the common words, the dates, or how spans are merged. The value is the one that the fingerprint had
# when it was a hash of the source: what was tagged then is still found.
RULES_VERSION = "394e4e74e8b045bc"

_WORD = re.compile(r"[^\W_]+(?:['’](?!s\b)[^\W_]+|[-&][^\W_]+)*")
_MIXED_CASE = re.compile(r"[a-z]{1,2}[A-Z]")
_NUMBER = r"(?:\d{1,3}(?:,\d{3})+|\d+)(?:\.\d+)?"
_SCALE = r"(?:thousand|million|billion|trillion)"
_UNIT = (
    r"(?:sq(?:uare)?\.? ?(?:km|mi|miles|kilomet(?:er|re)s?|met(?:er|re)s?|feet|ft)|cubic (?:met(?:er|re)s?|feet|km)"
    r"|km/h|km²|km2|km|kilomet(?:er|re)s?|cm|mm|met(?:er|re)s?|nm|m|mi|miles?|mph|ft|feet|foot|inch(?:es)?|yards?|acres?"
    r"|hectares?|ha|kg|kilograms?|grams?|mg|tons?|tonnes?|pounds?|lbs?|lit(?:er|re)s?|gallons?|barrels?|bbl|bpd|kWh|MWh|GWh"
    r"|MW|GW|kW|hp|Hz|kHz|MHz|GHz|GB|MB|TB|°C|°F|°|degrees|years?|months|weeks|days|hours|minutes|seconds|dollars|euros"
    r"|people|inhabitants|residents|citizens|votes|seats|soldiers|troops|casualties)"
)
_QUANTITY = re.compile(
    rf"(?:US|A|C|NZ)?[$€£¥] ?{_NUMBER}(?: {_SCALE})?"
    rf"|(?<![\w.,$€£]){_NUMBER}(?: ?(?:%|percent\b|per cent\b)|(?: {_SCALE})?[ -]?{_UNIT}(?!\w)| {_SCALE}\b)"
    r"|(?<![\w.,$€£])\d{1,3}(?:,\d{3})+(?:\.\d+)?(?!\w)"
)
_ABBREVIATED = frozenset("Dr Mr Mrs Ms St Jr Sr Gen Col Capt Lt Sgt Rev Prof Gov Sen Rep Mt Ft".split())


class RuleTagger:
    """
    Tags capitalised names, acronyms, quantities with units, and dates, without any dependency.

    A name is a run of capitalised words, with "of", "de la", "van der" and the like inside ("Treaty of Versailles",
    "J. R. R. Tolkien"). The first word of a sentence belongs to it only if it is no function word and, alone, no
    common word. Labels: "ENTITY", "QUANTITY", "DATE".
    """

    fingerprint = f"rules-{RULES_VERSION}"

    def __init__(self) -> None:
        self._dates = DateTagger()

    def __call__(self, texts: list[str]) -> list[list[Span]]:
        """Spans of each sentence."""
        return [
            merge_spans(dates, _quantities(text), _names(text))
            for text, dates in zip(texts, self._dates(texts), strict=True)
        ]


def _quantities(text: str) -> list[Span]:
    return [Span(match.start(), match.end(), "QUANTITY") for match in _QUANTITY.finditer(text)]


def _names(text: str) -> list[Span]:
    words = list(_WORD.finditer(text))
    if sum(word[0].isupper() and len(word[0]) > 1 for word in words) > len(words) / 2:
        return []  # a heading in capitals says nothing about names
    spans, position = [], 0
    while position < len(words):
        if not _starts_name(words[position]):
            position += 1
            continue
        end = _name_end(text, words, position)
        first = _strip_opening(words, position, end)
        if first < end and _is_salient(words[first:end], text, opens=first == 0):
            spans.append(Span(words[first].start(), words[end - 1].end(), "ENTITY"))
        position = end
    return spans


def _starts_name(word: re.Match[str]) -> bool:
    return (word[0][0].isupper() and word[0] != "I") or bool(_MIXED_CASE.match(word[0]))


def _continues_name(word: re.Match[str]) -> bool:
    return word[0][0].isupper() or bool(_MIXED_CASE.match(word[0]))


def _name_end(text: str, words: list[re.Match[str]], position: int) -> int:
    """Index after the last word of the name that starts at `position`."""
    end = position + 1
    while end < len(words) and _adjoins(text, words[end - 1], words[end]):
        if _continues_name(words[end]):
            end += 1
            continue
        # Connectors belong to the name only when a capitalised word comes after them.
        after = end
        while after < len(words) and after - end < 2 and words[after][0] in NAME_CONNECTORS:
            after += 1
            if after == len(words) or not _adjoins(text, words[after - 1], words[after]):
                return end
        if after == end or not _starts_name(words[after]):
            return end
        end = after + 1
    return end


def _adjoins(text: str, left: re.Match[str], right: re.Match[str]) -> bool:
    gap = text[left.end() : right.start()]
    if gap == " ":
        return True
    initial = len(left[0]) == 1 and left[0].isupper()
    return (gap == ". " and (initial or left[0] in _ABBREVIATED)) or (gap == "." and initial and len(right[0]) == 1)


def _strip_opening(words: list[re.Match[str]], first: int, end: int) -> int:
    """Drop what is capitalised only because it opens the sentence."""
    if first != 0:
        return first
    while first < end and words[first][0].lower() in FUNCTION_WORDS and not _is_acronym(words[first][0]):
        first += 1
    # "Exports of Germany": a common word whose name only follows after a connector is not part of it.
    if first + 1 < end and words[first][0].lower() in CONTENT_WORDS and words[first + 1][0] in NAME_CONNECTORS:
        first += 1
        while first < end and words[first][0] in NAME_CONNECTORS:
            first += 1
    return first


def _is_acronym(word: str) -> bool:
    return len(word) > 1 and word.isupper()


def _is_salient(words: list[re.Match[str]], text: str, opens: bool) -> bool:
    if all(word[0] in MONTHS_AND_DAYS for word in words):
        return False
    if len(words) > 1:
        return True
    word = words[0][0]
    if _is_acronym(word):
        return True
    if len(word) == 1 or word.lower() in FUNCTION_WORDS or word.lower() in CONTENT_WORDS:
        return False
    rest = text[words[0].end() :]
    if not opens or rest.startswith(("'s ", "’s ")):
        return True
    # A lone first word is a name unless it looks like a common one, or is all there is (a heading).
    common = word.endswith(COMMON_ENDINGS) and word not in NAMES_WITH_COMMON_ENDINGS
    return not common and any(map(str.isalnum, rest))
