"""Exact match for `evaluate.load`; the rule is [`realm_hf.data.questions.matching.exact_match`]."""

import datasets
import evaluate

from realm_hf.data.questions.matching import exact_match
from realm_hf.metrics import score_each

_DESCRIPTION = """
The share of predictions that equal one of the right answers after normalisation: Unicode form NFD, lower case, no
ASCII punctuation, no articles, single spaces. The measure of NaturalQuestions-open, WebQuestions and SQuAD-open.
"""
_INPUTS = """
Args:
    predictions (list of str): The predicted strings.
    references (list of lists of str): The right answers of each question, at least one.
Returns:
    exact_match (float): The mean over questions, from 0 to 1.
Raises:
    ValueError: a question without any answer; the message names its place.
Examples:
    >>> metric = evaluate.load(metric_path("exact_match"))
    >>> metric.compute(predictions=["The Beatles!"], references=[["Beatles", "Fab Four"]])
    {"exact_match": 1.0}
"""
_CITATION = """
@inproceedings{lee2019latent,
  title={Latent Retrieval for Weakly Supervised Open Domain Question Answering},
  author={Lee, Kenton and Chang, Ming-Wei and Toutanova, Kristina},
  booktitle={Proceedings of ACL},
  year={2019}
}
"""


class ExactMatch(evaluate.Metric):
    """Exact match as an `evaluate` module."""

    def _info(self) -> evaluate.MetricInfo:
        strings = datasets.Value("string")
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": strings, "references": datasets.List(strings)}),
        )

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float]:
        scores = score_each(exact_match, predictions, references)
        return {"exact_match": sum(scores) / len(scores)}
