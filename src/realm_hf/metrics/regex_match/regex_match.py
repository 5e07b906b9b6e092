"""Regex match for `evaluate.load`; the rule is [`realm_hf.data.questions.matching.regex_match`]."""

from collections.abc import Sequence

from realm_hf.data.questions.matching import regex_match
from realm_hf.metrics.one_value import OneValueMetric

_DESCRIPTION = """
The share of predictions that one of the question's regular expressions matches from their start, ignoring case. The
measure of CuratedTREC.
"""
_INPUTS = r"""
Args:
    predictions (list of str): The predicted strings.
    references (list of lists of str): The regular expressions of each question, at least one.
Returns:
    regex_match (float): The mean over questions, from 0 to 1.
Raises:
    ValueError: a question without any answer or with an invalid expression; the message names its place.
Examples:
    >>> metric = evaluate.load(metric_path("regex_match"))
    >>> metric.compute(predictions=["Feb. 2, 1943"], references=[[r"Feb(ruary|\.)?\s+2"]])
    {"regex_match": 1.0}
"""
_CITATION = """
@inproceedings{lee2019latent,
  title={Latent Retrieval for Weakly Supervised Open Domain Question Answering},
  author={Lee, Kenton and Chang, Ming-Wei and Toutanova, Kristina},
  booktitle={Proceedings of ACL},
  year={2019}
}
"""


class RegexMatch(OneValueMetric):
    """Regex match as an `evaluate` module."""

    about, inputs, paper = _DESCRIPTION, _INPUTS, _CITATION

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """The score of one question."""
        return regex_match(prediction, answers)
