# ruff: noqa: RUF001 - dashes and apostrophes of real text
"""Dates by regular expression: the paper finds "dates using a regular expression" beside the entity tagger's spans."""

import re

from realm_hf.data.taggers.spans import Span

# Cached tags are looked up by it. Raise it ("2", "3", ...) with every change after which some text gets other spans,
# and `RULES_VERSION` of the rule tagger with it; not when this file is moved or its comments are changed. The value is
# the one that the fingerprint had when it was a hash of this file: what was tagged then is still found.
DATES_VERSION = "9321ec8ba8e2d6c9"

_MONTH = (
    r"(?:January|February|March|April|May|June|July|August|September|October|November|December"
    r"|(?:Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec)\.?)"
)
_DAY = r"(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th)?"
_YEAR = r"(?:1\d{3}|20\d{2})"
_ERA = r"(?:BCE?|CE|AD|B\.C\.(?:E\.)?|A\.D\.|C\.E\.)"
_ORDINAL = (
    r"(?:\d{1,2}(?:st|nd|rd|th)|[Ff]irst|[Ss]econd|[Tt]hird|[Ff]ourth|[Ff]ifth|[Ss]ixth|[Ss]eventh|[Ee]ighth|[Nn]inth"
    r"|[Tt]enth|[Ee]leventh|[Tt]welfth|[Tt]hirteenth|[Ff]ourteenth|[Ff]ifteenth|[Ss]ixteenth|[Ss]eventeenth"
    r"|[Ee]ighteenth|[Nn]ineteenth|[Tt]wentieth|[Tt]wenty-first)"
)
# A number of four digits before one of these counts something.
_COUNTED = (
    r"(?:%|percent|per cent|km|kilomet|m\b|met(?:er|re)s|cm|mm|mi\b|miles|ft\b|feet|yards|acres|hectares|ha\b|sq\b"
    r"|square|kg|tons|tonnes|pounds|dollars|euros|people|inhabitants|residents|men\b|women|soldiers|troops|members|students"
    r"|deaths|copies|seats|votes|islands|species|thousand|million|billion|trillion|MW\b|hp\b|rpm|Hz|°)"
)

# Tried in this order at each place: the longer form first.
_PATTERNS = (
    r"\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])",
    r"(?:0?[1-9]|[12]\d|3[01])[/.](?:0?[1-9]|[12]\d|3[01])[/.](?:1\d{3}|20\d{2})",
    rf"{_DAY}(?: day)?(?: of)? {_MONTH},? {_YEAR}(?: {_ERA})?",
    rf"{_MONTH} {_DAY}(?:,|,? of)? {_YEAR}",
    rf"{_MONTH}(?:,| of)? {_YEAR}",
    rf"{_DAY}(?: of)? {_MONTH}\b(?! {_DAY}\b)",
    rf"{_MONTH} {_DAY}(?![\d,.]*\d)",
    rf"(?:[Ss]pring|[Ss]ummer|[Aa]utumn|[Ff]all|[Ww]inter)(?: of)? {_YEAR}",
    rf"\d{{1,5}}(?: or \d{{1,5}}|[-–]\d{{1,5}})? {_ERA}(?!\w)",
    r"(?:AD|A\.D\.) \d{1,4}",
    rf"(?:(?:early|mid|late)[- ])?{_ORDINAL}(?:[- ](?:and|to) {_ORDINAL}|[-–]{_ORDINAL})?"
    rf"[- ](?:century|centuries)(?: {_ERA}(?!\w))?",
    r"(?:(?:early|mid|late)[- ])?(?:1\d|20)\d0[’']?s",
    r"(?<=[Ii]n )(?:March|May)\b|(?<=[Ss]ince )(?:March|May)\b|(?<=[Uu]ntil )(?:March|May)\b",
    r"(?:January|February|April|June|July|August|September|October|November|December)\b(?! [A-Z])",
    rf"{_YEAR}[-–/]\d\d(?!\d)",
    rf"{_YEAR}(?![\d%]|[.,]\d|-\w*[a-z]|[- ]?{_COUNTED})",
)
_DATE = re.compile(rf"(?<![\w$€£#])(?<!\d[.,])(?<![A-Za-z]-)(?:{'|'.join(_PATTERNS)})(?!\w)")


class DateTagger:
    """
    Tags years, decades, centuries, months and day-month-year forms of English prose.

    "5 March 1922", "March 5th, 1922", "March 1922", "1922-03-05", "44 BC", "the late 19th century", "1990s", "summer
    of 1914", "1914" (but not "1914 people", "1,914" or "$1914"). A month alone counts where it cannot be another word.
    """

    fingerprint = f"dates-{DATES_VERSION}"

    def __call__(self, texts: list[str]) -> list[list[Span]]:
        """Spans labelled "DATE", one list a text."""
        return [[Span(match.start(), match.end(), "DATE") for match in _DATE.finditer(text)] for text in texts]
