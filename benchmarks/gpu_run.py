"""Ten minutes of a GPU: masked LM, warm start, REALM with refresh and evaluation, in bfloat16, from raw text.

    python benchmarks/gpu_run.py --minutes 10 --passages passages.parquet --dev dev.parquet --articles wiki.parquet \
        --tokenizer tokenizer --output_dir runs/gpu --results gpu-run.jsonl

From nothing: a BERT of base size and a vocabulary are all that is brought along, beside the Parquet files of text and
questions. Everything is tokenized here. Each phase gets its share of the time that is left, in steps by the time that
a few steps of a copy took, and ends at its time at the latest; when all time is spent, the process ends, whatever it
does. The results are JSON lines that are written as they come:

    data           the corpora, tokenized
    speed          throughput and MFU of the pre-training step and of encoding; search by a matrix product over
                   13,353,718 vectors, where memory allows
    masked LM      the encoder, on articles and paragraphs
    warm start     the towers, by recurring spans
    reading        the encoder reads what the towers find, while they rest
    REALM          both learn; the index is rebuilt on the same card

and after each of the last four the recall of SQuAD's paragraphs by the dev questions.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from datasets import Dataset
from harness.budget import Budget, Report, trained_until
from harness.card_speed import PAPER_ROWS, encoding_speed, search_speed, step_speed
from harness.contrastive_starts import RECURRING, contrastive_trainer
from harness.drawn_ahead import DrawnAhead
from harness.machine import measured_on
from harness.paragraph_corpus import ParagraphCorpus
from harness.passage_vectors import passage_vectors
from harness.realm_stages import start_model
from harness.retrieval import DEPTH, means, sums_by_article
from harness.squad import Questions
from transformers import TrainerCallback

from realm_hf import RealmConfig, RealmForPreTraining, RealmKnowledgeAugEncoder, RealmTokenizer
from realm_hf.data.passages.build import PassageStore, passages_from_rows
from realm_hf.estimate import MODELS
from realm_hf.retriever.candidates import IndexSource
from realm_hf.retriever.mixed import MixedSource
from realm_hf.training.arguments import MaskedLMTrainingArguments, RealmTrainingArguments
from realm_hf.training.loop import TrainingLoop
from realm_hf.training.masked_lm import MaskedLMTrainer
from realm_hf.training.pretraining import RealmTrainer

DATA, SPEED, MASKED_LM, WARM_START, READING, REALM = "data", "speed", "masked LM", "warm start", "reading", "REALM"
# The last share is that of no phase: recall after the last one.
SHARES = {DATA: 12.0, SPEED: 5.0, MASKED_LM: 38.0, WARM_START: 13.0, READING: 9.0, REALM: 18.0, "end": 5.0}
# Of the sequences that are only packed there are more than can be read in the time; pairs need spans to be found.
_NO_PAIRS = {"pair_probability": 0.0}
_REFRESHES = 3


class Run:
    """The phases, with what they share.

    Args:
        args: The command line.
        budget: The time.
        report: Where results go.
    """

    corpus: ParagraphCorpus
    dev: Questions

    def __init__(self, args: argparse.Namespace, budget: Budget, report: Report):
        self.args, self.budget, self.report = args, budget, report
        self.folder = Path(args.output_dir)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.shape = MODELS[args.size]
        self.tokenizer = RealmTokenizer.from_pretrained(args.tokenizer)
        self.common: dict[str, Any] = {
            "bf16": True,
            "save_steps": 0,
            "logging_steps": 1_000_000,
            "disable_tqdm": True,
            "seed": args.seed,
        }

    def go(self) -> None:
        """All phases, one after the other."""
        self.timed(DATA, self.data)
        # Like the numbers of the card, the model does not depend on what its weights mean.
        encoder = RealmKnowledgeAugEncoder.from_scratch(self.config(), self.args.seed)
        self.timed(SPEED, partial(self.speed, encoder))
        self.timed(MASKED_LM, partial(self.masked_lm, encoder))
        model = start_model(self.keep(encoder), self.args.dimension, self.args.seed)
        self.recall(MASKED_LM, model)
        for phase, train in ((WARM_START, self.warm_start), (READING, self.reading), (REALM, self.realm)):
            self.timed(phase, partial(train, model))
            if phase != READING:  # which leaves the towers as they are
                self.recall(phase, model)

    def timed(self, phase: str, work: Callable[[float], None]) -> None:
        """One phase within its time."""
        with self.budget.phase(phase) as until:
            work(until)

    def config(self) -> RealmConfig:
        """Of the encoder: the size that was asked for, with the tokenizer's vocabulary and no dropout."""
        sizes = {name: value for name, value in asdict(self.shape).items() if name != "vocab_size"}
        heads = max(1, self.shape.hidden_size // 64)
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return RealmConfig(vocab_size=len(self.tokenizer), num_attention_heads=heads, **sizes, **dropout)

    def keep(self, encoder: RealmKnowledgeAugEncoder) -> Path:
        """The encoder as a checkpoint, from which the towers start."""
        folder = self.folder / "encoder"
        encoder.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return folder

    # The phases

    def data(self, until: float) -> None:  # noqa: ARG002 - it takes what it takes
        """Everything that is read, in wordpieces."""
        args, began = self.args, time.monotonic()
        sizes = {name: getattr(args, name) for name in ("max_passage_length", "max_query_length", "num_proc")}
        self.corpus = corpus = ParagraphCorpus(args.passages, self.tokenizer, self.folder / "data", **sizes)
        self.dev = Questions.read(args.dev).sample(args.questions or len(pd.read_parquet(args.dev)), 0)
        self.texts = corpus.passages
        if args.articles is not None:
            rows = Dataset.from_pandas(pd.read_parquet(args.articles)[["title", "text"]], preserve_index=False)
            place = self.folder / "data" / "articles"
            passages_from_rows(rows, self.tokenizer, place, max_length=args.max_length, num_proc=args.num_proc)
            self.texts = PassageStore.load(place)
        counts = {"passages": len(corpus.passages), "sentences": len(corpus.sentences), "texts": len(self.texts)}
        counts |= {"wordpieces": int(self.texts.lengths.sum()), "spans": len(corpus.recurring)}
        counts |= {"answered_masks": round(corpus.masks.share, 3), "bm25": len(corpus.passages)}
        assert corpus.bm25  # built now, not in the first step
        self.report.write(DATA, seconds=round(time.monotonic() - began, 1), **counts)

    def speed(self, encoder: RealmKnowledgeAugEncoder, until: float) -> None:
        """What the card does with this model."""
        args, corpus = self.args, self.corpus
        model = start_model(self.keep(encoder), args.dimension, args.seed).to(self.device)
        measured = {
            "step": partial(
                step_speed,
                model,
                corpus.passages,
                self.tokenizer,
                self.shape,
                args.peak_tflops,
                queries=args.batch_size,
                candidates=args.num_candidates - 1,
            ),
            "encoding": partial(encoding_speed, model.embedder.eval(), corpus.passages, self.shape, args.peak_tflops),
            "search by matrix product": partial(search_speed, self.device, args.search_rows),
        }
        for name, measure in measured.items():
            left_out = {"left_out": "no time is left"}
            self.report.write(SPEED, what=name, **(measure() if time.monotonic() < until else left_out))
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def masked_lm(self, encoder: RealmKnowledgeAugEncoder, until: float) -> None:
        """The encoder learns the language."""
        args = self.args

        def make(run: Path, steps: int, callbacks: list[TrainerCallback], trial: bool) -> TrainingLoop:
            settings = MaskedLMTrainingArguments(
                output_dir=str(run),
                max_steps=steps,
                warmup_steps=max(1, steps // 20),
                per_device_train_batch_size=args.masked_lm_batch_size,
                learning_rate=args.masked_lm_learning_rate,
                adam_beta2=0.98,
                max_length=args.max_length,
                **_NO_PAIRS,
                **self.common,
            )
            model = copy.deepcopy(encoder) if trial else encoder
            data = {"train_dataset": self.texts, "processing_class": self.tokenizer, "callbacks": callbacks}
            return self.drawn_ahead(MaskedLMTrainer(model, settings, **data))

        trained_until(MASKED_LM, until, self.report, self.folder / "masked_lm", make)
        encoder.cpu()

    def drawn_ahead(self, trainer: Any) -> TrainingLoop:
        """The trainer, with other processes that draw its examples where there are some."""
        if self.args.num_proc > 1:
            count = trainer.args.max_steps * trainer.examples_per_step
            trainer.dataset = DrawnAhead(trainer.dataset, trainer.order, count, self.args.num_proc)
        return trainer

    def warm_start(self, model: RealmForPreTraining, until: float) -> None:
        """The towers learn to find."""
        args, corpus = self.args, self.corpus

        def make(run: Path, steps: int, callbacks: list[TrainerCallback], trial: bool) -> TrainingLoop:
            trainer = contrastive_trainer(
                RECURRING,
                copy.deepcopy(model) if trial else model,
                corpus.passages,
                self.tokenizer,
                corpus.recurring,
                run,
                max_steps=steps,
                per_device_train_batch_size=args.warm_start_batch_size,
                learning_rate=args.warm_start_learning_rate,
                max_query_length=args.max_query_length,
                **self.common,
            )
            trainer.callbacks.extend(callbacks)
            return self.drawn_ahead(trainer)

        trained_until(WARM_START, until, self.report, self.folder / "warm_start", make)

    def reading(self, model: RealmForPreTraining, until: float) -> None:
        """The encoder learns to read what the towers find."""
        frozen = {"freeze_retriever_steps": 1_000_000, "refresh": "off", "learning_rate": self.args.learning_rate}
        make = partial(self.pretrainer, model, frozen)
        trained_until(READING, until, self.report, self.folder / "reading", make, builds=1)

    def realm(self, model: RealmForPreTraining, until: float) -> None:
        """Both learn, and the index follows."""
        rates = {"learning_rate": self.args.learning_rate / 2, "retriever_learning_rate": self.args.learning_rate / 4}
        make = partial(self.pretrainer, model, {"refresh": "sync", **rates})
        trained_until(REALM, until, self.report, self.folder / "realm", make, builds=2 + _REFRESHES)

    def pretrainer(
        self,
        model: RealmForPreTraining,
        settings: dict[str, Any],
        run: Path,
        steps: int,
        callbacks: list[TrainerCallback],
        trial: bool,
    ) -> TrainingLoop:
        """The trainer of reading and of REALM."""
        args, corpus = self.args, self.corpus
        half = (args.num_candidates - 1) // 2
        arguments = RealmTrainingArguments(
            output_dir=str(run),
            max_steps=steps,
            warmup_steps=max(1, steps // 10),
            per_device_train_batch_size=args.batch_size,
            num_candidates=args.num_candidates,
            max_query_length=args.max_query_length,
            max_candidate_length=args.max_passage_length,
            masking="recurring",
            refresh_steps=max(1, steps // (_REFRESHES + 1)),
            encode_dtype="bfloat16",
            # A trial is there for the time of its steps and of one build.
            **{**settings, **({"refresh": "off"} if trial else {})},
            **self.common,
        )
        return RealmTrainer(
            copy.deepcopy(model) if trial else model,
            arguments,
            train_dataset=corpus.sentences.train,
            eval_dataset=None if trial else corpus.sentences.heldout,
            processing_class=self.tokenizer,
            passages=corpus.passages,
            candidate_source=MixedSource([(corpus.bm25, half), (IndexSource(), args.num_candidates - 1 - half)]),
            recurring_masks=corpus.masks,
            callbacks=callbacks,
        )

    def recall(self, phase: str, model: RealmForPreTraining) -> None:
        """Of the dev questions' paragraphs."""
        began = time.monotonic()
        model.to(self.device).eval()
        vectors = passage_vectors(model, self.corpus.passages, "bfloat16")
        ranks = self.corpus.ranks(vectors, model.query_embedder, self.dev.texts, self.dev.gold, bf16=True)
        figures = means(sums_by_article(ranks.clip(max=DEPTH), self.corpus.articles[self.dev.gold]))
        self.report.write(f"{phase}, recall", seconds=round(time.monotonic() - began, 1), **figures)


def main() -> None:
    """Run all phases within the time."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, required=True, help="that the program may take")
    parser.add_argument("--passages", type=Path, required=True, help="SQuAD's paragraphs, see harness/squad.py")
    parser.add_argument("--dev", type=Path, required=True, help="the questions")
    parser.add_argument("--questions", type=int, help="ask so many, drawn at random; default: all")
    parser.add_argument("--articles", type=Path, help="more text for masked LM: a Parquet file, title and text")
    parser.add_argument("--tokenizer", required=True, help="a folder with a vocabulary")
    parser.add_argument("--output_dir", type=Path, required=True, help="an empty folder")
    parser.add_argument("--results", type=Path, required=True, help="JSON lines, begun anew")
    parser.add_argument("--size", choices=sorted(MODELS), default="base")
    parser.add_argument("--dimension", type=int, default=128, help="of embeddings")
    parser.add_argument("--max_length", type=int, default=128, help="wordpieces of a sequence of masked LM")
    parser.add_argument("--max_passage_length", type=int, default=96)
    parser.add_argument("--max_query_length", type=int, default=40)
    parser.add_argument("--masked_lm_batch_size", type=int, default=256)
    parser.add_argument("--masked_lm_learning_rate", type=float, default=5e-4)
    parser.add_argument("--warm_start_batch_size", type=int, default=256)
    parser.add_argument("--warm_start_learning_rate", type=float, default=1e-4)
    parser.add_argument("--batch_size", type=int, default=64, help="of reading and REALM")
    parser.add_argument("--learning_rate", type=float, default=1e-4, help="of reading; half and a quarter in REALM")
    parser.add_argument("--num_candidates", type=int, default=5, help="the null passage counted")
    parser.add_argument("--search_rows", type=int, default=PAPER_ROWS, help="vectors of the search")
    parser.add_argument("--peak_tflops", type=float, default=989.0, help="of the card in dense bfloat16, for MFU")
    parser.add_argument("--num_proc", type=int, default=1, help="processes that tokenize, and draw examples")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    budget = Budget(60 * args.minutes, SHARES)
    report = Report(args.results)
    run = Run(args, budget, report)
    card = torch.cuda.get_device_name() if run.device.type == "cuda" else "none"
    libraries = ("torch", "transformers", "numpy", "faiss-cpu")
    machine = measured_on(torch.get_num_threads(), "benchmarks", libraries=libraries)
    report.write("begin", card=card, size=args.size, minutes=args.minutes, **machine)
    run.go()
    report.write("end", seconds_left=round(budget.left, 1))
    budget.close()


if __name__ == "__main__":
    main()
