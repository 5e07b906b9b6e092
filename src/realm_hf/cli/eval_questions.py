"""The questions whose retrieval is measured while a command trains."""

from realm_hf.cli.arguments import EvaluationArguments
from realm_hf.data import OpenQAExample, load_questions

__all__ = ["load_eval_questions"]


def load_eval_questions(args: EvaluationArguments) -> list[OpenQAExample]:
    """The questions; none by default."""
    if args.eval_questions is None:
        return []
    return load_questions(args.eval_questions, gold_column=args.eval_gold_column, need_answers=False)
