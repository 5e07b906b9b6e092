"""What the programs are told, as dataclasses that become their options; the programs themselves take long to import.

Options that a training has in Python too are in `realm_hf.training`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from realm_hf.cli.corpus_arguments import (
    EngineArguments,
    KnowledgeArguments,
    LengthArguments,
    SentenceArguments,
)
from realm_hf.models.cut_lengths import MAX_PASSAGE_LENGTH, MAX_QUERY_LENGTH
from realm_hf.training.arguments import (
    InverseClozeTrainingArguments,
    MaskedLMTrainingArguments,
    RealmTrainingArguments,
    RecurringSpanTrainingArguments,
)
from realm_hf.training.open_qa_arguments import OpenQATrainingArguments

__all__ = [
    "ARGUMENTS",
    "AskedArguments",
    "EncoderArguments",
    "EngineArguments",
    "EvaluationArguments",
    "KnowledgeArguments",
    "LengthArguments",
    "MeasureArguments",
    "ModelAndCorpusArguments",
    "ModelArguments",
    "PassageArguments",
    "PreTrainingArguments",
    "QuestionArguments",
    "SentenceArguments",
    "StartArguments",
    "WarmStartArguments",
]


@dataclass
class ModelArguments:
    """Parameters that control the initial weights."""

    model_name_or_path: str = field(metadata={"help": "Any BERT checkpoint, or a REALM one to go on from."})
    pooler: Literal["checkpoint", "identity"] = field(
        default="checkpoint",
        metadata={"help": "identity keeps the geometry of [CLS]: for sentence encoders, and BERTs without a pooler."},
    )
    pooling_mode: Literal["cls", "mean"] | None = field(
        default=None,
        metadata={
            "help": "What is embedded: [CLS], or the mean of the tokens. Default: cls, or what a folder of "
            "sentence-transformers (modules.json) says; so for the next six."
        },
    )
    projection: Literal["layer_norm", "linear", "pca", "none"] | None = field(
        default=None,
        metadata={
            "help": "What follows: linear and LayerNorm (paper; default), linear, linear fitted on passages, nothing."
        },
    )
    normalize: bool | None = field(
        default=None,
        metadata={
            "help": "Embeddings of length 1, as most sentence encoders'. Default: no.",
            "nargs": "?",  # a switch, as an option of two values is
            "const": True,
        },
    )
    query_prompt: str | None = field(
        default=None, metadata={"help": "Text before each query, e.g. 'query: '. Default: none."}
    )
    document_prompt: str | None = field(
        default=None, metadata={"help": "Text before each passage, e.g. 'passage: '. Default: none."}
    )
    document_format: Literal["pair", "joined"] | None = field(
        default=None,
        metadata={"help": "Title and text as a pair, or joined to one text, for tools without pairs. Default: pair."},
    )
    retriever_proj_size: int | None = field(
        default=None,
        metadata={"help": "Dimensions of an embedding; with --projection none the encoder's own. Default: 128."},
    )
    score_scale: str | None = field(
        default=None,
        metadata={
            "help": "Factor on the retrieval score: a number, or auto. Default: 1, the paper's; 20 if normalized."
        },
    )
    projection_dropout: float = field(default=0.1, metadata={"help": "Dropout on embeddings; 0.1 as released."})


@dataclass
class EncoderArguments:
    """Parameters that control the initial weights, and what is held out."""

    model_name_or_path: str | None = field(default=None, metadata={"help": "Any encoder, head or none."})
    from_nothing: str | None = field(
        default=None, metadata={"help": "Sizes of a new encoder: hidden_size=256,... or model_type=roberta,..."}
    )
    vocab_size: int = field(default=8192, metadata={"help": "Tokens of a new encoder's own vocabulary."})
    heldout_fraction: float = field(default=0.01, metadata={"help": "Share of the articles held out."})

    def __post_init__(self) -> None:
        if (self.model_name_or_path is None) == (self.from_nothing is None):
            raise ValueError("Give --model_name_or_path or --from_nothing, one of the two.")


@dataclass
class EvaluationArguments:
    """Parameters that control which questions the retrieval is asked at evaluations, and at swaps of the index."""

    eval_questions: str | None = field(
        default=None, metadata={"help": "Questions (JSON lines, Parquet, Hub): recall and nDCG while training."}
    )
    eval_gold_column: str | None = field(
        default=None,
        metadata={"help": "Column of their gold passages, numbers of documents or texts; default: judge by answers."},
    )


@dataclass
class WarmStartArguments:
    """Parameters that control the warm starts: masked LM, the inverse cloze task (section 3.4), recurring spans."""

    masked_lm_steps: int = field(default=0, metadata={"help": "Optimizer steps of the encoder; 0 leaves it out."})
    masked_lm_batch_size: int = field(default=32, metadata={"help": "Sequences a device forwards at once."})
    masked_lm_accumulation_steps: int = field(default=1, metadata={"help": "Times that."})
    masked_lm_learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    masked_lm_warmup_steps: int = field(default=0, metadata={"help": "Linear warm-up."})
    masked_lm_max_length: int = field(default=128, metadata={"help": "Wordpieces of a sequence."})
    masked_lm_pair_probability: float = field(
        default=0.5, metadata={"help": "How often a second passage that shares a masked span is joined."}
    )
    inverse_cloze_steps: int = field(default=0, metadata={"help": "Optimizer steps; 0 leaves the warm start out."})
    inverse_cloze_batch_size: int = field(default=32, metadata={"help": "Sentences a device embeds at once."})
    inverse_cloze_accumulation_steps: int = field(
        default=1, metadata={"help": "Times that: by gradient caching all are negatives of all (paper: 4096)."}
    )
    inverse_cloze_learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    inverse_cloze_warmup_steps: int = field(default=0, metadata={"help": "Linear warm-up."})
    inverse_cloze_keep_probability: float = field(
        default=0.1, metadata={"help": "How often the sentence stays in its passage."}
    )
    inverse_cloze_mask_probability: float = field(
        default=0.0,
        metadata={"help": "How often words of the sentence are masked; for encoders that never met [MASK]."},
    )
    recurring_span_steps: int = field(default=0, metadata={"help": "Optimizer steps; 0 leaves the warm start out."})
    recurring_span_batch_size: int = field(default=32, metadata={"help": "Queries a device embeds at once."})
    recurring_span_accumulation_steps: int = field(default=1, metadata={"help": "Times that, by gradient caching."})
    recurring_span_learning_rate: float = field(default=1e-4, metadata={"help": "Peak learning rate."})
    recurring_span_warmup_steps: int = field(default=0, metadata={"help": "Linear warm-up."})
    recurring_span_keep_probability: float = field(
        default=0.5, metadata={"help": "How often the span stays in the query."}
    )


@dataclass
class PreTrainingArguments(RealmTrainingArguments):
    """Parameters of pre-training, with the released warm-up unless another is given."""

    warmup_steps: int = field(
        default=-1,
        metadata={
            "help": "Steps in which the rate rises to its peak; -1: a tenth of max_steps, within 100 and 10,000."
        },
    )
    index_from: str | None = field(
        default=None,
        metadata={
            "help": "A run whose newest index serves first, if it is of this tower; default: built at the start."
        },
    )


@dataclass
class QuestionArguments:
    """Parameters that control the questions."""

    train_questions: str = field(
        metadata={"help": "JSON lines or Parquet with question and answer(s), or a Hub id such as nq_open."}
    )
    train_split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    dev_questions: str | None = field(default=None, metadata={"help": "The same, to evaluate on."})
    dev_split: str = field(default="validation", metadata={"help": "Split of a Hub dataset."})
    dev_fraction: float = field(
        default=0.0, metadata={"help": "Without dev_questions: hold out this share of the training questions."}
    )
    questions_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    question_column: str = field(default="question", metadata={"help": "Column of the question."})
    answer_column: str | None = field(
        default=None, metadata={"help": "Column of the answers; default: answers or answer."}
    )
    gold_column: str = field(
        default="passage",
        metadata={"help": "With gold_passages: column of the gold passages, numbers of documents or texts."},
    )
    regex_answers: bool = field(
        default=False, metadata={"help": "The answers are regular expressions, as in CuratedTREC."}
    )


@dataclass
class PassageArguments(KnowledgeArguments):
    """Parameters that control the knowledge corpus: by default that of the model's own run."""

    knowledge_corpus: str | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "Documents: a Hub id, a file (parquet, jsonl, csv, txt), or a directory."}
    )
    passages: str | None = field(default=None, metadata={"help": "A passage store in place of documents."})
    max_candidate_length: int = field(
        default=MAX_PASSAGE_LENGTH, metadata={"help": "Wordpieces of a passage that is cut here, specials included."}
    )


