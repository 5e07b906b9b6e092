"""What it costs to give an embedder title and text as one string: SQuAD's paragraphs, found by an encoder as it is.

    python benchmarks/document_formats.py --passages passages.parquet --train train.parquet --dev dev.parquet \
        --weights .cache/minilm --output_dir runs/squad/formats --dev_questions 600 --paragraphs 4016
    python benchmarks/document_formats.py --tables docs/how-to/any-encoder.md

Each dev question is asked of the paragraphs that questions are about and of others, drawn at random. A paragraph is

    pair             `[CLS] title [SEP] text [SEP]`, REALM's format
    joined           `[CLS] title text [SEP]`, document_format="joined"
    exported         the same strings, embedded by sentence-transformers from what `to_sentence_transformer` wrote;
                     measured where it is installed
    text alone       `[CLS] [SEP] text [SEP]`

The encoder is read as sentence encoders are: the mean of its tokens, divided by its length. Embeddings stay in the
output directory, so that the program can be stopped and started.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from harness.arms import measure_missing, measured_with
from harness.results import Line, add_result_arguments, measure_or_write_tables
from harness.retrieval import DEPTH, gain_table, gold_ranks, means, newest, recall_table, sums_by_article
from harness.squad import Questions, add_file_arguments

from realm_hf import RealmEmbedder, RealmTokenizer
from realm_hf.models.fingerprints import state_fingerprint

RESULTS = Path(__file__).resolve().parent / "document-formats.jsonl"
PAIR, JOINED, EXPORTED, ALONE = "pair", "joined", "exported", "text alone"
ROWS = (PAIR, JOINED, EXPORTED, ALONE)


class Measurement:
    """The rows of one call, with what they share.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.folder = args, Path(args.output_dir)
        self.folder.mkdir(parents=True, exist_ok=True)
        frame = pd.read_parquet(args.passages)
        questions = Questions.read(args.dev).sample(args.dev_questions or sys.maxsize, args.seed)
        self.questions = questions.texts
        rows = _with_others(questions.gold, len(frame), args.paragraphs or len(frame), args.seed)
        self.gold = np.searchsorted(rows, questions.gold)
        frame = frame.iloc[rows]
        self.titles, self.texts = frame["title"].tolist(), frame["text"].tolist()
        self.articles = np.unique(frame["title"], return_inverse=True)[1][self.gold]
        self.groups = np.unique(frame["text"], return_inverse=True)[1]

    def tower(self, document_format: str) -> RealmEmbedder:
        """The encoder as it was made, with one of the formats."""
        reading = {"pooling_mode": "mean", "projection": "none", "normalize": True}
        tower = RealmEmbedder.from_bert(
            self.args.weights, pooler="identity", document_format=document_format, **reading
        )
        tower.tokenizer = RealmTokenizer.from_pretrained(self.args.weights)
        tower.max_text_length = self.args.max_passage_length
        return tower

    @property
    def key(self) -> dict[str, Any]:
        """What a line was measured on; another line is measured again."""
        weights = state_fingerprint(self.tower(PAIR).realm.state_dict())
        return {
            "paragraphs": len(self.texts),
            "questions": len(self.gold),
            "articles": len(np.unique(self.articles)),
            "weights": f"{Path(self.args.weights).name} {weights[:16]}",
            "max_passage_length": self.args.max_passage_length,
            "dimensions": self.tower(PAIR).config.retriever_proj_size,
            "seed": self.args.seed,
        }

    def kept(self, name: str, make: Callable[[], np.ndarray]) -> np.ndarray:
        """Embeddings that are made once."""
        file = self.folder / f"{name}.npy"
        if not file.exists():
            np.save(file, make())
        return np.load(file)

    def passages(self, name: str) -> np.ndarray:
        """Embeddings of the paragraphs in a format, `[N, D]`."""
        if name == EXPORTED:
            return self._exported()
        tower = self.tower(JOINED if name == JOINED else PAIR)
        return tower.encode(self.texts, titles="" if name == ALONE else self.titles)

    def _exported(self) -> np.ndarray:
        from sentence_transformers import SentenceTransformer  # where it is installed

        if not (self.folder / "exported").exists():
            self.tower(JOINED).to_sentence_transformer(self.folder / "exported")
        model = SentenceTransformer(str(self.folder / "exported"), device="cpu")
        return model.encode_document([f"{a} {b}" for a, b in zip(self.titles, self.texts, strict=True)])

    def ranks(self, name: str) -> np.ndarray:
        """At which rank each question's paragraph is found, `[Q]`."""
        queries = self.kept("questions", lambda: self.tower(PAIR).encode(self.questions))
        scores = queries @ self.kept(name, lambda: self.passages(name)).T
        return gold_ranks(np.argsort(-scores, axis=1, kind="stable")[:, :DEPTH], self.gold, self.groups)

    def line(self, name: str) -> Line:
        """The figures of a row."""
        sums = sums_by_article(self.ranks(name), self.articles)
        return {**means(sums), "by_article": sums}


def _with_others(gold: list[int], total: int, count: int, seed: int) -> np.ndarray:
    """The rows of `gold`, and others up to `count` of `total`, in order."""
    wanted = np.unique(gold)
    others = np.setdiff1d(np.arange(total), wanted)
    drawn = np.random.default_rng(seed).permutation(others)[: max(0, count - len(wanted))]
    return np.sort(np.concatenate([wanted, drawn]))


def measure(args: argparse.Namespace) -> None:
    """Measure the rows that have no line for this key yet."""
    measurement = Measurement(args)
    names = [
        name for name in ROWS if name != EXPORTED or importlib.util.find_spec("sentence_transformers") is not None
    ]
    rows = [({"name": name}, partial(measurement.line, name)) for name in names]
    measure_missing(args.results, rows, measurement.key, "benchmarks")


def table(lines: list[Line]) -> str:
    """Markdown of the newest measurement."""
    lines = newest(lines)
    on, last = lines[-1]["on"], lines[-1]
    sums = {line["name"]: [line["by_article"]] for line in lines}
    others = [name for name in sums if name != PAIR] if PAIR in sums else []
    parts = [
        f"{on['questions']:,} dev questions about {on['articles']} articles of SQuAD, asked of {on['paragraphs']:,} "
        f"paragraphs, by {on['weights'].split()[0]}; in brackets the 95 % interval, articles resampled.",
        "",
        *recall_table(
            "a paragraph is", [(name, each, str(on["dimensions"])) for name, each in sums.items()], "dimensions"
        ),
        "",
        *gain_table([(f"{name}, over {PAIR}", sums[name], sums[PAIR]) for name in others]),
        "",
        measured_with(last),
    ]
    return "\n".join(parts)


def make_parser() -> argparse.ArgumentParser:
    """The options of a measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_result_arguments(parser, RESULTS)
    add_file_arguments(parser)
    parser.add_argument("--output_dir", type=Path, required=True, help="embeddings are kept here")
    parser.add_argument("--weights", default=".cache/minilm", help="a BERT checkpoint; its vocabulary is used")
    parser.add_argument("--max_passage_length", type=int, default=256, help="wordpieces; the rest is cut")
    parser.add_argument("--dev_questions", type=int, help="ask so many, drawn at random; default: all")
    parser.add_argument("--paragraphs", type=int, help="search so many; default: all")
    parser.add_argument("--seed", type=int, default=0)
    return parser


def main() -> None:
    """Measure what is missing and print the table, or write it into a page."""
    measure_or_write_tables(table, RESULTS, make_parser, measure)


if __name__ == "__main__":
    main()
