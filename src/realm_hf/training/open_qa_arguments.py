"""The arguments of fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass, field

from realm_hf.models.cut_lengths import MAX_QUERY_LENGTH
from realm_hf.training.arguments import RefreshArguments, RefreshMode
from realm_hf.training.candidate_counts import written_mix


@dataclass
class OpenQATrainingArguments(RefreshArguments):
    """Parameters of fine-tuning (ORQA, section 6; REALM, section 4.3).

    The released code takes a learning rate of 1e-5 and a batch of one question, with 2 epochs for NaturalQuestions and
    20 for WebQuestions and CuratedTREC.
    """

    # Parameters that control the optimizer
    learning_rate: float = field(default=1e-5, metadata={"help": "Peak learning rate (released: 1e-5)."})

    # Parameters that control the question and its beam
    max_query_length: int = field(
        default=MAX_QUERY_LENGTH, metadata={"help": "Wordpieces of a question, special tokens included."}
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

    # Parameters that control what is learned from
    gold_passages: bool = field(
        default=False,
        metadata={"help": "Of each question a gold passage that holds the answer is read, whatever the index finds."},
    )
    candidate_mix: str | None = field(
        default=None,
        metadata={"help": "How many are read from where in training, e.g. bm25=2,dense=3; default: the beam's best."},
    )
    freeze_retriever: bool = field(
        default=False, metadata={"help": "Only the reader learns: the query tower stays as it is."}
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
        self._at_least(3, "max_query_length")
        self._at_least(1, "per_device_eval_batch_size")
        for name in ("searcher_beam_size", "reader_beam_size", "max_eval_questions", "early_stopping_patience"):
            if getattr(self, name) is not None:
                self._at_least(1, name)
        if self.candidate_mix is not None:
            if self.reader_beam_size is None:
                raise ValueError(f"candidate_mix is {self.candidate_mix!r}: give reader_beam_size too, their sum.")
            says = f"reader_beam_size is {self.reader_beam_size}"
            self.candidate_mix = written_mix(self.candidate_mix, self.reader_beam_size, says)
        if self.reader_seq_len is not None:
            self._at_least(4, "reader_seq_len")
        if self.freeze_retriever and (self.refresh != "off" or self.retriever_learning_rate is not None):
            raise ValueError(
                f"freeze_retriever is set, but refresh is {self.refresh!r} and retriever_learning_rate "
                f"{self.retriever_learning_rate}: a tower that does not learn needs neither. Drop them."
            )
        if self.early_stopping_patience is not None and self.eval_steps == 0:
            raise ValueError(
                f"early_stopping_patience is {self.early_stopping_patience}, but eval_steps is 0: there would be no "
                "evaluation to wait for. Set eval_steps, or drop the patience."
            )
