"""`--source` of the commands that search: what finds the passages."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from realm_hf.retriever.retriever import RealmRetriever

__all__ = ["add_source_option", "use_source"]


def add_source_option(parser: argparse.ArgumentParser) -> None:
    """Add `--source`."""
    parser.add_argument(
        "--source",
        choices=("dense", "bm25", "hybrid"),
        help="what finds passages: dense (their vectors), bm25 (their words), hybrid (both); default: what the "
        "retriever was saved with, mostly dense",
    )


def use_source(retriever: RealmRetriever, name: str | None) -> None:
    """Have a retriever search as `--source` says; `None` leaves it as it is. As [`named_source`] it may raise."""
    from realm_hf.retriever.named_source import named_source

    if name is not None:
        retriever.candidate_source = named_source(retriever, name)
