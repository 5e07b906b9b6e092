"""What the programs are told of corpora, and of how they are prepared."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from realm_hf import data
from realm_hf.models.cut_lengths import MAX_PASSAGE_LENGTH

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

__all__ = ["EngineArguments", "KnowledgeArguments", "LengthArguments", "SentenceArguments"]


@dataclass
class KnowledgeArguments:
    """Parameters that control the knowledge corpus: the passages that are retrieved."""

    knowledge_corpus: str = field(
        metadata={"help": "Documents: a Hub id, a file (parquet, jsonl, csv, txt), or a directory."}
    )
    knowledge_split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    knowledge_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    title_column: str = field(default="title", metadata={"help": "Column of the title; 'none' where there is none."})
    text_column: str = field(default="text", metadata={"help": "Column of the text."})
    rows_are_passages: bool = field(default=False, metadata={"help": "Take each row as one passage; do not cut."})
    min_sentences: int = field(default=1, metadata={"help": "Drop passages with fewer sentences."})
    streaming: bool = field(
        default=False,
        metadata={"help": "Read documents as they are needed, instead of downloading and converting them all first."},
    )
    num_proc: int = field(default=1, metadata={"help": "Processes that prepare the corpora, on each node."})

    def documents(self) -> Dataset | IterableDataset:
        """The documents, not yet cut; see [`load_documents`]."""
        return data.load_documents(
            self.knowledge_corpus, self.knowledge_split, name=self.knowledge_config, streaming=self.streaming
        )


@dataclass
class LengthArguments:
    """Parameters that control the passages' length, where training has none of its own."""

    max_candidate_length: int = field(
        default=MAX_PASSAGE_LENGTH, metadata={"help": "Wordpieces of a passage, specials included."}
    )


@dataclass
class SentenceArguments:
    """Parameters that control the pre-training corpus: the sentences whose spans are masked."""

    pretraining_corpus: str | None = field(
        default=None, metadata={"help": "Documents, as for knowledge_corpus, which is the default."}
    )
    pretraining_split: str = field(default="train", metadata={"help": "Split of a Hub dataset."})
    pretraining_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    pretraining_text_column: str = field(default="text", metadata={"help": "Column of the text."})
    tagger: str = field(
        default="rules", metadata={"help": "Finds salient spans: rules, spacy:PIPELINE, or hub:MODEL (BERT on CoNLL)."}
    )
    heldout_fraction: float = field(default=0.01, metadata={"help": "Share of the documents that is held out."})


@dataclass
class EngineArguments:
    """Parameters that control where the corpora are prepared."""

    engine: Literal["here", "ray"] = field(
        default="here", metadata={"help": "This process, or a Ray cluster that sees output_dir and the documents."}
    )
    workers: int = field(default=1, metadata={"help": "With --engine ray: how many, of num_proc processes each."})

    def __post_init__(self) -> None:
        if self.engine == "here" and self.workers != 1:
            raise ValueError(f"--workers {self.workers} needs --engine ray; here --num_proc says how many processes.")
