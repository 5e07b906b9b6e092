"""Recall by answer string for `evaluate.load`; the rules are in [`realm_hf.data.questions.matching`]."""

from collections.abc import Sequence

import datasets
import evaluate

from realm_hf.data.questions.matching import contains_answer, contains_regex
from realm_hf.metrics import score_each

_DESCRIPTION = """
recall@k: the share of questions for which one of the first k passages holds one of the right answers, as a run of
whole tokens, or found by one of the question's regular expressions. The measure of retrievers.
"""
_INPUTS = """
Args:
    predictions (list of lists of str): The texts of each question's passages, the best first.
    references (list of lists of str): The right answers of each question, or its regular expressions; at least one.
    ks (sequence of int): Depths. Default: (1, 5, 20). A question with fewer passages is judged by those it has.
    regex (bool): The references are regular expressions, as CuratedTREC's are. Default: False.
Returns:
    recall@k (float): One for each depth, from 0 to 1.
Raises:
    ValueError: a depth below 1, a question without any answer or with an invalid expression.
Examples:
    >>> metric = evaluate.load(metric_path("answer_recall"))
    >>> metric.compute(predictions=[["Rome is old.", "Paris lies on the Seine."]], references=[["Seine"]], ks=(1, 5))
    {"recall@1": 0.0, "recall@5": 1.0}
"""
_CITATION = """
@inproceedings{karpukhin2020dense,
  title={Dense Passage Retrieval for Open-Domain Question Answering},
  author={Karpukhin, Vladimir and Oguz, Barlas and Min, Sewon and Lewis, Patrick and Wu, Ledell and Edunov, Sergey and
    Chen, Danqi and Yih, Wen-tau},
  booktitle={Proceedings of EMNLP},
  year={2020}
}
"""


class AnswerRecall(evaluate.Metric):
    """Recall by answer string as an `evaluate` module."""

    def _info(self) -> evaluate.MetricInfo:
        strings = datasets.List(datasets.Value("string"))
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": strings, "references": strings}),
        )

    def _compute(
        self,
        predictions: list[list[str]],
        references: list[list[str]],
        ks: Sequence[int] = (1, 5, 20),
        regex: bool = False,
    ) -> dict[str, float]:
        if not ks or min(ks) < 1:
            raise ValueError(f"ks must hold depths of at least 1, but got {ks!r}.")
        holds = contains_regex if regex else contains_answer

        def rank(passages: Sequence[str], answers: Sequence[str]) -> int:
            """Place of the first of the passages that holds an answer, from 0; as large as any depth if none does."""
            found = (place for place, text in enumerate(passages[: max(ks)]) if holds(text, answers))
            return next(found, max(ks))

        ranks = score_each(rank, predictions, references)
        return {f"recall@{k}": sum(place < k for place in ranks) / len(ranks) for k in ks}
