"""The way from an encoder to REALM in stages: start, warm start, reading, both learning. Arms share what they can."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState

from realm_hf import RealmForPreTraining
from realm_hf.data.questions.load import OpenQAExample
from realm_hf.data.sentences.recurring import RecurringMasks
from realm_hf.data.sentences.store import SentenceStore
from realm_hf.models.fingerprints import state_fingerprint
from realm_hf.models.precision import ENCODE_DTYPES
from realm_hf.retriever.candidates import CandidateSource, IndexSource
from realm_hf.retriever.mixed import MixedSource
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.loop_arguments import LoopArguments
from realm_hf.training.pretraining import RealmTrainer

from .contrastive_starts import contrastive_trainer, tasks_of
from .paragraph_corpus import KEPT_BACK, ParagraphCorpus
from .realm_variants import ShuffledPosterior, WithoutExclusion, WithoutNull
from .stages import Stage, Stages, seconds_of

_SAVE_STEPS = 50
_LATER = ("bm25_candidates", "in_batch_candidates", "freeze_encoder")


@dataclass(frozen=True)
class Variant:
    """What of REALM is changed in an arm; nothing by default.

    Args:
        masking: Another kind of mask, for reading and pre-training.
        arguments: Other arguments of the pre-training.
        dense: No candidate comes from BM25.
        exclusion: Passages that hold the sentence are left out.
        shuffled: The posterior is shuffled.
        null: The null passage is a candidate.
    """

    masking: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    dense: bool = False
    exclusion: bool = True
    shuffled: bool = False
    null: bool = True


def start_model(weights: str | Path, dimension: int | None, seed: int) -> RealmForPreTraining:
    """The encoder read as the mean of its tokens, as a unit vector; no dropout.

    Args:
        weights: A BERT.
        dimension: Of the embeddings, by a random projection; `None`: the encoder's own, without one.
        seed: Of what is random.
    """
    projection = {"projection": "none"} if dimension is None else {"retriever_proj_size": dimension}
    return RealmForPreTraining.from_bert(
        weights,
        pooler="identity",
        seed=seed,
        pooling_mode="mean",
        normalize=True,
        **{"projection": "linear", **projection},
        marginalization="span",
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        projection_dropout=0.0,
    )


def add_realm_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of reading and REALM, which [`RealmStages`] reads."""
    read = parser.add_argument_group("reading: the encoder learns, the towers rest")
    read.add_argument("--reading_steps", type=int, default=2000, help="at most")
    read.add_argument("--reading_utility", type=float, default=1.0, help="ends at so many nats a span, held out")
    read.add_argument("--reading_learning_rate", type=float, default=3e-4)
    read.add_argument("--reading_batch_size", type=int, help="default: that of REALM")
    read.add_argument("--reading_candidates", type=int, default=3, help="the null passage counted")
    both = parser.add_argument_group("REALM: both learn")
    both.add_argument("--max_query_length", type=int, default=40, help="wordpieces of a masked sentence")
    both.add_argument("--masking", choices=("answered", "recurring", "salient", "span", "uniform"), default="answered")
    both.add_argument("--max_steps", type=int, default=700)
    both.add_argument("--batch_size", type=int, default=16)
    both.add_argument("--num_candidates", type=int, default=5, help="the null passage counted")
    both.add_argument("--bm25_candidates", type=int, help="of them by BM25; default: half, as while reading")
    both.add_argument("--in_batch_candidates", action="store_true", help="those of the batch's other queries, unread")
    both.add_argument("--freeze_encoder", action="store_true", help="only the towers learn")
    both.add_argument("--learning_rate", type=float, default=1e-4, help="of the encoder")
    both.add_argument("--retriever_learning_rate", type=float, default=5e-5, help="of the towers")
    both.add_argument("--refresh_steps", type=int, default=175)
    both.add_argument("--encode_dtype", choices=ENCODE_DTYPES, default="auto", help="of the passages, at a refresh")
    both.add_argument("--eval_steps", type=int, default=100, help="of reading, too")


