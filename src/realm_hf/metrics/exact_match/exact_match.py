"""Exact match for `evaluate.load`; the rule is [`realm_hf.data.questions.matching.exact_match`]."""

from collections.abc import Sequence

from realm_hf.data.questions.matching import exact_match
from realm_hf.metrics.one_value import OneValueMetric

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


class ExactMatch(OneValueMetric):
    """Exact match as an `evaluate` module."""

    about, inputs, paper = _DESCRIPTION, _INPUTS, _CITATION

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """The score of one question."""
        return exact_match(prediction, answers)
