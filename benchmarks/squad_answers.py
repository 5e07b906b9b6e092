"""SQuAD's paragraphs as the knowledge, from an encoder that one has: found, read and answered, with REALM and without.

    python benchmarks/squad_answers.py --passages passages.parquet --train train.parquet --dev dev.parquet \
        --weights .cache/minilm --encoder_weights runs/masked-lm-minilm/model --output_dir runs/squad_answers \
        --stop_after_minutes 170
    python benchmarks/squad_answers.py --tables docs/results/squad-answers.md

The towers are a sentence encoder read as it was made: the mean of its tokens, as a unit vector, without a projection.
It has most likely seen SQuAD's train questions; benchmarks/real_text.py starts from nothing instead.

    start              the towers as they are
    REALM              reading, then REALM on the paragraphs; the encoder starts from `--encoder_weights`
    ..., fine-tuned    query tower and reader on train questions: read are the gold paragraph and one of BM25's

Passages are found by vectors, by BM25 (the library bm25s), or by both: a sum of scores whose weight is fitted on 2,000
train questions that nothing else learns from. Recall is of the gold paragraph, over all dev questions; exact match and
F1 are of a sample of them, five paragraphs read, or the gold paragraph alone.

A call trains what is not there yet and writes a line of squad-answers.jsonl for each row. It can be stopped at any
time, and ends by itself after `--stop_after_minutes`; the next call goes on from the last checkpoint.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from harness.answer_scores import score_means, score_sums, score_table
from harness.arms import Row, measure_missing, measured_with, sections
from harness.paragraph_corpus import ParagraphCorpus
from harness.passage_vectors import passage_vectors
from harness.realm_stages import RealmStages, Variant, add_realm_arguments, start_model
from harness.results import Line, add_result_arguments, measure_or_write_tables
from harness.retrieval import DEPTH, gain_table, gold_ranks, means, recall_table, sums_by_article
from harness.squad import Questions, add_file_arguments
from harness.stages import Stage
from harness.stop_after import add_stop_argument, stop_after

from realm_hf import RealmEmbedder, RealmForOpenQA, RealmForPreTraining, RealmRetriever, RealmTokenizer
from realm_hf.qa.answerer import QuestionAnswerer
from realm_hf.retriever.mixture_fit import fit_mixture
from realm_hf.storage.files import json_sha256
from realm_hf.training.open_qa import OpenQATrainer
from realm_hf.training.open_qa_arguments import OpenQATrainingArguments
from realm_hf.training.retrieval_evaluation import RetrievalQuestions

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from bm25 import bm25_rows

RESULTS = Path(__file__).resolve().parent / "squad-answers.jsonl"
START, REALM = "start", "REALM"
TUNED = {f"{arm}, fine-tuned": arm for arm in (START, REALM)}
BM25, DENSE, BOTH, GOLD = "BM25", "vectors", "both", "gold paragraph"
_CHOSEN_BY = 2_000
_SAVE_STEPS = 200
_PROBES = 500


class OwnReadingStages(RealmStages):
    """REALM from an encoder that is read as it was made: it needs no warm start."""

    def first_model(self, seed: int) -> RealmForPreTraining:
        """The towers of `--weights`; the encoder of `--encoder_weights`, if there is one."""
        model = start_model(self.args.weights, None, seed)
        if self.args.encoder_weights is not None:
            encoder = start_model(self.args.encoder_weights, None, seed).encoder
            model.encoder.load_state_dict(encoder.state_dict())
        return model

    def warm_start(self, seed: int, arm: str, before: Stage | None = None, steps: int | None = None) -> Stage:  # noqa: ARG002
        """None: the towers go on from where they are."""
        return before or self.start(seed)


class SquadAnswers:
    """The rows of one call, with what they share.

    Args:
        args: The command line.
    """

    def __init__(self, args: argparse.Namespace):
        self.args, self.folder = args, Path(args.output_dir)
        self.tokenizer = RealmTokenizer.from_pretrained(args.weights)
        sizes = {name: getattr(args, name) for name in ("max_passage_length", "max_query_length")}
        self.corpus = ParagraphCorpus(args.passages, self.tokenizer, self.folder / "data", whole=True, **sizes)
        self.passages = self.corpus.passages
        train = Questions.read(args.train)
        order = np.random.default_rng(args.seed).permutation(len(train.gold)).tolist()
        chosen_by = min(_CHOSEN_BY, len(order) // 2)
        #: By which a mix is fitted and curves are drawn; what is fine-tuned on is behind them.
        self.choice, self.labels = train.take(order[:chosen_by]), train.take(order[chosen_by:])
        self.dev = Questions.read(args.dev)
        self.articles = self.corpus.articles[self.dev.gold]
        generator = np.random.default_rng(args.seed)
        #: Places of the dev questions that are answered.
        self.answered = np.sort(generator.permutation(len(self.dev.gold))[: args.dev_questions])
        probes = self.choice.take(range(min(_PROBES, chosen_by)))
        self.stages = OwnReadingStages(args, self.corpus, probes.with_gold())
        self._found: dict[tuple[str, str], np.ndarray] = {}

    def settings(self) -> dict[str, Any]:
        """What a line was measured on; another line is measured again."""
        left_out = {
            "passages",
            "train",
            "dev",
            "output_dir",
            "weights",
            "encoder_weights",
            "results",
            "tables",
            "arms",
        }
        left_out |= {"stop_after_minutes"}
        return {
            "weights": f"{Path(self.args.weights).name} {self.stages.start(self.args.seed).key}",
            "passages": f"{len(self.passages)} of {self.passages.fingerprint}",
            "questions": len(self.dev.gold),
            "articles": len(np.unique(self.articles)),
            "trained_on": len(self.labels.gold),
            **{name: value for name, value in vars(self.args).items() if name not in left_out},
        }

    # What is trained

    def stage(self, arm: str) -> Stage:
        """Where an arm ends before fine-tuning."""
        seed = self.args.seed
        return self.stages.start(seed) if arm == START else self.stages.realm(seed, "realm", Variant())

    def fine_tuned(self, arm: str) -> Path:
        """The folder of a model that answers, fine-tuned from an arm's end."""
        args, before = self.args, self.stage(arm)
        settings: dict[str, Any] = {
            "num_train_epochs": args.epochs,
            "per_device_train_batch_size": args.tuning_batch_size,
            "learning_rate": args.reader_learning_rate,
            "retriever_learning_rate": None if args.freeze_retriever else args.query_learning_rate,
            "freeze_retriever": args.freeze_retriever,
            "searcher_beam_size": None if args.freeze_retriever else args.searcher_beam_size,
            "reader_beam_size": args.read_in_training,
            "candidate_mix": f"bm25={args.read_in_training}",  # the gold paragraph takes the place of the worst
            "reader_seq_len": args.max_passage_length + 32,
            "seed": args.seed,
        }
        key = json_sha256({"before": before.key, "questions": self.labels.texts, **settings})[:12]
        run = self.folder / "fine_tuning" / f"{arm}-{key}"
        if not (run / "model" / "retriever.json").is_file():
            arguments = OpenQATrainingArguments(
                output_dir=str(run),
                gold_passages=True,
                warmup_steps=-1,
                save_steps=_SAVE_STEPS,
                save_total_limit=1,
                encode_dtype=args.encode_dtype,
                disable_tqdm=True,
                **settings,
            )
            OpenQATrainer(
                RealmForOpenQA.from_pretraining(before.model(), seed=args.seed),
                arguments,
                train_dataset=self.labels.with_gold(),
                processing_class=self.tokenizer,
                passages=self.passages,
            ).train(resume_from_checkpoint=True).exit_if_interrupted()
        return run / "model"

    # What is found and read

    def searcher(self, arm: str) -> tuple[RealmRetriever, RealmEmbedder]:
        """Exact search over an arm's paragraphs, and the tower of its questions."""
        if arm in TUNED:
            folder = self.fine_tuned(TUNED[arm])
            return RealmRetriever.from_pretrained(folder), RealmForOpenQA.from_pretrained(folder).eval().embedder
        model = self.stage(arm).model().eval()
        file = self.folder / "vectors" / f"{self.stage(arm).key}-{self.args.encode_dtype}.npy"
        if not file.is_file():
            vectors = passage_vectors(model, self.passages, self.args.encode_dtype)
            file.parent.mkdir(parents=True, exist_ok=True)
            np.save(file.with_suffix(".part.npy"), vectors)
            file.with_suffix(".part.npy").replace(file)
        return RealmRetriever(self.passages, self.tokenizer, embeddings=np.load(file)), model.query_embedder

    def found(self, arm: str, found_by: str) -> np.ndarray:
        """Rows `[Q, DEPTH]` for all dev questions, best first."""
        if found_by == BM25:
            return self.bm25
        if (arm, found_by) not in self._found:
            retriever, tower = self.searcher(arm)
            if found_by == BOTH:
                retriever.query_embedder = tower
                fitted = fit_mixture(retriever, self.corpus.bm25, self.choice.texts, self.choice.gold)
                retriever.candidate_source = fitted.source
            asked = RetrievalQuestions(self.dev.examples, self.passages, self.tokenizer, gold_rows=self.dev.gold)
            self._found[arm, found_by] = asked.search(tower, retriever, DEPTH)
        return self._found[arm, found_by]

    @cached_property
    def bm25(self) -> np.ndarray:
        """What the library bm25s finds for the dev questions."""
        return bm25_rows(self.passages, self.dev.texts, DEPTH)

    def read(self, arm: str, rows: np.ndarray) -> list[str]:
        """The answers of a fine-tuned model, from rows `[n, K]` for the dev questions that are answered."""
        folder = self.fine_tuned(TUNED[arm])
        model = RealmForOpenQA.from_pretrained(folder).eval()
        answerer = QuestionAnswerer(model, RealmRetriever.from_pretrained(folder), self.tokenizer)
        texts = self.dev.take(self.answered.tolist()).texts
        return [answer.text or "" for answer in answerer.read(texts, rows)]

    # Lines

    def line(self, arm: str, found_by: str) -> Line:
        """Recall of what was found, and of a fine-tuned model the answers."""
        line: Line = {}
        by_article: dict[str, Any] = {}
        if found_by == GOLD:
            rows = np.array(self.dev.gold)[:, None]
        else:
            rows = self.found(arm, found_by)
            ranks = gold_ranks(rows, np.array(self.dev.gold), self.passages.duplicate_groups)
            by_article["recall"] = sums_by_article(ranks, self.articles)
            line |= means(by_article["recall"])
        if arm in TUNED:
            answers = self.read(arm, rows[self.answered][:, : self.args.read])
            asked = self.dev.take(self.answered.tolist()).examples
            by_article["answers"] = score_sums(answers, asked, self.articles[self.answered])
            line |= score_means(by_article["answers"])
        return {**line, "by_article": by_article}

    def rows(self) -> Iterator[Row]:
        """All lines, in the order in which they are trained for."""
        pairs = [(BM25, BM25), (START, DENSE), (START, BOTH)]
        tuned, realm_tuned = TUNED
        pairs += [(tuned, found_by) for found_by in (GOLD, BM25, DENSE, BOTH)]
        pairs += [(REALM, DENSE), (REALM, BOTH)]
        pairs += [(realm_tuned, found_by) for found_by in (GOLD, BM25, DENSE, BOTH)]
        for arm, found_by in pairs:
            if self.args.arms is None or arm in self.args.arms:
                yield {"arm": arm, "found_by": found_by}, partial(self.line, arm, found_by)


