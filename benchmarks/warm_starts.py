"""Warm starts side by side: the inverse cloze task, recurring spans and both, on one budget; three seeds.

    python benchmarks/warm_starts.py --passages passages.parquet --dev dev.parquet \
        --weights runs/masked-lm-small/model --output_dir runs/warm_starts/small
    python benchmarks/warm_starts.py ... --weights .cache/minilm --projection none --learning_rate 2e-5 \
        --max_steps 40 --batch_size 32
    python benchmarks/warm_starts.py --tables docs/results/warm-starts.md

The corpus is the paragraphs of the dev articles and of some train articles; the towers are trained on it without any
question, with the same number of steps and queries a step in each arm. Then every dev question is asked of it.

    start       no warm start: the encoder, read as the mean of its tokens
    ict         the inverse cloze task
    recurring   recurring spans
    both        half of the steps of the inverse cloze task, then half of recurring spans
    bm25        beside them, BM25 over the same paragraphs

Recurring spans have a hard negative each, so that a step reads about twice as many passages; the seconds are given. An
arm of a seed is a line of warm-starts.jsonl; a call runs the arms that have no line for these settings, so that it can
be stopped and started. `--tables PAGE` writes the tables into a page.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness.arms import arm_tables, measure_missing, measured_with, sections
from harness.contrastive_starts import BOTH, ICT, RECURRING, contrastive_trainer, tasks_of
from harness.results import Line, add_result_arguments, measure_or_write_tables
from harness.retrieval import DEPTH, gold_ranks, means, sums_by_article
from harness.squad import Questions, random_bert, store_paragraphs

from realm_hf import RealmEmbedder, RealmRetriever, RealmTokenizer
from realm_hf.data.passages.recurring import articles_of, find_recurring_spans
from realm_hf.generations.embedding import embed_passages
from realm_hf.models.fingerprints import state_fingerprint
from realm_hf.training.contrastive import ContrastiveTrainer
from realm_hf.training.retrieval_evaluation import RetrievalQuestions

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from bm25 import bm25_rows

RESULTS = Path(__file__).resolve().parent / "warm-starts.jsonl"
START, BM25 = "start", "bm25"
ARMS = [START, ICT, RECURRING, BOTH, BM25]
NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def draw_rows(file: Path, gold: Sequence[int], distractors: int) -> np.ndarray:
    """Rows of the corpus, ascending: the articles that are asked about, and others, whole, of so many paragraphs."""
    titles = pd.read_parquet(file, columns=["title"])["title"].to_numpy()
    begins = np.flatnonzero(np.concatenate([[True], titles[1:] != titles[:-1]]))
    article = np.searchsorted(begins, np.arange(len(titles)), side="right") - 1
    asked = np.unique(article[list(gold)])
    others = np.random.default_rng(0).permutation(np.setdiff1d(np.arange(len(begins)), asked))
    sizes = np.bincount(article)[others]
    # The first articles that have so many paragraphs together.
    chosen = others[: np.searchsorted(np.cumsum(sizes), distractors) + 1] if distractors else others[:0]
    return np.flatnonzero(np.isin(article, np.concatenate([asked, chosen])))


class Comparison:
    """The arms of one call, with what they share.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.folder = args, Path(args.output_dir)
        self.tokenizer = RealmTokenizer.from_pretrained(args.tokenizer or args.weights)
        # Drawn from all: --dev_questions changes neither corpus nor training.
        every = Questions.read(args.dev)
        rows = draw_rows(args.passages, every.gold, args.distractors)
        self.passages = store_paragraphs(
            args.passages, self.tokenizer, self.folder / "passages", args.max_passage_length, rows
        )
        dev = every.sample(args.dev_questions or len(every.gold), 0)
        self.questions, self.gold = dev.texts, np.searchsorted(rows, dev.gold)
        self.asked = RetrievalQuestions(dev.examples, self.passages, self.tokenizer, gold_rows=self.gold.tolist())
        self.articles = articles_of(self.passages)[self.gold]
        self.recurring = find_recurring_spans(self.passages, self.tokenizer)

    def start(self, seed: int) -> RealmEmbedder:
        """One tower for queries and passages."""
        weights = self.args.weights
        if weights == "scratch":
            weights = random_bert(self.folder / f"random_bert-{seed}", len(self.tokenizer), seed)
        size = {} if self.args.projection == "none" else {"retriever_proj_size": self.args.dimension}
        return RealmEmbedder.from_bert(
            weights,
            pooler="identity",
            seed=seed,
            pooling_mode="mean",
            projection=self.args.projection,
            normalize=True,
            **size,
            **NO_DROPOUT,
        )

    def settings(self) -> dict[str, Any]:
        """What a line was measured on; another line is measured again."""
        args = self.args
        tower = self.start(args.seeds[0])
        named = Path(args.weights)
        weights = "" if args.weights == "scratch" else f" {state_fingerprint(tower.realm.state_dict())[:16]}"
        return {
            "weights": f"{named.parent.name if named.name == 'model' else named.name}{weights}",
            "layers": tower.config.num_hidden_layers,
            "hidden": tower.config.hidden_size,
            "dimension": tower.config.retriever_proj_size,
            "passages": self.passages.fingerprint,
            "paragraphs": len(self.passages),
            "recurring_spans": len(self.recurring),
            "questions": len(self.questions),
            **{name: getattr(args, name) for name in ("max_steps", "batch_size", "learning_rate")},
            **{name: getattr(args, name) for name in ("max_query_length", "max_passage_length", "projection")},
        }

    def trainer(self, task: str, model: RealmEmbedder, steps: int, seed: int, run: Path) -> ContrastiveTrainer:
        """The trainer of one task."""
        args = self.args
        return contrastive_trainer(
            task,
            model,
            self.passages,
            self.tokenizer,
            self.recurring,
            run,
            max_steps=steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            max_query_length=args.max_query_length,
            save_steps=0,
            seed=seed,
        )

    def train(self, arm: str, model: RealmEmbedder, seed: int) -> float:
        """Train one arm; the seconds that it took."""
        began = time.perf_counter()
        for task, count in [] if arm == START else tasks_of(arm, self.args.max_steps):
            run = self.folder / "runs" / f"{arm}-{seed}-{task}"
            shutil.rmtree(run, ignore_errors=True)  # of a call that was stopped
            self.trainer(task, model, count, seed, run).train().exit_if_interrupted()
        return time.perf_counter() - began

    def ranks(self, model: RealmEmbedder) -> np.ndarray:
        """At which rank each question's paragraph is found, `[Q]`."""
        embeddings = embed_passages(model, self.passages)
        retriever = RealmRetriever(self.passages, self.tokenizer, embeddings=embeddings)
        return self.asked.ranks(model, retriever, DEPTH)

    def run(self, arm: str, seed: int) -> Line:
        """What is measured of one arm."""
        if arm == BM25:
            rows = bm25_rows(self.passages, self.questions, DEPTH)
            ranks, trained = gold_ranks(rows, self.gold, self.passages.duplicate_groups), 0.0
        else:
            model = self.start(seed)
            trained = self.train(arm, model, seed)
            ranks = self.ranks(model.eval())
        sums = sums_by_article(ranks, self.articles)
        return {**means(sums), "train_seconds": round(trained, 1), "by_article": sums}