class StopReading(TrainerCallback):
    """Ends the reading stage once a passage is worth enough.

    Args:
        utility: Held-out utility, in nats a span, from which on no further step is taken.
    """

    def __init__(self, utility: float):
        self.utility = utility

    def on_evaluate(
        self,
        args: LoopArguments,  # noqa: ARG002 - transformers passes it
        state: TrainerState,  # noqa: ARG002
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        """After each evaluation."""
        control.should_training_stop |= metrics.get("eval_retrieval_utility", 0.0) >= self.utility


class RealmStages:
    """The stages of one command.

    Args:
        args: The command line; see benchmarks/real_text.py.
        corpus: Passages and all that belongs to them.
        asked: Train questions whose retrieval is measured while training.
    """

    def __init__(self, args: argparse.Namespace, corpus: ParagraphCorpus, asked: list[OpenQAExample]):
        self.args, self.corpus, self.asked = args, corpus, asked
        self.stages = Stages(Path(args.output_dir) / "stages")

    def first_model(self, seed: int) -> RealmForPreTraining:
        """What everything starts from."""
        return start_model(self.args.weights, self.args.dimension, seed)

    def start(self, seed: int) -> Stage:
        """The encoder with its towers, not yet trained."""
        model = self.first_model(seed)
        settings = {
            "weights": state_fingerprint(model.state_dict())[:16],
            "passages": self.corpus.passages.fingerprint,
        }

        def keep(run: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
            run.mkdir(parents=True, exist_ok=True)
            return model, {"seconds": 0.0, "steps": 0}

        return self.stages.get("start", seed, None, settings, keep)

    def warm_start(self, seed: int, arm: str, before: Stage | None = None, steps: int | None = None) -> Stage:
        """The contrastive warm start, or more of it after another stage."""
        args = self.args
        before, steps = before or self.start(seed), steps or args.warm_start_steps
        settings = {
            "per_device_train_batch_size": args.warm_start_batch_size,
            "learning_rate": args.warm_start_learning_rate,
            "max_query_length": args.max_query_length,
        }

        def train(run: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
            model, data = before.model(), self.corpus
            for number, (task, count) in enumerate(tasks_of(arm, steps)):
                part = run / f"{number}-{task}"
                contrastive_trainer(
                    task,
                    model,
                    data.passages,
                    data.tokenizer,
                    data.recurring,
                    part,
                    max_steps=count,
                    save_steps=_SAVE_STEPS,
                    save_total_limit=1,
                    # Another order than the warm start's, where it goes on.
                    seed=seed + 1000 * (before.facts["steps"] > 0),
                    **settings,
                ).train(resume_from_checkpoint=True).exit_if_interrupted()
            spent = round(sum(seconds_of(part) for part in run.iterdir()), 3)
            return model, {"seconds": spent, "steps": steps}

        return self.stages.get("warm_start", seed, before, {**settings, "arm": arm, "steps": steps}, train)

    def reading(self, seed: int, masking: str) -> Stage:
        """The encoder learns to read what the warm start finds, while the towers rest."""
        args = self.args
        settings = {
            "masking": masking,
            "max_steps": args.reading_steps,
            "freeze_retriever_steps": args.reading_steps,
            "learning_rate": args.reading_learning_rate,
            "num_candidates": args.reading_candidates,
            "encode_dtype": args.encode_dtype,
            "refresh": "off",
            "batch_size": args.reading_batch_size or args.batch_size,
        }
        variant = Variant(masking=masking)
        before = self.warm_start(seed, args.warm_start)

        def train(run: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
            model = before.model()
            return model, self._pretrain(model, run, seed, variant, settings, [StopReading(args.reading_utility)])

        return self.stages.get(
            "reading", seed, before, {**settings, **self._data(), "utility": args.reading_utility}, train
        )

    def realm(self, seed: int, arm: str, variant: Variant) -> Stage:
        """Both learn, from the reading stage on."""
        args = self.args
        masking = variant.masking or args.masking
        settings = {
            "masking": masking,
            "max_steps": args.max_steps,
            "learning_rate": args.learning_rate,
            "retriever_learning_rate": args.retriever_learning_rate,
            "num_candidates": args.num_candidates,
            "encode_dtype": args.encode_dtype,
            "batch_size": args.batch_size,
            "kept_back": KEPT_BACK,
            "refresh": "sync",
            "refresh_steps": args.refresh_steps,
            # Named where they are set: stages that were made before there was a choice keep their names.
            **{n: value for n in _LATER if (value := getattr(args, n)) is not None and value is not False},
            **variant.arguments,
        }
        before = self.reading(seed, masking)

        def train(run: Path) -> tuple[PreTrainedModel, dict[str, Any]]:
            kind = ShuffledPosterior if variant.shuffled else RealmForPreTraining
            model = kind.from_pretrained(before.folder / "model")
            # Another order of sentences than the reader's, the same for all arms.
            return model, self._pretrain(model, run, seed + 1000, variant, settings, [], before.folder)

        changed = {"arm": arm, "variant": repr(variant)}
        return self.stages.get("realm", seed, before, {**settings, **self._data(), **changed}, train)

    def _data(self) -> dict[str, Any]:
        sizes = {name: getattr(self.args, name) for name in ("max_query_length", "max_passage_length", "eval_steps")}
        return {"sentences": self.corpus.sentences.fingerprint, **sizes}

    def _masks(self, masking: str) -> RecurringMasks | None:
        """The spans that may be masked, where not all may be."""
        if masking == "answered":
            return self.corpus.answered
        return self.corpus.masks if masking == "recurring" else None

    def _source(self, variant: Variant, candidates: int, of_bm25: int | None) -> CandidateSource:
        """Some of the candidates by BM25, the others by the index."""
        bm25 = candidates // 2 if of_bm25 is None else of_bm25
        asked = [(self.corpus.bm25, bm25), (IndexSource(), candidates - bm25)]
        parts = [part for part in asked if part[1]]
        source: CandidateSource = IndexSource() if variant.dense else MixedSource(parts)
        return source if variant.exclusion else WithoutExclusion(source)

    def _pretrain(
        self,
        model: RealmForPreTraining,
        run: Path,
        seed: int,
        variant: Variant,
        settings: dict[str, Any],
        callbacks: list[TrainerCallback],
        index_from: Path | None = None,
    ) -> dict[str, Any]:
        """Train in `run`; the seconds, and what was evaluated last."""
        args, corpus = self.args, self.corpus
        settings = dict(settings)
        batch_size, of_bm25 = settings.pop("batch_size"), settings.pop("bm25_candidates", None)
        trained_on = ~corpus.kept_back if settings.pop("kept_back", None) else None
        masks = self._masks(settings["masking"])
        arguments = RealmTrainingArguments(
            output_dir=str(run),
            per_device_train_batch_size=batch_size,
            max_query_length=args.max_query_length,
            max_candidate_length=args.max_passage_length,
            warmup_steps=max(1, settings["max_steps"] // 10),
            eval_steps=args.eval_steps,
            save_steps=_SAVE_STEPS,
            save_total_limit=1,
            disable_tqdm=True,
            seed=seed,
            **{**settings, "masking": settings["masking"] if masks is None else "recurring"},
        )
        kind = RealmTrainer if variant.null else WithoutNull
        trainer = kind(
            model,
            arguments,
            train_dataset=_with_masks(corpus.sentences.train, masks, trained_on),
            eval_dataset=_with_masks(corpus.sentences.heldout, masks),
            processing_class=corpus.tokenizer,
            passages=corpus.passages,
            eval_retrieval=self.asked,
            candidate_source=self._source(variant, arguments.num_candidates - 1, of_bm25),
            recurring_masks=masks,
            callbacks=callbacks,
            index_from=index_from,
        )
        result = trainer.train(resume_from_checkpoint=True).exit_if_interrupted()
        return {"seconds": seconds_of(run), "steps": result.step, "metrics": result.metrics}


def _with_masks(
    sentences: SentenceStore, masks: RecurringMasks | None, wanted: np.ndarray | None = None
) -> SentenceStore:
    """The wanted sentences, by row, that have something to mask: the others would only make batches smaller."""
    keep = np.ones(len(sentences), bool) if wanted is None else wanted[sentences.indices]
    if masks is not None:
        keep = keep & [masks.kept(sentences.row_of(number)).any() for number in range(len(sentences))]
    return sentences if keep.all() else sentences.select(np.flatnonzero(keep))
