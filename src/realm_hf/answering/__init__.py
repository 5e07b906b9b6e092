"""Questions in, answers out, with the passages that they rest on."""

from .answerer import QuestionAnswerer, RetrievedQuestions
from .answers import Answer, Evidence

__all__ = ["Answer", "Evidence", "QuestionAnswerer", "RetrievedQuestions"]
