"""The metrics of open-domain question answering as modules for the `evaluate` library, one folder each.

`evaluate.load` takes a folder's path without a network, and the folder's name is the metric's:

    import evaluate
    from realm_hf import metric_path

    evaluate.load(metric_path("exact_match")).compute(predictions=["Paris"], references=[["Paris", "Lutetia"]])

The rules themselves are in [`realm_hf.data.questions.matching`]. These modules exist so that scores of other systems,
and of other libraries' training loops, come from the same code; the package's own evaluation calls the rules directly.
"""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TypeVar

__all__ = ["METRICS", "metric_path", "score_each"]

METRICS = ("exact_match", "regex_match", "token_f1", "answer_recall")

_Prediction = TypeVar("_Prediction")
_Score = TypeVar("_Score")


def metric_path(name: str) -> str:
    """
    The folder of a metric, for `evaluate.load`.

    Args:
        name (`str`): One of `METRICS`.

    Returns:
        `str`: The path. A name alone would be looked up on the Hub.

    Raises:
        ValueError: there is no such metric.
    """
    if name not in METRICS:
        raise ValueError(f"there is no metric {name!r} here: choose one of {', '.join(METRICS)}.")
    return str(Path(__file__).parent / name)


def score_each(
    score: Callable[[_Prediction, Sequence[str]], _Score],
    predictions: Iterable[_Prediction],
    references: Iterable[Sequence[str]],
) -> list[_Score]:
    """
    The score of each prediction; an error says at which place it happened.

    Args:
        score (`Callable`): Takes a prediction and its right answers.
        predictions (`Iterable`): N of them.
        references (`Iterable[Sequence[str]]`): The right answers of each.

    Returns:
        `list`: N scores.

    Raises:
        ValueError: there are no predictions, a question has no answer, or a pattern is invalid.
        TimeoutError: a pattern backtracks without end.
    """
    scores = []
    for place, (prediction, answers) in enumerate(zip(predictions, references, strict=True)):
        try:
            scores.append(score(prediction, answers))
        except (ValueError, TimeoutError) as error:
            raise type(error)(f"at place {place} of predictions and references: {error}") from error
    if not scores:
        raise ValueError("there are no predictions, so there is no mean: give at least one.")
    return scores
