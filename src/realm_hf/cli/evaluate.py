"""Evaluate a question answerer on a benchmark or on your own questions, on one process or on many.

    realm-hf evaluate --model runs/qa/model --output_dir runs/qa/nq --benchmark nq_open
    accelerate launch -m realm_hf evaluate --model runs/qa/model --output_dir runs/qa/own --questions own.jsonl

The output directory then holds metrics.json, predictions.jsonl (a question a line, with its evidence) and answers.html
(open it in a browser). A benchmark names its questions on the Hub, its split and whether its answers are regular
expressions; `--questions` takes another copy of them. The corpus is the model's own, or `--retriever`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from accelerate import Accelerator
from tqdm import tqdm
from transformers import AutoTokenizer

from realm_hf.cli.programs import arguments_of, set_up_logging
from realm_hf.data.questions.load import OpenQAExample, load_questions
from realm_hf.models.configuration_realm import MAX_QUERY_LENGTH
from realm_hf.models.modeling_realm_qa import RealmForOpenQA
from realm_hf.qa.answerer import QuestionAnswerer
from realm_hf.qa.evaluation import evaluate_open_qa
from realm_hf.qa.predictions import write_predictions
from realm_hf.report import write_answer_report
from realm_hf.retriever.retriever import RealmRetriever

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


@dataclass
class ModelAndCorpusArguments:
    """Parameters that control who answers, and out of what."""

    model: str = field(metadata={"help": "A RealmForOpenQA, as fine-tuning saves it."})
    output_dir: str = field(metadata={"help": "Where figures, predictions and report go."})
    retriever: str | None = field(default=None, metadata={"help": "A RealmRetriever; default: the model's directory."})
    top_k: int | None = field(default=None, metadata={"help": "Passages read a question; default: the model's (5)."})
    batch_size: int = field(default=32, metadata={"help": "Questions a process reads at once."})
    max_question_length: int = field(
        default=MAX_QUERY_LENGTH, metadata={"help": "Wordpieces of a question; the rest is cut."}
    )
    use_cpu: bool = field(default=False, metadata={"help": "Compute on the CPU even if there is a GPU."})


@dataclass
class QuestionArguments:
    """Parameters that control what is asked."""

    benchmark: str | None = field(
        default=None, metadata={"help": "One of nq_open, web_questions, squad, curated_trec."}
    )
    questions: str | None = field(
        default=None, metadata={"help": "JSON lines or Parquet with question and answer(s), or a Hub id."}
    )
    split: str | None = field(default=None, metadata={"help": "Split of a Hub dataset; default: the benchmark's."})
    questions_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    question_column: str = field(default="question", metadata={"help": "Column of the question."})
    answer_column: str | None = field(
        default=None, metadata={"help": "Column of the answers; default: answers or answer."}
    )
    regex_answers: bool = field(
        default=False, metadata={"help": "The answers are regular expressions, as curated_trec's always are."}
    )
    max_questions: int | None = field(default=None, metadata={"help": "Ask only the first so many."})


@dataclass
class MeasureArguments:
    """Parameters that control what is measured."""

    ks: list[int] = field(default_factory=lambda: [1, 5, 20], metadata={"help": "Depths of recall."})
    latency_questions: int = field(default=100, metadata={"help": "Questions asked one at a time, for the latency."})
    retrieval_utility: bool = field(
        default=True, metadata={"help": "Read every question with another one's passages too, and subtract."}
    )
    report_questions: int = field(default=1000, metadata={"help": "Questions that the HTML page shows."})


def main(words: Sequence[str]) -> int:
    """Run the program with these arguments; returns its exit code."""
    setup, asked, measures = arguments_of(
        "evaluate", words, (ModelAndCorpusArguments, QuestionArguments, MeasureArguments)
    )
    accelerator = Accelerator(cpu=setup.use_cpu)
    set_up_logging(accelerator)
    examples = load_examples(asked, accelerator)
    answerer = load_answerer(setup, accelerator)
    with tqdm(desc="answering", unit="question", disable=not accelerator.is_main_process) as bar:

        def progress(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        result = evaluate_open_qa(
            answerer,
            examples,
            measures.ks,
            top_k=setup.top_k,
            latency_questions=measures.latency_questions,
            retrieval_utility=measures.retrieval_utility,
            accelerator=accelerator,
            progress=progress,
        )
    if accelerator.is_main_process:
        output = Path(setup.output_dir)
        output.mkdir(parents=True, exist_ok=True)
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


def load_examples(args: QuestionArguments, accelerator: Accelerator) -> list[OpenQAExample]:
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
        max_question_length=args.max_question_length,
        device=accelerator.device,
    )
