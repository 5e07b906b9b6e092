"""Finding SQuAD's paragraphs with no training at all: one encoder read in three ways, BM25, and both together.

    python benchmarks/squad_retrieval.py --passages passages.parquet --train train.parquet --dev dev.parquet \
        --weights .cache/minilm --output_dir runs/squad/retrieval
    python benchmarks/squad_retrieval.py --tables docs/results/squad.md

Every dev question is asked of all paragraphs, those of train and dev; recall is of the paragraph that it was asked
about. What the encoder says of the texts is computed once, in blocks that stay in the output directory, and read as

    own reading     the mean of all tokens, divided by its length, as sentence encoders are trained to be read
    mean, PCA       the mean through 128 dimensions fitted on the paragraphs, divided by its length
    [CLS], random   [CLS] through a random orthonormal map to 128 dimensions and a layer normalization

Own reading and BM25 are put together by reciprocal ranks (fused), and by a sum of scores whose weight is fitted on
train questions (fitted mix). A row of the table is a line of squad-retrieval.jsonl; a call measures the rows that have
no line for these passages, questions and weights, so that it can be stopped and started. `--tables PAGE` writes the
table into a page.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.arms import measure_missing, measured_with
from harness.pooled_states import CLS, MEAN, pooled_states
from harness.results import Line, add_result_arguments, measure_or_write_tables
from harness.retrieval import DEPTH, gain_table, gold_ranks, means, newest, recall_table, sums_by_article
from harness.squad import Questions, add_file_arguments, store_paragraphs

from realm_hf import RealmEmbedder, RealmRetriever, RealmTokenizer
from realm_hf.data.collators import pad_rows
from realm_hf.data.passages.recurring import articles_of
from realm_hf.generations.embedding import embed_passages
from realm_hf.generations.projection import principal_components, set_projection
from realm_hf.models.configuration_realm import MAX_QUERY_LENGTH
from realm_hf.models.fingerprints import state_fingerprint
from realm_hf.retriever.bm25 import BM25Source
from realm_hf.retriever.candidates import IndexSource
from realm_hf.retriever.fused import FusedSource
from realm_hf.retriever.mixture_fit import fit_mixture

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from bm25 import bm25_rows

RESULTS = Path(__file__).resolve().parent / "squad-retrieval.jsonl"
TEXTS, BM25, OWN, PCA, RANDOM = "bm25s on texts", "BM25", "own reading", "mean, PCA", "[CLS], random"
FUSED, MIXED = "own reading + BM25, fused", "own reading + BM25, fitted mix"
ROWS = [TEXTS, BM25, OWN, PCA, RANDOM, FUSED, MIXED]
READ_MEAN = {"pooling_mode": "mean", "normalize": True}
_QUESTIONS_AT_ONCE = 512


class Measurement:
    """The rows of one call, with what they share.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.folder = args, Path(args.output_dir)
        self.tokenizer = RealmTokenizer.from_pretrained(args.weights)
        self.passages = store_paragraphs(
            args.passages, self.tokenizer, self.folder / "passages", args.max_passage_length
        )
        self.dev = Questions.read(args.dev).sample(args.dev_questions or sys.maxsize, args.seed)
        self.train = Questions.read(args.train).sample(args.train_questions, args.seed)
        self.gold = np.array(self.dev.gold)
        self.articles = articles_of(self.passages)[self.gold]
        self.encoder = RealmEmbedder.from_bert(args.weights, pooler="identity", projection="none", **READ_MEAN)

    @property
    def key(self) -> dict[str, Any]:
        """What a line was measured on; another line is measured again."""
        weights = state_fingerprint(self.encoder.realm.state_dict())
        return {
            "passages": self.passages.fingerprint,
            "paragraphs": len(self.passages),
            "questions": len(self.gold),
            "articles": len(np.unique(self.articles)),
            "weights": f"{Path(self.args.weights).name} {weights[:16]}",
            "max_passage_length": self.args.max_passage_length,
            "dimension": self.args.dimension,
            "seed": self.args.seed,
        }

    @cached_property
    def passage_states(self) -> np.ndarray:
        """Of the paragraphs, `[N, 2, H]`."""
        return pooled_states(
            self.encoder, self.passages.pad_candidates, self.passages.lengths, self.folder / "states" / "passages"
        )

    @cached_property
    def tokens(self) -> list[np.ndarray]:
        """Token ids of the dev questions, special tokens included."""
        found = self.tokenizer(self.dev.texts, truncation=True, max_length=MAX_QUERY_LENGTH)["input_ids"]
        return [np.asarray(ids, np.int64) for ids in found]

    @cached_property
    def question_states(self) -> np.ndarray:
        """Of the dev questions, `[Q, 2, H]`."""

        def pad(numbers: np.ndarray) -> dict[str, np.ndarray]:
            ids, mask = pad_rows([self.tokens[number] for number in numbers.tolist()], self.tokenizer.pad_token_id)
            return {"input_ids": ids, "attention_mask": mask}

        lengths = np.array([len(ids) for ids in self.tokens])
        return pooled_states(self.encoder, pad, lengths, self.folder / "states" / "dev_questions")

    def tower(self, name: str) -> RealmEmbedder:
        """The tower that reads the encoder in one of the three ways."""
        if name == OWN:
            return self.encoder
        if name == RANDOM:
            return RealmEmbedder.from_bert(
                self.args.weights, pooler="identity", seed=self.args.seed, retriever_proj_size=self.args.dimension
            )
        size = self.args.dimension
        tower = RealmEmbedder.from_bert(self.args.weights, projection="linear", retriever_proj_size=size, **READ_MEAN)
        set_projection(tower, principal_components(self.passage_states[:, MEAN], size))
        return tower

    @torch.inference_mode()
    def read(self, tower: RealmEmbedder, states: np.ndarray) -> np.ndarray:
        """The tower's embeddings of texts, from their states: float32 `[N, D]`."""
        if tower.config.pooling_mode == "mean":
            pooled = torch.from_numpy(states[:, MEAN])
        else:
            pooled = tower.realm.pooler(torch.from_numpy(states[:, CLS:]))
        return tower.cls(pooled).numpy()

    def retriever(self, name: str) -> tuple[RealmRetriever, RealmEmbedder]:
        """Exact search over one tower's embeddings of the paragraphs, and the tower."""
        tower = self.tower(name)
        embeddings = self.read(tower, self.passage_states)
        some = np.arange(0, len(self.passages), max(1, len(self.passages) // 8))[:8]
        # The shortcut by way of stored states must be the tower's own way.
        np.testing.assert_allclose(embeddings[some], embed_passages(tower, self.passages, rows=some), atol=1e-4)
        retriever = RealmRetriever(
            self.passages, self.tokenizer, embeddings=embeddings, embedder=tower, query_embedder=tower
        )
        return retriever, tower

    def ranks(self, retriever: RealmRetriever, vectors: np.ndarray) -> np.ndarray:
        """At which rank each dev question's paragraph is found, `[Q]`."""
        rows = [
            retriever.retrieve(vectors[i:j], DEPTH, token_ids=self.tokens[i:j], null_passage=False).rows
            for i, j in _pieces(len(vectors))
        ]
        return gold_ranks(np.concatenate(rows), self.gold, self.passages.duplicate_groups)

    @cached_property
    def source(self) -> BM25Source:
        """BM25 over the paragraphs' wordpieces."""
        return BM25Source.build(self.passages, self.tokenizer)

    # The rows

    def bm25_of_texts(self) -> tuple[np.ndarray, dict[str, Any]]:
        """What others measure: the library bm25s on texts, English stop words left out."""
        rows = bm25_rows(self.passages, self.dev.texts, DEPTH)
        return gold_ranks(rows, self.gold, self.passages.duplicate_groups), {}

    def bm25(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Words joined from wordpieces: what a retriever searches with `candidate_source`."""
        # The vectors give candidates their scores, and are not searched.
        nothing = np.zeros((len(self.passages), 1), np.float32)
        retriever = RealmRetriever(self.passages, self.tokenizer, embeddings=nothing, candidate_source=self.source)
        return self.ranks(retriever, np.zeros((len(self.gold), 1), np.float32)), {}

    def dense(self, name: str) -> tuple[np.ndarray, dict[str, Any]]:
        """The encoder, read in one way."""
        retriever, tower = self.retriever(name)
        facts = {"dimension": tower.config.retriever_proj_size}
        return self.ranks(retriever, self.read(tower, self.question_states)), facts

    def fused(self) -> tuple[np.ndarray, dict[str, Any]]:
        """Both rankings by reciprocal ranks."""
        retriever, tower = self.retriever(OWN)
        retriever.candidate_source = FusedSource([IndexSource(), self.source])
        return self.ranks(retriever, self.read(tower, self.question_states)), {"parts": [OWN, BM25]}

    def mixed(self) -> tuple[np.ndarray, dict[str, Any]]:
        """A weighted sum of both scores, the weight fitted on train questions."""
        retriever, tower = self.retriever(OWN)
        fitted = fit_mixture(retriever, self.source, self.train.texts, self.train.gold)
        retriever.candidate_source = fitted.source
        facts = {"parts": [OWN, BM25], "weight": round(fitted.source.weight, 5), "fitted_on": len(self.train.gold)}
        return self.ranks(retriever, self.read(tower, self.question_states)), facts

    def rows(self) -> dict[str, Callable[[], tuple[np.ndarray, dict[str, Any]]]]:
        """What makes each row: ranks of the dev questions and further facts."""
        rows = [
            self.bm25_of_texts,
            self.bm25,
            *(partial(self.dense, name) for name in (OWN, PCA, RANDOM)),
            self.fused,
            self.mixed,
        ]
        return dict(zip(ROWS, rows, strict=True))

    def line(self, row: Callable[[], tuple[np.ndarray, dict[str, Any]]]) -> Line:
        """Figures of one row, with the seconds that it took."""
        began = time.perf_counter()
        ranks, facts = row()
        sums = sums_by_article(ranks, self.articles)
        return {**means(sums), **facts, "seconds": round(time.perf_counter() - began, 1), "by_article": sums}


def _pieces(count: int) -> list[tuple[int, int]]:
    return [(start, min(start + _QUESTIONS_AT_ONCE, count)) for start in range(0, count, _QUESTIONS_AT_ONCE)]


def measure(args: argparse.Namespace) -> None:
    """Measure the rows that have no line, and write one for each."""
    measurement = Measurement(args)
    rows = [({"name": name}, partial(measurement.line, row)) for name, row in measurement.rows().items()]
    measure_missing(args.results, rows, measurement.key, "benchmarks", "examples/bm25.py")


def table(lines: list[Line]) -> str:
    """Markdown of the newest measurement."""
    lines = newest(lines)
    on, last = lines[-1]["on"], lines[-1]
    sums = {line["name"]: [line["by_article"]] for line in lines}
    rows = [(line["name"], sums[line["name"]], line.get("dimension", "")) for line in lines]
    parts = [
        f"{on['questions']:,} dev questions about {on['articles']} articles, asked of {on['paragraphs']:,} "
        "paragraphs; in brackets the 95 % interval, articles resampled.",
        "",
        *recall_table("retriever", rows, "dimensions"),
    ]
    hybrids = [(line["name"], part) for line in lines for part in line.get("parts", ()) if part in sums]
    if hybrids:
        parts += ["", *gain_table([(f"{name}, over {part}", sums[name], sums[part]) for name, part in hybrids])]
    parts += ["", measured_with(last)]
    return "\n".join(parts)


def make_parser() -> argparse.ArgumentParser:
    """The options of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_result_arguments(parser, RESULTS)
    add_file_arguments(parser)
    parser.add_argument("--output_dir", type=Path, required=True, help="passages and states are kept here")
    parser.add_argument("--weights", default=".cache/minilm", help="a BERT checkpoint; its vocabulary is used")
    parser.add_argument("--max_passage_length", type=int, default=256, help="wordpieces; the rest is cut")
    parser.add_argument("--dimension", type=int, default=128, help="of the two smaller readings")
    parser.add_argument("--dev_questions", type=int, help="ask so many, drawn at random; default: all")
    parser.add_argument("--train_questions", type=int, default=2000, help="that a mix is fitted on")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    """Measure what is missing and print the table, or write it into a page."""
    measure_or_write_tables(table, RESULTS, make_parser, measure)


if __name__ == "__main__":
    main()
