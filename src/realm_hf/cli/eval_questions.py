"""The questions whose retrieval is measured while a command trains."""

from dataclasses import dataclass, field

from realm_hf.data import OpenQAExample, load_questions

__all__ = ["EvaluationArguments", "load_eval_questions"]


@dataclass
class EvaluationArguments:
    """Parameters that control which questions are asked of the retrieval at evaluations, and at swaps of the index."""

    eval_questions: str | None = field(
        default=None, metadata={"help": "Questions (JSON lines, Parquet, Hub): recall and nDCG while training."}
    )
    eval_gold_column: str | None = field(
        default=None,
        metadata={"help": "Column of their gold passages, numbers of documents or texts; default: judge by answers."},
    )


def load_eval_questions(args: EvaluationArguments) -> list[OpenQAExample]:
    """The questions; none by default."""
    if args.eval_questions is None:
        return []
    return load_questions(args.eval_questions, gold_column=args.eval_gold_column, need_answers=False)
