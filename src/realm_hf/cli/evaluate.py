"""Evaluate a question answerer on a benchmark or on your own questions, on one process or on many.

    realm-hf evaluate --model runs/qa/model --output_dir runs/qa/nq --benchmark nq_open
    accelerate launch -m realm_hf evaluate --model runs/qa/model --output_dir runs/qa/own --questions own.jsonl

The output directory then holds metrics.json, predictions.jsonl (a question a line, with its evidence) and answers.html
(open it in a browser). A benchmark names its questions on the Hub, its split and whether its answers are regular
expressions; `--questions` takes another copy of them. The corpus is the model's own, or `--retriever`.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from transformers import AutoTokenizer

from realm_hf.cli.arguments import AskedArguments, MeasureArguments, ModelAndCorpusArguments
from realm_hf.cli.programs import one_line_errors, set_up_logging
from realm_hf.data.questions.load import OpenQAExample, load_questions
from realm_hf.models.modeling_realm_qa import RealmForOpenQA
from realm_hf.qa.answerer import QuestionAnswerer
from realm_hf.qa.evaluation import evaluate_open_qa
from realm_hf.qa.predictions import write_predictions
from realm_hf.report import write_answer_report
from realm_hf.retriever.retriever import RealmRetriever
from realm_hf.storage.errors import make_output_directory

__all__ = ["main"]


@dataclass(frozen=True)
class Benchmark:
    """Where the questions of a benchmark are that its published figures are reported for."""

    source: str | None
    split: str
    questions: int
    regex: bool = False


BENCHMARKS = {
    "nq_open": Benchmark("google-research-datasets/nq_open", "validation", 3610),
    "web_questions": Benchmark("stanfordnlp/web_questions", "test", 2032),
    "squad": Benchmark("rajpurkar/squad", "validation", 10570),
    "curated_trec": Benchmark(None, "test", 694, regex=True),
}


def main(setup: ModelAndCorpusArguments, asked: AskedArguments, measures: MeasureArguments) -> int:
    """Run the program with these arguments; returns its exit code."""
    with one_line_errors("evaluate"):
        accelerator = Accelerator(cpu=setup.use_cpu)
        set_up_logging(accelerator)
        output = Path(setup.output_dir)
        make_output_directory(output)
        examples = load_examples(asked, accelerator)
        answerer = load_answerer(setup, accelerator)
    result = evaluate_open_qa(
        answerer,
        examples,
        measures.ks,
        top_k=setup.top_k,
        latency_questions=measures.latency_questions,
        retrieval_utility=measures.retrieval_utility,
        accelerator=accelerator,
    )
    if accelerator.is_main_process:
        told = {
            "model": setup.model,
            "retriever": setup.retriever or setup.model,
            "processes": accelerator.num_processes,
        }
        write_predictions(result.records, output / "predictions.jsonl")
        figures = {**result.to_dict(), **told, "benchmark": asked.benchmark or asked.questions}
        (output / "metrics.json").write_text(
            json.dumps(figures, indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )
        report = write_answer_report(
            output, title=asked.benchmark or Path(str(asked.questions)).stem, limit=measures.report_questions
        )
        print(f"\n{result.table()}\n\n{report}")
    accelerator.end_training()
    return 0


def load_examples(args: AskedArguments, accelerator: Accelerator) -> list[OpenQAExample]:
    """The questions of a benchmark, of the user, or the user's copy of a benchmark's.

    Raises:
        SystemExit: Nothing says which, or the benchmark is unknown or not on the Hub.
    """
    if args.benchmark is not None and args.benchmark not in BENCHMARKS:
        raise SystemExit(f"There is no benchmark {args.benchmark!r}: choose one of {', '.join(BENCHMARKS)}.")
    benchmark = BENCHMARKS.get(args.benchmark or "", Benchmark(None, "train", 0))
    source = args.questions or benchmark.source
    if source is None:
        raise SystemExit(
            "There are no questions: name a --benchmark, or a file with --questions (for curated_trec, always: DrQA's "
            "CuratedTrec-test.txt, renamed to .jsonl)."
        )
    with accelerator.main_process_first():  # one process downloads
        examples = load_questions(
            source,
            args.split or benchmark.split,
            name=args.questions_config,
            question_column=args.question_column,
            answer_column=args.answer_column,
            regex=args.regex_answers or benchmark.regex,
        )
    examples = examples[: args.max_questions]
    if benchmark.questions not in (0, len(examples)) and accelerator.is_main_process:
        print(
            f"Not comparable with published figures: {len(examples):,} questions are asked, {args.benchmark} is "
            f"reported for {benchmark.questions:,}."
        )
    return examples


def load_answerer(args: ModelAndCorpusArguments, accelerator: Accelerator) -> QuestionAnswerer:
    retriever = RealmRetriever.from_pretrained(args.retriever or args.model)
    if retriever.tokenizer is None:
        retriever.tokenizer = AutoTokenizer.from_pretrained(args.model)
    return QuestionAnswerer(
        RealmForOpenQA.from_pretrained(args.model, retriever=retriever),
        batch_size=args.batch_size,
        max_question_length=args.max_query_length,
        device=accelerator.device,
    )
