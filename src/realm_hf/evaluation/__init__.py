"""How well questions are answered: scores, predictions with their evidence, and what retrieval is worth."""

from .open_qa import evaluate_open_qa
from .predictions import read_predictions, write_predictions
from .results import OpenQAResult, QuestionRecord

__all__ = ["OpenQAResult", "QuestionRecord", "evaluate_open_qa", "read_predictions", "write_predictions"]
