"""From a source of candidates to what is saved of it, and back."""

from __future__ import annotations

from collections.abc import Sequence

from transformers.utils import logging

from realm_hf.knowledge.saved_source import SavedSource
from realm_hf.retriever.bm25 import BM25Source
from realm_hf.retriever.candidates import CandidateSource, IndexSource
from realm_hf.retriever.fused import FusedSource, WeightedSource
from realm_hf.retriever.mixed import MixedSource

__all__ = ["opened_source", "saved_source", "source_parts"]

logger = logging.get_logger(__name__)


def saved_source(source: CandidateSource | None) -> SavedSource | None:
    """
    What is saved of a source: of this package's sources, all that they need beside passages and index.

    One of your own is not saved, with a warning: its code is not in the files.
    """
    if source is None or isinstance(source, IndexSource):
        return None
    words = [part for part in source_parts(source) if isinstance(part, BM25Source)]
    names = [_name(part) for part in source_parts(source)]
    if None in names or len(words) != 1:
        logger.warning(
            "The candidate source (%s) is not saved: only one made of one BM25Source and the index can be. A loaded "
            "copy searches its index alone, until you set `candidate_source`.",
            type(source).__name__,
        )
        return None
    settings: dict[str, object] = {"kind": "bm25"}
    if isinstance(source, MixedSource):
        settings = {"kind": "mixed", "parts": names, "counts": [count for _, count in source.parts]}
    elif isinstance(source, FusedSource):
        settings = {"kind": "fused", "parts": names, "constant": source.constant, "depth": source.depth}
    elif isinstance(source, WeightedSource):
        settings = {"kind": "weighted", "weight": source.weight, "depth": source.depth}
    return SavedSource(settings, words[0].index)


def opened_source(saved: SavedSource | None) -> CandidateSource | None:
    """The source that [`saved_source`] was given."""
    if saved is None:
        return None
    settings, words = saved.settings, BM25Source(saved.bm25)
    parts: list[CandidateSource] = [words if name == "bm25" else IndexSource() for name in settings.get("parts", [])]
    if settings["kind"] == "mixed":
        return MixedSource(list(zip(parts, settings["counts"], strict=True)))
    if settings["kind"] == "fused":
        return FusedSource(parts, constant=settings["constant"], depth=settings["depth"])
    if settings["kind"] == "weighted":
        return WeightedSource(words, settings["weight"], depth=settings["depth"])
    return words


def source_parts(source: CandidateSource) -> Sequence[CandidateSource]:
    """
    The sources that a source of this package is made of; itself, if it is made of no other.

    Args:
        source ([`CandidateSource`]): Any. A subclass of one of this package's is one of your own.
    """
    if type(source) is MixedSource:
        return [part for part, _ in source.parts]
    if type(source) is FusedSource:
        return source.sources
    return [source.bm25] if type(source) is WeightedSource else [source]


def _name(part: CandidateSource) -> str | None:
    """`None` for one whose code is not in this package."""
    return {BM25Source: "bm25", IndexSource: "dense"}.get(type(part))
