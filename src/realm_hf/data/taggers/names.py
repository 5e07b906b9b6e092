"""The pluggable taggers of salient spans (section 3.4: named entities and dates), and the names they go by in
arguments.

    RuleTagger                  dependency-free: names, acronyms, quantities, dates
    DateTagger                  dates alone
    HubTagger, SpacyTagger      a token-classification model, a spaCy pipeline
    CombinedTagger(a, b, ...)   the union of several, overlaps resolved
"""

import hashlib

from realm_hf.data.taggers.dates import DateTagger
from realm_hf.data.taggers.rules import RuleTagger
from realm_hf.data.taggers.spans import Span, Tagger, merge_spans
from realm_hf.data.taggers.with_models import HubTagger, SpacyTagger

__all__ = [
    "CombinedTagger",
    "DateTagger",
    "HubTagger",
    "RuleTagger",
    "SpacyTagger",
    "Span",
    "Tagger",
    "check_tagger_name",
    "merge_spans",
    "tagger_from_name",
    "tags_by_rules",
]


class CombinedTagger:
    """
    The spans of several taggers; of overlapping ones the longest stays, then the earlier tagger's.

    Args:
        taggers (`Tagger`): At least one.
    """

    def __init__(self, *taggers: Tagger) -> None:
        if not taggers:
            raise ValueError("CombinedTagger was given no tagger: name at least one")
        self.taggers = taggers
        names = "+".join(tagger.fingerprint for tagger in taggers)
        self.fingerprint = f"combined-{hashlib.sha256(names.encode()).hexdigest()[:16]}"

    def __call__(self, texts: list[str]) -> list[list[Span]]:
        """Merged spans of each sentence."""
        found = [tagger(texts) for tagger in self.taggers]
        return [merge_spans(*spans) for spans in zip(*found, strict=True)]


def tags_by_rules(tagger: Tagger) -> bool:
    """Whether a tagger is one of this package's without a model: of those, each process may have its own."""
    if isinstance(tagger, CombinedTagger):
        return all(map(tags_by_rules, tagger.taggers))
    return isinstance(tagger, RuleTagger | DateTagger)


def check_tagger_name(name: str) -> None:
    """
    Refuse what [`tagger_from_name`] would, without loading a model: before a corpus is prepared for it.

    Raises:
        ValueError: If the word is no tagger's.
    """
    kind, _, rest = name.partition(":")
    if name not in ("rules", "dates") and not (kind in ("hub", "spacy") and rest):
        raise ValueError(
            f"unknown tagger {name!r}: choose 'rules', 'dates', 'hub:<model id>' such as 'hub:dslim/bert-base-NER', "
            "or 'spacy:<pipeline>' such as 'spacy:en_core_web_sm'"
        )


def tagger_from_name(name: str) -> Tagger:
    """
    A tagger from one word, for command lines and configuration files. Dates are found with every one of them.

    Args:
        name (`str`): `"rules"`, `"dates"`, `"hub:<model id or directory>"` or `"spacy:<pipeline>"`.

    Raises:
        ValueError: If the word is none of these.
    """
    check_tagger_name(name)
    kind, _, rest = name.partition(":")
    if name == "rules":
        return RuleTagger()
    if name == "dates":
        return DateTagger()
    if kind == "hub":
        return CombinedTagger(HubTagger(rest), DateTagger())
    return CombinedTagger(SpacyTagger(rest), DateTagger())
