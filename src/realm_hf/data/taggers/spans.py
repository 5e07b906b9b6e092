"""A salient span, what finds it, and how spans of several finders become one list."""

from collections.abc import Iterable
from typing import NamedTuple, Protocol

import numpy as np


class Span(NamedTuple):
    """
    A named entity, date or quantity in a text.

    Args:
        start (`int`): First character.
        end (`int`): Character after the last.
        label (`str`): Its kind, in the words of whoever found it ("DATE", "PER", ...).
    """

    start: int
    end: int
    label: str


class Tagger(Protocol):
    """
    Finds salient spans. `fingerprint` names everything its answers depend on: cached tags are looked up by it.

    Called with a list of sentences, it returns one list of spans a sentence, in order and without overlap.
    """

    fingerprint: str

    def __call__(self, texts: list[str]) -> list[list[Span]]:
        """Spans of each text."""
        ...


def merge_spans(*sources: Iterable[Span]) -> list[Span]:
    """
    One list of spans in order without overlap.

    Of overlapping spans the longest stays; of equally long ones that of the earlier source, then the earlier in the
    text.

    Args:
        sources (`Iterable[Span]`): The spans of each finder.

    Returns:
        `list[Span]`
    """
    candidates = [(span.start - span.end, rank, span) for rank, source in enumerate(sources) for span in source]
    kept: list[Span] = []
    for _, _, span in sorted(candidates):
        if all(span.end <= other.start or other.end <= span.start for other in kept):
            kept.append(span)
    return sorted(kept)


def spans_to_wordpieces(spans: Iterable[Span], offsets: np.ndarray) -> tuple[np.ndarray, list[str]]:
    """
    Map character spans to wordpieces: those that lie wholly within the span, as released.

    Args:
        spans (`Iterable[Span]`): Character spans.
        offsets (`np.ndarray` of shape `[T, 2]`): Start and end character of each wordpiece.

    Returns:
        Spans in wordpieces, end exclusive (`np.ndarray` of shape `[S, 2]`, int64), and their labels. A span without a
        wordpiece of its own is left out.
    """
    spans = list(spans)
    firsts = np.searchsorted(offsets[:, 0], [span.start for span in spans])
    lasts = np.searchsorted(offsets[:, 1], [span.end for span in spans], side="right")
    kept = firsts < lasts
    labels = [span.label for span, keep in zip(spans, kept, strict=True) if keep]
    return np.stack([firsts, lasts], axis=1)[kept].astype(np.int64), labels
