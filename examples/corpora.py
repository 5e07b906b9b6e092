"""What `pretrain.py` and `train_inverse_cloze.py` share: a knowledge corpus as passages, and a model to start from."""

import json
import logging
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from accelerate import Accelerator
from transformers import AutoConfig

from realm_hf import RealmForPreTraining, RealmTokenizer
from realm_hf.data import PassageStore, build_passages, load_documents, passages_from_rows
from realm_hf.training import RankGroup, TrainingLoop, TrainingResult, resume_command, save_trained_model

# Longest that the preparation of a corpus may use no processor: it may download, in threads, for hours.
_DOWNLOAD_SECONDS = 24 * 3600.0


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
    num_proc: int = field(default=1, metadata={"help": "Processes that prepare the corpora."})


@dataclass
class ModelArguments:
    """Parameters that control the initial weights."""

    model_name_or_path: str = field(metadata={"help": "Any BERT checkpoint, or a REALM one to go on from."})
    pooler: Literal["checkpoint", "identity"] = field(
        default="checkpoint",
        metadata={"help": "identity keeps the geometry of [CLS]: for sentence encoders, and BERTs without a pooler."},
    )
    retriever_proj_size: int = field(default=128, metadata={"help": "Dimensions of an embedding."})
    score_scale: float = field(default=1.0, metadata={"help": "Factor on the retrieval score, before the softmax."})
    projection_dropout: float = field(default=0.1, metadata={"help": "Dropout on embeddings; 0.1 as released."})


def load_tokenizer(args: ModelArguments) -> RealmTokenizer:
    return RealmTokenizer.from_pretrained(args.model_name_or_path)


def load_model(args: ModelArguments, seed: int) -> RealmForPreTraining:
    config = AutoConfig.from_pretrained(args.model_name_or_path)
    # An encoder of `train_masked_lm.py` is of type "realm", too, but a start as a BERT is.
    if config.model_type == "realm" and "RealmKnowledgeAugEncoder" not in (config.architectures or []):
        return RealmForPreTraining.from_pretrained(args.model_name_or_path)
    return RealmForPreTraining.from_bert(
        args.model_name_or_path,
        pooler=args.pooler,
        seed=seed,
        retriever_proj_size=args.retriever_proj_size,
        score_scale=args.score_scale,
        projection_dropout=args.projection_dropout,
    )


def set_up_logging(accelerator: Accelerator) -> None:
    """Progress of the main process in words; warnings of all."""
    level = logging.INFO if accelerator.is_main_process else logging.WARNING
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("realm_hf").setLevel(level)


def end_interrupted(result: TrainingResult, accelerator: Accelerator) -> int:
    """Say how an interrupted training is taken up again; returns the exit status, which stops what would follow."""
    if accelerator.is_main_process:
        name = "it was told to stop" if result.signal is None else result.signal.name
        print(f"\nInterrupted ({name}) after step {result.step}; checkpoint: {result.checkpoint}")
        print(f"Go on with:\n  {resume_command()}", flush=True)
    accelerator.end_training()
    return result.exit_status


def train_and_save(trainer: TrainingLoop, tokenizer: RealmTokenizer, accelerator: Accelerator) -> int:
    """Train, and write RUN/model of a training that leaves checkpoints only; returns the exit status."""
    result = trainer.train()
    if result.interrupted:
        return end_interrupted(result, accelerator)
    if accelerator.is_main_process:
        print(f"Done at step {result.step}: {save_trained_model(trainer, tokenizer)}")
    accelerator.end_training()
    return 0


def once(directory: Path, settings: Any, build: Any) -> None:
    """Let the main process build `directory` unless it is there; the others wait for as long as it works. The
    Accelerator is made before.

    A build that was killed leaves no directory. What it had split and tagged is in the cache of `datasets`, so that
    the next one goes on from there.

    Raises:
        SystemExit: It is there, but was built with other settings.
    """
    ranks = RankGroup.of_all_ranks(stall_seconds=_DOWNLOAD_SECONDS)
    problem = ranks.on_main(lambda: _build_once(directory, settings, build), f"prepare {directory}")
    if problem is not None:
        raise SystemExit(problem)


def _build_once(directory: Path, settings: Any, build: Any) -> str | None:
    """What is wrong with the directory that is there already."""
    recorded = directory.with_name(f"{directory.name}-settings.json")
    asked = json.loads(json.dumps(settings))
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Before the directory: a kill between the two leaves no corpus whose settings nobody knows.
        recorded.write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
        build()
    had = json.loads(recorded.read_text(encoding="utf-8")) if recorded.exists() else asked
    if had == asked:
        return None
    differences = "; ".join(f"{n}: {had.get(n)!r} then, {asked[n]!r} now" for n in asked if had.get(n) != asked[n])
    return (
        f"{directory} was built with other settings ({differences}): go back to those, or choose another output_dir."
    )


def prepare_passages(
    args: KnowledgeArguments, tokenizer: RealmTokenizer, directory: Path, max_length: int
) -> PassageStore:
    """The knowledge corpus as passages in `directory`, built once."""
    title_column = None if args.title_column == "none" else args.title_column

    def build() -> None:
        documents = load_documents(args.knowledge_corpus, args.knowledge_split, name=args.knowledge_config)
        common = {"max_length": max_length, "title_column": title_column, "text_column": args.text_column}
        if args.rows_are_passages:
            passages_from_rows(documents, tokenizer, directory, num_proc=args.num_proc, **common)
        else:
            build_passages(
                documents, tokenizer, directory, min_sentences=args.min_sentences, num_proc=args.num_proc, **common
            )

    settings = {k: v for k, v in asdict(args).items() if k != "num_proc"} | {"max_length": max_length}
    once(directory, settings, build)
    return PassageStore(directory)
