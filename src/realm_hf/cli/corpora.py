"""What the commands that train share: corpora as passages and sentences, a model to start from, and how they end."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from realm_hf.cli.arguments import KnowledgeArguments, ModelArguments, SentenceArguments
from realm_hf.data import (
    PassageStore,
    RecurringMasks,
    RecurringSpans,
    SentenceStore,
    articles_of,
    build_passages,
    build_sentences,
    find_recurring_masks,
    find_recurring_spans,
    load_documents,
    passages_from_rows,
    tagger_from_name,
)
from realm_hf.generations.projection import fit_projection
from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.modeling_realm import RealmForPreTraining
from realm_hf.models.sentence_transformer_reading import find_folder
from realm_hf.models.tokenization_realm import RealmTokenizer
from realm_hf.storage.files import write_json
from realm_hf.training import (
    RankGroup,
    RealmTrainingArguments,
    TrainingLoop,
    TrainingResult,
    resume_command,
    save_trained_model,
)

# Settings on which a corpus does not depend.
_HOW_IT_IS_READ = ("num_proc", "streaming")
# Longest that the preparation of a corpus may use no processor: it may download, in threads, for hours.
_DOWNLOAD_SECONDS = 24 * 3600.0


_READING: dict[str, Any] = {
    "pooling_mode": "cls",
    "projection": "layer_norm",
    "normalize": False,
    "query_prompt": "",
    "document_prompt": "",
    "document_format": "pair",
    "retriever_proj_size": RealmConfig.retriever_proj_size,
}
"""How an encoder is read where neither the caller nor a folder of sentence-transformers says it: as in the paper."""


def is_another_encoder(config: PreTrainedConfig) -> bool:
    """Whether a model is made of another encoder than BERT, or is one."""
    if config.model_type == "realm":
        return config.embedder_config is not None or config.encoder_config is not None
    return bool(config.model_type != "bert")


def tokenizer_of(name_or_path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model, of any encoder."""
    if is_another_encoder(AutoConfig.from_pretrained(name_or_path)):
        # By its own class: a model of type "realm" would name BERT's.
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(name_or_path)
        return tokenizer
    return RealmTokenizer.from_pretrained(name_or_path)


def load_tokenizer(args: ModelArguments) -> PreTrainedTokenizerBase:
    """The tokenizer of the model that is started from."""
    return tokenizer_of(args.model_name_or_path)


def load_model(args: ModelArguments, seed: int, passages: PassageStore | None = None) -> RealmForPreTraining:
    """The initial model. Its projection is fitted on `passages`, if they are given, where `projection` is pca."""
    config = AutoConfig.from_pretrained(args.model_name_or_path)
    # An encoder of `warm-start masked-lm` is of type "realm", too, but a start as a BERT is.
    if config.model_type == "realm" and "RealmKnowledgeAugEncoder" not in (config.architectures or []):
        return RealmForPreTraining.from_pretrained(args.model_name_or_path)
    asked = {name: getattr(args, name) for name in _READING}
    fields = {name: value for name, value in asked.items() if value is not None}
    if find_folder(args.model_name_or_path) is None:
        fields = _READING | fields
    if fields.get("projection") == "none":
        fields.pop("retriever_proj_size", None)
    elif fields.get("projection") == "pca":
        fields["projection"] = "linear"
    fields["projection_dropout"] = args.projection_dropout
    if args.score_scale is not None:
        fields["score_scale"] = args.score_scale if args.score_scale == "auto" else float(args.score_scale)
    name = args.model_name_or_path
    if is_another_encoder(config):
        # As of a BERT: an encoder without a prediction head, such as a sentence encoder, begins with a new one.
        model = RealmForPreTraining.from_encoders(embedder=name, encoder=name, seed=seed, new_head=True, **fields)
    else:
        model = RealmForPreTraining.from_bert(name, pooler=args.pooler, seed=seed, **fields)
    if args.projection == "pca" and passages is not None:
        fit_projection([model.embedder, model.query_embedder], passages)
    return model


def end_interrupted(result: TrainingResult, accelerator: Accelerator) -> int:
    """Say how an interrupted training is taken up again; returns the exit status, which stops what would follow."""
    if accelerator.is_main_process:
        name = "it was told to stop" if result.signal is None else result.signal.name
        print(f"\nInterrupted ({name}) after step {result.step}; checkpoint: {result.checkpoint}")
        print(f"Go on with:\n  {resume_command()}", flush=True)
    accelerator.end_training()
    return result.exit_status


def train_and_save(trainer: TrainingLoop, tokenizer: PreTrainedTokenizerBase, accelerator: Accelerator) -> int:
    """Train, and write RUN/model of a training that leaves checkpoints only; returns the exit status."""
    result = trainer.train()
    if result.interrupted:
        return end_interrupted(result, accelerator)
    if accelerator.is_main_process:
        print(f"Done at step {result.step}: {save_trained_model(trainer, tokenizer)}")
    accelerator.end_training()
    return 0