def measure(args: argparse.Namespace) -> None:
    """Train what is missing, and write a line for each row."""
    stop_after(args.stop_after_minutes)
    answers = SquadAnswers(args)
    measure_missing(args.results, answers.rows(), answers.settings(), "benchmarks", "examples/bm25.py")


def table(lines: list[Line]) -> str:
    """Markdown: a section for each setting."""
    return sections(lines, _section)


def _section(lines: list[Line]) -> str:
    on = lines[0]["on"]
    named = {f"{line['arm']}, by {line['found_by']}".replace("BM25, by BM25", BM25): line for line in lines}
    recall = {name: line["by_article"]["recall"] for name, line in named.items() if "recall" in line["by_article"]}
    answers = {name: line["by_article"]["answers"] for name, line in named.items() if "answers" in line["by_article"]}
    # BM25's paragraphs are the same, whoever reads them.
    rows = [(name, [sums], "") for name, sums in recall.items() if name == BM25 or not name.endswith(BM25)]
    over = [(f"{name}, over {BM25}", [sums], [recall[BM25]]) for name, sums in recall.items() if name.endswith(BOTH)]
    parts = [
        f"### {on['weights'].split()[0]}",
        "",
        f"{on['questions']:,} dev questions about {on['articles']} articles, {int(on['passages'].split()[0]):,} "
        f"paragraphs; fine-tuned on {on['trained_on']:,} train questions, {on['epochs']:g} times, the gold paragraph "
        f"and {on['read_in_training'] - 1} of BM25's read. In brackets the 95 % interval, articles resampled.",
        "",
        *recall_table("found by", rows, ""),
    ]
    if BM25 in recall and over:
        parts += ["", *gain_table(over)]
    if answers:
        count = sum(next(iter(answers.values()))["questions"])
        parts += ["", f"{count:,} questions answered, {on['read']} paragraphs read:", ""]
        parts += score_table("model, paragraphs by", list(answers.items()))
    return "\n".join([*parts, "", measured_with(lines[-1])])


