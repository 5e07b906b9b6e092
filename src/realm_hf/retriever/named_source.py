"""A retriever's source of candidates by its name, as a command line has it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from transformers.utils import logging

from realm_hf.retriever.bm25 import BM25Source
from realm_hf.retriever.candidates import CandidateSource, IndexSource
from realm_hf.retriever.fused import FusedSource, WeightedSource
from realm_hf.retriever.mixed import MixedSource
from realm_hf.retriever.saved_sources import source_parts

if TYPE_CHECKING:
    from realm_hf.retriever.retriever import RealmRetriever

__all__ = ["named_source"]

logger = logging.get_logger(__name__)


def named_source(retriever: RealmRetriever, name: str) -> CandidateSource | None:
    """
    A source for `retriever.candidate_source`.

    Args:
        retriever ([`RealmRetriever`]): Whose passages are searched; it is not changed.
        name (`str`): `"dense"`: its index; `"bm25"`: passages that share words with the query; `"hybrid"`: the source
            of both that it has, or both rankings by reciprocal ranks.

    Returns:
        [`CandidateSource`], or `None` for the index. The BM25 index is that of the source that the retriever has; one
        without is indexed now, in memory.

    Raises:
        ValueError: The name is unknown, or the retriever lacks the tokenizer that words are joined by.
    """
    if name not in ("dense", "bm25", "hybrid"):
        raise ValueError(f"The source is {name!r}: choose dense, bm25 or hybrid.")
    own = retriever.candidate_source
    if name == "dense":
        return None
    if name == "hybrid" and isinstance(own, (FusedSource, WeightedSource, MixedSource)):
        return own
    words = _words(retriever)
    return words if name == "bm25" else FusedSource([IndexSource(), words])


def _words(retriever: RealmRetriever) -> BM25Source:
    own = [] if retriever.candidate_source is None else source_parts(retriever.candidate_source)
    found = next((part for part in own if isinstance(part, BM25Source)), None)
    if found is not None:
        return found
    if retriever.tokenizer is None:
        raise ValueError("Words are joined by the passages' tokenizer: set `retriever.tokenizer` to it.")
    logger.warning(
        "The words of %d passages are indexed for this call; a retriever that is saved with a BM25Source has them "
        "ready.",
        len(retriever),
    )
    return BM25Source.build(retriever.passages, retriever.tokenizer)