def once(directory: Path, settings: dict[str, Any], build: Callable[[], object], *, shared: bool = False) -> None:
    """Let the main process build `directory` unless it is there; the others wait for as long as it works. The
    Accelerator is made before.

    A build that was killed leaves no directory. What it had finished is kept beside it, or in the cache of `datasets`,
    so that the next one goes on from there.

    Args:
        directory (`Path`): What is built.
        settings (`dict[str, Any]`): What it depends on.
        build (`Callable`): Builds it.
        shared (`bool`, *optional*, defaults to `False`): `build` shares the work with all processes that call it: the
            first process of each node does.

    Raises:
        SystemExit: It is there, but was built with other settings.
        RefreshError: A node could not do its share.
    """
    ranks = RankGroup.of_all_ranks(stall_seconds=_DOWNLOAD_SECONDS)
    what = f"prepare {directory}"
    if shared and _several_nodes(ranks.world_size):
        begins_node = os.environ.get("LOCAL_RANK") == "0"
        problem = ranks.together(what, lambda: _build_once(directory, settings, build) if begins_node else None)
        problem = ranks.broadcast(problem or "") or None
    else:
        problem = ranks.on_main(lambda: _build_once(directory, settings, build), what)
    if problem is not None:
        raise SystemExit(problem)


def _several_nodes(processes: int) -> bool:
    """Whether the launcher has started them on several nodes."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", processes)) < processes


def _build_once(directory: Path, settings: dict[str, Any], build: Callable[[], object]) -> str | None:
    """What is wrong with the directory that is there already."""
    recorded = directory.with_name(f"{directory.name}-settings.json")
    asked = json.loads(json.dumps(settings))
    if not directory.exists():
        directory.parent.mkdir(parents=True, exist_ok=True)
        # Before the directory: a kill between the two leaves no corpus whose settings nobody knows.
        write_json(recorded, asked, durable=False)
        try:
            build()
        except FileExistsError:
            if not directory.exists():
                raise
            # Others who prepare it, too, were ready while this process came to it.
    had = json.loads(recorded.read_text(encoding="utf-8")) if recorded.exists() else asked
    if had == asked:
        return None
    differences = "; ".join(f"{n}: {had.get(n)!r} then, {asked[n]!r} now" for n in asked if had.get(n) != asked[n])
    return (
        f"{directory} was built with other settings ({differences}): go back to those, or choose another output_dir."
    )


def prepare_passages(
    args: KnowledgeArguments, tokenizer: PreTrainedTokenizerBase, directory: Path, max_length: int
) -> PassageStore:
    """The knowledge corpus as passages in `directory`, built once."""
    title_column = None if args.title_column == "none" else args.title_column

    def build() -> None:
        documents = args.documents()
        common: dict[str, Any] = {
            "max_length": max_length,
            "title_column": title_column,
            "text_column": args.text_column,
        }
        if args.rows_are_passages:
            passages_from_rows(documents, tokenizer, directory, num_proc=args.num_proc, **common)
        else:
            build_passages(
                documents,
                tokenizer,
                directory,
                min_sentences=args.min_sentences,
                num_proc=args.num_proc,
                **common,
            )

    settings = {k: v for k, v in asdict(args).items() if k not in _HOW_IT_IS_READ} | {"max_length": max_length}
    once(directory, settings, build, shared=True)
    return PassageStore(directory)


def prepare_sentences(
    knowledge: KnowledgeArguments,
    corpus: SentenceArguments,
    args: RealmTrainingArguments,
    tokenizer: PreTrainedTokenizerBase,
    directory: Path,
) -> SentenceStore:
    """The pre-training corpus as tagged sentences in `directory`, built once."""
    if corpus.pretraining_corpus is None:
        source = (knowledge.knowledge_corpus, knowledge.knowledge_split, knowledge.knowledge_config)
        column = knowledge.text_column
    else:
        source = (corpus.pretraining_corpus, corpus.pretraining_split, corpus.pretraining_config)
        column = corpus.pretraining_text_column

    def build() -> None:
        build_sentences(
            load_documents(source[0], source[1], name=source[2], streaming=knowledge.streaming),
            tokenizer,
            tagger_from_name(corpus.tagger),
            directory,
            max_query_length=args.max_query_length,
            heldout_fraction=corpus.heldout_fraction,
            text_column=column,
            num_proc=knowledge.num_proc,
        )

    settings = {**asdict(corpus), "source": list(source), "column": column, "max_query_length": args.max_query_length}
    once(directory, settings, build, shared=True)
    return SentenceStore(directory)


def prepare_masks(
    sentences: SentenceStore, passages: PassageStore, tokenizer: PreTrainedTokenizerBase, run: Path
) -> RecurringMasks:
    """Which salient spans other passages hold, found once."""
    path = run / "recurring-masks.npz"
    settings = {"sentences": sentences.fingerprint, "passages": passages.fingerprint}
    once(path, settings, lambda: find_recurring_masks(sentences, passages, tokenizer).save(path))
    return RecurringMasks.load(path, passages, sentences)


def recurring_spans_of(passages: PassageStore, tokenizer: PreTrainedTokenizerBase, run: Path) -> RecurringSpans:
    """The spans that passages of one article share, found once, in RUN/recurring.npz."""
    path = run / "recurring.npz"
    settings = {"passages": passages.fingerprint}
    once(path, settings, lambda: find_recurring_spans(passages, tokenizer).save(path))
    return RecurringSpans.load(path, passages)


def hold_out_articles(passages: PassageStore, fraction: float = 0.01) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows to train on, and rows to evaluate on, whole articles of each: a passage says what its neighbours say. The
    latter are `None` if that is no row at all.
    """
    articles = articles_of(passages)
    held_out = np.random.default_rng(0).random(int(articles[-1]) + 1)[articles] < fraction
    return np.flatnonzero(~held_out), np.flatnonzero(held_out) if held_out.any() else None