@dataclass
class StartArguments(ModelArguments):
    """Parameters that control the initial weights."""

    index_from: str | None = field(
        default=None, metadata={"help": "A run whose newest index is taken over; default: the model's own."}
    )
    max_span_width: int | None = field(
        default=None, metadata={"help": "Wordpieces of the longest answer; default: what the model says (10)."}
    )


@dataclass
class ModelAndCorpusArguments:
    """Parameters that control who answers, and out of what."""

    model: str = field(metadata={"help": "A RealmForOpenQA, as fine-tuning saves it."})
    output_dir: str = field(metadata={"help": "Where figures, predictions and report go."})
    retriever: str | None = field(default=None, metadata={"help": "A RealmRetriever; default: the model's directory."})
    top_k: int | None = field(default=None, metadata={"help": "Passages read a question; default: the model's (5)."})
    batch_size: int = field(default=32, metadata={"help": "Questions a process reads at once."})
    max_query_length: int = field(
        default=MAX_QUERY_LENGTH, metadata={"help": "Wordpieces of a question; the rest is cut."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Compute on the CPU even if there is a GPU."})


@dataclass
class AskedArguments:
    """Parameters that control what is asked."""

    benchmark: str | None = field(
        default=None, metadata={"help": "One of nq_open, web_questions, squad, curated_trec."}
    )
    questions: str | None = field(
        default=None, metadata={"help": "JSON lines or Parquet with question and answer(s), or a Hub id."}
    )
    split: str | None = field(default=None, metadata={"help": "Split of a Hub dataset; default: the benchmark's."})
    questions_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    question_column: str = field(default="question", metadata={"help": "Column of the question."})
    answer_column: str | None = field(
        default=None, metadata={"help": "Column of the answers; default: answers or answer."}
    )
    regex_answers: bool = field(
        default=False, metadata={"help": "The answers are regular expressions, as curated_trec's always are."}
    )
    max_questions: int | None = field(default=None, metadata={"help": "Ask only the first so many."})


@dataclass
class MeasureArguments:
    """Parameters that control what is measured."""

    ks: list[int] = field(default_factory=lambda: [1, 5, 20], metadata={"help": "Depths of recall."})
    latency_questions: int = field(default=100, metadata={"help": "Questions asked one at a time, for the latency."})
    retrieval_utility: bool = field(
        default=True, metadata={"help": "Read every question with another one's passages too, and subtract."}
    )
    report_questions: int = field(default=1000, metadata={"help": "Questions that the HTML page shows."})


_PRETRAINING = (
    *(KnowledgeArguments, SentenceArguments, EvaluationArguments),
    *(ModelArguments, WarmStartArguments, PreTrainingArguments),
)
_TOWERS = (KnowledgeArguments, LengthArguments, ModelArguments, EvaluationArguments)
ARGUMENTS: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "prepare": (*_PRETRAINING, EngineArguments),
        "pretrain": _PRETRAINING,
        "warm-start inverse-cloze": (*_TOWERS, InverseClozeTrainingArguments),
        "warm-start recurring-spans": (*_TOWERS, RecurringSpanTrainingArguments),
        "warm-start masked-lm": (KnowledgeArguments, LengthArguments, EncoderArguments, MaskedLMTrainingArguments),
        "finetune": (
            *(QuestionArguments, PassageArguments, StartArguments),
            *(EvaluationArguments, OpenQATrainingArguments),
        ),
        "evaluate": (ModelAndCorpusArguments, AskedArguments, MeasureArguments),
    }
)
"""Of each program, in the order in which it takes them."""
