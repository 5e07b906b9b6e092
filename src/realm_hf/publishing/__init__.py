"""Publish a model with its retriever on the Hub: two repositories that pin each other, or one; with their cards."""

from .cards import CardFacts
from .publish import Publication, publish
from .recorded import RecordedRun, read_run

__all__ = ["CardFacts", "Publication", "RecordedRun", "publish", "read_run"]
