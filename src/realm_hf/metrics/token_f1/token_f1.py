"""Token F1 for `evaluate.load`; the rule is [`realm_hf.data.questions.matching.token_f1`]."""

from collections.abc import Sequence

from realm_hf.data.questions.matching import token_f1
from realm_hf.metrics.one_value import OneValueMetric

_DESCRIPTION = """
The mean F1 of the words of prediction and answer after the normalisation of exact match, for the answer where it is
largest. The second measure of SQuAD.
"""
_INPUTS = """
Args:
    predictions (list of str): The predicted strings.
    references (list of lists of str): The right answers of each question, at least one.
Returns:
    token_f1 (float): The mean over questions, from 0 to 1.
Raises:
    ValueError: a question without any answer; the message names its place.
Examples:
    >>> metric = evaluate.load(metric_path("token_f1"))
    >>> metric.compute(predictions=["John Lennon"], references=[["John Winston Lennon"]])
    {"token_f1": 0.8}
"""
_CITATION = """
@inproceedings{rajpurkar2016squad,
  title={SQuAD: 100,000+ Questions for Machine Comprehension of Text},
  author={Rajpurkar, Pranav and Zhang, Jian and Lopyrev, Konstantin and Liang, Percy},
  booktitle={Proceedings of EMNLP},
  year={2016}
}
"""


class TokenF1(OneValueMetric):
    """Token F1 as an `evaluate` module."""

    about, inputs, paper = _DESCRIPTION, _INPUTS, _CITATION

    def score(self, prediction: str, answers: Sequence[str]) -> float:
        """The score of one question."""
        return token_f1(prediction, answers)
