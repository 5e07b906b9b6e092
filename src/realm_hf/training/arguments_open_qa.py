"""What fine-tuning for open-domain question answering is told."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Self

from realm_hf.models.configuration_realm import MAX_QUERY_LENGTH
from realm_hf.training.arguments import RefreshArguments, RefreshMode


@dataclass
class OpenQATrainingArguments(RefreshArguments):
    """Parameters of fine-tuning (ORQA, section 6; REALM, section 4.3).

    The released code takes a learning rate of 1e-5 and a batch of one question, with 2 epochs for NaturalQuestions and
    20 for WebQuestions and CuratedTREC.
    """

    # Parameters that control how long it trains
    num_train_epochs: float | None = field(
        default=None, metadata={"help": "Passes over the questions, in place of max_steps."}
    )
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate (released: 1e-5)."})

    # Parameters that control the question and its beam
    max_question_length: int = field(
        default=MAX_QUERY_LENGTH, metadata={"help": "Wordpieces of a question, specials included."}
    )
    searcher_beam_size: int | None = field(
        default=None,
        metadata={"help": "Passages in the retriever's loss; default: what the model says (5000), or the corpus."},
    )
    reader_beam_size: int | None = field(
        default=None, metadata={"help": "Passages that are read; default: what the model says (5)."}
    )
    reader_seq_len: int | None = field(
        default=None,
        metadata={"help": "Wordpieces of question and passage together; default: the model's `reader_seq_len`."},
    )

    # Parameters that control the index. Off by default: the passages' vectors stay as pre-training left them.
    refresh: RefreshMode = field(
        default="off", metadata={"help": "off, or sync, async, external: the query tower embeds the passages anew."}
    )

    # Parameters that control the evaluation on the development questions
    per_device_eval_batch_size: int = field(default=16, metadata={"help": "Questions a device answers at once."})
    max_eval_questions: int | None = field(
        default=None, metadata={"help": "Evaluate on the first so many; default: on all."}
    )
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "End after so many evaluations without a better exact match."}
    )

    # Parameters that control what is left behind
    save_retriever: bool = field(
        default=True, metadata={"help": "Put passages, index and passage tower beside the model: RUN/model answers."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._at_least(3, "max_question_length")
        self._at_least(1, "per_device_eval_batch_size")
        for name in ("searcher_beam_size", "reader_beam_size", "max_eval_questions", "early_stopping_patience"):
            if getattr(self, name) is not None:
                self._at_least(1, name)
        if self.reader_seq_len is not None:
            self._at_least(4, "reader_seq_len")
        if self.num_train_epochs is not None and not self.num_train_epochs > 0:
            raise ValueError(f"num_train_epochs is {self.num_train_epochs}. Give a positive number, or use max_steps.")
        if self.early_stopping_patience is not None and self.eval_steps == 0:
            raise ValueError(
                f"early_stopping_patience is {self.early_stopping_patience}, but eval_steps is 0: there would be no "
                "evaluation to wait for. Set eval_steps, or drop the patience."
            )

    def resolved(self, questions: int, processes: int) -> Self:
        """These arguments with `num_train_epochs` turned into `max_steps`.

        Args:
            questions: Training questions.
            processes: Processes that train.
        """
        if self.num_train_epochs is None:
            return self
        step = self.per_device_train_batch_size * self.gradient_accumulation_steps * processes
        return replace(self, max_steps=max(1, math.ceil(self.num_train_epochs * questions / step)))
