"""The metrics that are one number a question, from 0 to 1, and their mean: what their `evaluate` modules share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import datasets
import evaluate

from realm_hf.metrics import score_each

__all__ = ["OneValueMetric"]


class OneValueMetric(evaluate.Metric, ABC):
    """
    The mean over questions of a score for a prediction and its right answers.

    It is abstract, so that `evaluate`, which takes the first class that is not, passes it by in the modules that
    import it. A subclass sets the texts and the score, whose name is the module's.
    """

    about: str
    """What is measured."""
    inputs: str
    """Arguments, results, errors and an example."""
    paper: str
    """BibTeX."""

    @abstractmethod
    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """The score of one question, from 0 to 1."""

    def _info(self) -> evaluate.MetricInfo:
        strings = datasets.Value("string")
        return evaluate.MetricInfo(
            description=self.about,
            citation=self.paper,
            inputs_description=self.inputs,
            features=datasets.Features({"predictions": strings, "references": datasets.List(strings)}),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        scores = score_each(self.score, predictions, references)
        return {self.name: sum(scores) / len(scores)}