def measure(args: argparse.Namespace) -> None:
    """Run the arms that have no line, and write one for each."""
    comparison = Comparison(args)
    # BM25 draws nothing.
    rows = [(arm, seed) for seed in args.seeds for arm in ARMS if arm != BM25 or seed == args.seeds[0]]
    measured = [({"arm": arm, "seed": seed}, partial(comparison.run, arm, seed)) for arm, seed in rows]
    measure_missing(args.results, measured, comparison.settings(), "benchmarks", "examples/bm25.py")


def table(lines: list[Line]) -> str:
    """Markdown: a section for each start, in the order in which they were first measured."""
    return sections(lines, _section)


def _section(lines: list[Line]) -> str:
    on, seeds = lines[0]["on"], len({line["seed"] for line in lines})
    pairs = [(arm, other) for arm in (ICT, RECURRING, BOTH) for other in (START, ICT, RECURRING) if arm != other]
    parts = [
        f"### {on['weights'].split()[0]}: {on['layers']} layers of {on['hidden']}, embeddings of {on['dimension']}",
        "",
        f"{on['max_steps']} steps of {on['batch_size']} queries, peak rate {on['learning_rate']:g}; "
        f"{on['paragraphs']:,} paragraphs of at most {on['max_passage_length']} wordpieces, "
        f"{on['recurring_spans']:,} recurring spans, {on['questions']:,} questions; mean of {seeds} seeds, in "
        "brackets the 95 % interval, articles resampled.",
        "",
        *arm_tables(lines, ARMS, [pair for pair in pairs if pair != (ICT, RECURRING)], "train_seconds"),
        "",
        measured_with(lines[-1]),
    ]
    return "\n".join(parts)


def make_parser() -> argparse.ArgumentParser:
    """The options of a comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_result_arguments(parser, RESULTS)
    parser.add_argument("--passages", type=Path, required=True, help="a Parquet file, see harness/squad.py")
    parser.add_argument("--dev", type=Path, required=True, help="a Parquet file of questions")
    parser.add_argument("--output_dir", type=Path, required=True, help="passages and runs are kept here")
    parser.add_argument(
        "--weights", required=True, help="a BERT checkpoint, an encoder of train_masked_lm.py, or 'scratch'"
    )
    parser.add_argument("--tokenizer", help="whose vocabulary is used; default: that of the weights")
    parser.add_argument("--projection", choices=("linear", "none"), default="linear", help="none: read as it was made")
    parser.add_argument("--dimension", type=int, default=128, help="of embeddings, with a linear projection")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--max_steps", type=int, default=120)
    parser.add_argument("--batch_size", type=int, default=64)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--max_query_length", type=int, default=48)
    parser.add_argument("--max_passage_length", type=int, default=128, help="wordpieces; the rest is cut")
    parser.add_argument("--distractors", type=int, default=1000, help="paragraphs of train articles, about")
    parser.add_argument("--dev_questions", type=int, help="ask so many, drawn at random; default: all")
    return parser


def main() -> None:
    """Run what is missing and print the tables, or write them into a page."""
    measure_or_write_tables(table, RESULTS, make_parser, measure)


if __name__ == "__main__":
    main()
