"""The source of candidates that `candidate_mix` asks for: BM25 and the index, a number from each."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from realm_hf.knowledge.bm25 import BM25_FOLDER
from realm_hf.retriever.bm25 import BM25Source
from realm_hf.retriever.candidates import CandidateSource, IndexSource
from realm_hf.retriever.mixed import MixedSource
from realm_hf.training.candidate_counts import parse_mix

if TYPE_CHECKING:
    from realm_hf.training.indexed_trainer import IndexedTrainer

__all__ = ["run_bm25", "source_of_mix"]

logger = logging.getLogger(__name__)


def source_of_mix(trainer: IndexedTrainer, mix: str | None, given: CandidateSource | None) -> CandidateSource | None:
    """What finds the candidates of a trainer: what it was given, or a mix of BM25 and index.

    Args:
        trainer ([`IndexedTrainer`]): With its run and passages.
        mix (`str`, *optional*): As the arguments have it.
        given ([`CandidateSource`], *optional*): The trainer's own argument.

    Raises:
        ValueError: Both are given.
    """
    if mix is None:
        return given
    if given is not None:
        raise ValueError(f"candidate_mix is {mix!r}, and a candidate_source is given too: drop one of them.")
    counts = parse_mix(mix)
    sources: dict[str, CandidateSource] = {"dense": IndexSource()}
    if "bm25" in counts:
        sources["bm25"] = run_bm25(trainer)
    return MixedSource([(sources[name], count) for name, count in counts.items()])


def run_bm25(trainer: IndexedTrainer) -> BM25Source:
    """The BM25 index of a run's passages, RUN/bm25, which all processes map; built by the main one if need be."""
    folder = trainer.run.root / BM25_FOLDER

    def build() -> None:
        if not folder.exists():
            logger.info("Building the BM25 index of %d passages in %s.", len(trainer.passages), folder)
            BM25Source.build(trainer.passages, trainer.processing_class).save(folder)

    trainer.on_main(build, "build the BM25 index")
    return BM25Source.load(folder)