def make_parser() -> argparse.ArgumentParser:
    """The options of the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_result_arguments(parser, RESULTS)
    add_file_arguments(parser)
    add_stop_argument(parser)
    parser.add_argument("--output_dir", type=Path, required=True, help="corpora, stages and models are kept here")
    parser.add_argument("--weights", default=".cache/minilm", help="of the towers: a BERT trained to embed sentences")
    parser.add_argument("--encoder_weights", help="of encoder and reader, of `realm-hf warm-start masked-lm`")
    parser.add_argument("--arms", nargs="+", choices=(BM25, START, REALM, *TUNED), metavar="ARM", help="default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--max_passage_length", type=int, default=256, help="wordpieces of a paragraph")
    parser.add_argument("--dev_questions", type=int, default=2000, help="answered; recall is over all of them")
    parser.add_argument("--read", type=int, default=5, help="paragraphs that are read for an answer")
    parser.set_defaults(warm_start="none")
    add_realm_arguments(parser)
    tuning = parser.add_argument_group("fine-tuning on questions")
    tuning.add_argument("--epochs", type=float, default=1.0, help="passes over the train questions")
    tuning.add_argument("--tuning_batch_size", type=int, default=8)
    tuning.add_argument("--reader_learning_rate", type=float, default=1e-4)
    tuning.add_argument("--query_learning_rate", type=float, default=2e-5)
    tuning.add_argument("--freeze_retriever", action="store_true", help="only the reader learns")
    tuning.add_argument("--searcher_beam_size", type=int, default=1000, help="paragraphs in the retriever's loss")
    tuning.add_argument("--read_in_training", type=int, default=2, help="the gold paragraph counted")
    return parser


def main() -> None:
    """Train what is missing and print the tables, or write them into a page."""
    measure_or_write_tables(table, RESULTS, make_parser, measure)


if __name__ == "__main__":
    main()
