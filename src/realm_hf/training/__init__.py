"""Training: arguments, data order, prefetched candidates, optimization, checkpoints, log, and the five trainers.

Names are imported when they are first used: who reads a log or an argument should not pay for the trainers.
"""

from typing import TYPE_CHECKING

from realm_hf.lazy_exports import lazy_exports

if TYPE_CHECKING:
    from realm_hf.refresh.rank_group import RankGroup
    from realm_hf.training.arguments import (
        InverseClozeTrainingArguments,
        MaskedLMTrainingArguments,
        RealmTrainingArguments,
        RecurringSpanTrainingArguments,
    )
    from realm_hf.training.callbacks import RealmCallback
    from realm_hf.training.checkpoints import list_checkpoints
    from realm_hf.training.command_line import parse_arguments
    from realm_hf.training.data_order import permute
    from realm_hf.training.inverse_cloze import InverseClozeTrainer
    from realm_hf.training.loop import TrainingLoop
    from realm_hf.training.masked_lm import MaskedLMTrainer
    from realm_hf.training.open_qa import OpenQATrainer
    from realm_hf.training.open_qa_arguments import OpenQATrainingArguments
    from realm_hf.training.optimization import make_accelerator
    from realm_hf.training.pretraining import RealmTrainer
    from realm_hf.training.recurring_spans import RecurringSpanTrainer
    from realm_hf.training.result import TrainingResult
    from realm_hf.training.retrieval_evaluation import RetrievalQuestions
    from realm_hf.training.run_retriever import save_trained_model
    from realm_hf.training.signals import resume_command

__all__ = [
    "InverseClozeTrainer",
    "InverseClozeTrainingArguments",
    "MaskedLMTrainer",
    "MaskedLMTrainingArguments",
    "OpenQATrainer",
    "OpenQATrainingArguments",
    "RankGroup",
    "RealmCallback",
    "RealmTrainer",
    "RealmTrainingArguments",
    "RecurringSpanTrainer",
    "RecurringSpanTrainingArguments",
    "RetrievalQuestions",
    "TrainingLoop",
    "TrainingResult",
    "list_checkpoints",
    "make_accelerator",
    "parse_arguments",
    "permute",
    "resume_command",
    "save_trained_model",
]

__getattr__, __dir__ = lazy_exports(
    __name__,
    {
        ".refresh.rank_group": ["RankGroup"],
        "arguments": [
            "InverseClozeTrainingArguments",
            "MaskedLMTrainingArguments",
            "RealmTrainingArguments",
            "RecurringSpanTrainingArguments",
        ],
        "command_line": ["parse_arguments"],
        "callbacks": ["RealmCallback"],
        "checkpoints": ["list_checkpoints"],
        "data_order": ["permute"],
        "inverse_cloze": ["InverseClozeTrainer"],
        "loop": ["TrainingLoop"],
        "masked_lm": ["MaskedLMTrainer"],
        "open_qa": ["OpenQATrainer"],
        "open_qa_arguments": ["OpenQATrainingArguments"],
        "optimization": ["make_accelerator"],
        "pretraining": ["RealmTrainer"],
        "recurring_spans": ["RecurringSpanTrainer"],
        "result": ["TrainingResult"],
        "retrieval_evaluation": ["RetrievalQuestions"],
        "run_retriever": ["save_trained_model"],
        "signals": ["resume_command"],
    },
)
