"""REALM in a few minutes on two cores: `make demo`, or `python examples/demo.py --help`.

Raw text in, a jointly trained retriever and reader out. The knowledge corpus is the CIA World Factbook; the text
states some of its facts in other words; countries are split, and what is printed at the end, recall and answers, is
about countries that no statement spoke of. The initial weights are all-MiniLM-L6-v2, a trained retriever (it has seen
question and answer pairs, SQuAD, NQ and TriviaQA among them), read off the shelf: the first row of the table is a
strong one.

    1. warm start: the inverse cloze task on the passages; for comparison, a copy of the initial weights learns from
       spans that passages of one country share
    2. pre-training: the reader learns to read first, then both learn; a builder process renews the index meanwhile
    3. fine-tuning: question answering, trained on questions about the countries that the statements spoke of
    4. report: runs/demo/report.html and summary.json, five masked sentences and five answers with their passages
"""

from __future__ import annotations

import argparse
import copy
import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import transformers
from transformers import TrainerCallback

from demo_phases import PhaseInterrupted, Phases
from demo_questions import evaluate, fine_tune, print_answers
from factbook_task import (
    MAX_PASSAGE_LENGTH,
    MAX_QUERY_LENGTH,
    FactbookTask,
    bm25_ranks,
    hybrid_ranks,
    index_now,
    prepare_task,
    print_recall,
    ranks_of,
    recall_at,
    start_as_made,
)
from fetch_minilm import DEFAULT_FOLDER
from realm_hf import RealmForPreTraining, RealmTokenizer, write_report
from realm_hf.data import find_recurring_spans
from realm_hf.training import (
    InverseClozeTrainer,
    InverseClozeTrainingArguments,
    RealmTrainer,
    RealmTrainingArguments,
    RecurringSpanTrainer,
    RecurringSpanTrainingArguments,
)

ROWS = {
    "initial": "MiniLM off the shelf",
    "ict": "after ICT",
    "recurring": "after recurring spans instead",
    "realm": "after REALM",
    "bm25": "BM25",
    "hybrid": "REALM and BM25, fused",
}


class RanksAtBothEnds(TrainerCallback):
    """Ranks over the index that is served: before the first step (after ICT) and after the last (after REALM)."""

    def __init__(self, task: FactbookTask, questions: list[Any], phases: Phases):
        self.task, self.questions, self.phases = task, questions, phases

    def _measure(self, trainer: RealmTrainer, ranks: Callable[..., np.ndarray]) -> list[int]:
        with trainer.index.reading() as served:
            found: list[int] = ranks(trainer.model.embedder, served.retriever, self.task, self.questions).tolist()
        return found

    def on_train_begin(self, *_: Any, trainer: RealmTrainer, **__: Any) -> None:
        """After ICT; a resumed run has it from its first sitting."""
        self.phases.result("ict", lambda: self._measure(trainer, ranks_of))

    def on_train_end(self, *_: Any, trainer: RealmTrainer, **__: Any) -> None:
        """After REALM, unless it was interrupted."""
        if not trainer.interrupted:
            self.phases.result("realm", lambda: self._measure(trainer, ranks_of))
            self.phases.result("hybrid", lambda: self._measure(trainer, hybrid_ranks))


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", default=str(DEFAULT_FOLDER), help="any BERT checkpoint: folder or Hub id")
    parser.add_argument(
        "--output_dir",
        type=Path,
        default=Path("runs/demo"),
        help="the run: one that was stopped goes on, a finished one is replaced",
    )
    parser.add_argument("--restart", action="store_true", help="begin again, although a stopped demo could go on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--inverse_cloze_steps", type=int, default=10)
    parser.add_argument("--recurring_span_steps", type=int, default=10)
    parser.add_argument("--reading_steps", type=int, default=110, help="steps in which only the reader learns")
    parser.add_argument("--joint_steps", type=int, default=60, help="steps in which both learn")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_candidates", type=int, default=4, help="K, the null passage counted")
    parser.add_argument("--learning_rate", type=float, default=3e-4)
    parser.add_argument("--question_steps", type=int, default=90, help="steps of fine-tuning on questions")
    parser.add_argument("--refresh", default="async", choices=["async", "sync", "off"])
    parser.add_argument("--refresh_steps", type=int, default=15)
    return parser.parse_args()


def main() -> int:
    args = parse_arguments()
    logging.basicConfig(level=logging.WARNING)
    # Only the bars of the training are worth watching.
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    print("REALM demo: the CIA World Factbook\n")
    told = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items()}
    phases = Phases(
        args.output_dir, {n: v for n, v in told.items() if n not in ("output_dir", "restart")}, args.restart
    )
    try:
        run_phases(args, phases)
    except PhaseInterrupted as stop:
        print(f"\n{stop} The same command goes on from there (make demo); with --restart it begins again.")
        return stop.exit_status
    except KeyboardInterrupt:
        print("\nStopped between two phases. The same command goes on with the last one; --restart begins again.")
        return 130
    return 0


def run_phases(args: argparse.Namespace, phases: Phases) -> None:
    tokenizer = RealmTokenizer.from_pretrained(args.weights)
    task = prepare_task(args.output_dir / "data", tokenizer, seed=args.seed)
    questions = task.asked(country_seen=False, field_seen=True)
    print(
        f"{len(task.passages):,} passages; {len(task.sentences.train):,} statements about seen countries; "
        f"{len(questions)} questions about held-out countries"
    )
    phases.done("data")
    if phases.is_done("pre-training"):
        model = RealmForPreTraining.from_pretrained(args.output_dir / "model")
    else:
        model = start_as_made(args.weights, args.seed)
        phases.result("initial", lambda: ranks_now(model, task, questions))
        phases.done("initial recall")
        if not phases.is_done("recurring spans"):
            copied = copy.deepcopy(model)
            learn_recurring_spans(copied, task, args, phases)
            phases.result("recurring", lambda: ranks_now(copied, task, questions))
            phases.done("recurring spans")
        # Over or not: a training that is over only gives its weights back.
        warm_up(model, task, args, phases)
        phases.done("inverse cloze")
        pre_train(model, task, questions, args, phases)
        phases.result("bm25", lambda: bm25_ranks(task, questions).tolist())
        phases.done("pre-training")
    qa_model, retriever = fine_tune(
        model, task, args.output_dir, phases, steps=args.question_steps, batch_size=args.batch_size, seed=args.seed
    )
    phases.done("fine-tuning")
    matched, answer_recall, answers = evaluate(qa_model, retriever, task, questions)
    phases.done("answering")
    show(args.output_dir, phases, questions, matched, answer_recall, answers)


def ranks_now(model: RealmForPreTraining, task: FactbookTask, questions: list[Any]) -> list[int]:
    found: list[int] = ranks_of(model.embedder, index_now(model.embedder, task), task, questions).tolist()
    return found


def warm_up(model: RealmForPreTraining, task: FactbookTask, args: argparse.Namespace, phases: Phases) -> None:
    folder = args.output_dir / "inverse_cloze"
    trainer = InverseClozeTrainer(
        model,
        InverseClozeTrainingArguments(
            output_dir=str(folder),
            max_steps=args.inverse_cloze_steps,
            per_device_train_batch_size=32,
            learning_rate=2e-5,
            warmup_steps=min(5, args.inverse_cloze_steps // 2),
            max_query_length=64,
            # MiniLM has never met [MASK]: the queries are masked, and the sentence stays, so that the words around a
            # mask are enough to find it.
            mask_probability=1.0,
            keep_probability=1.0,
            save_steps=0,
            seed=args.seed,
        ),
        train_dataset=task.passages,
        processing_class=task.tokenizer,
    )
    phases.train("inverse cloze", trainer.train, trainer.checkpoints)


def learn_recurring_spans(
    model: RealmForPreTraining, task: FactbookTask, args: argparse.Namespace, phases: Phases
) -> None:
    trainer = RecurringSpanTrainer(
        model,
        RecurringSpanTrainingArguments(
            output_dir=str(args.output_dir / "recurring_spans"),
            max_steps=args.recurring_span_steps,
            per_device_train_batch_size=32,
            learning_rate=2e-5,
            warmup_steps=min(5, args.recurring_span_steps // 2),
            max_query_length=64,
            save_steps=0,
            seed=args.seed,
        ),
        train_dataset=task.passages,
        recurring=find_recurring_spans(task.passages, task.tokenizer),
        processing_class=task.tokenizer,
    )
    phases.train("recurring spans", trainer.train, trainer.checkpoints)


def pre_train(
    model: RealmForPreTraining, task: FactbookTask, questions: list[Any], args: argparse.Namespace, phases: Phases
) -> None:
    trainer = RealmTrainer(
        model,
        RealmTrainingArguments(
            output_dir=str(args.output_dir),
            max_steps=args.reading_steps + args.joint_steps,
            freeze_retriever_steps=args.reading_steps,
            per_device_train_batch_size=args.batch_size,
            num_candidates=args.num_candidates,
            # One passage and the null one: what the reader needs to learn to read is many examples.
            reading_candidates=2,
            learning_rate=args.learning_rate,
            warmup_steps=5,
            max_query_length=MAX_QUERY_LENGTH,
            max_candidate_length=MAX_PASSAGE_LENGTH,
            refresh=args.refresh,
            refresh_steps=args.refresh_steps,
            keep_generations=16,
            save_steps=0,
            seed=args.seed,
        ),
        train_dataset=task.sentences.train,
        eval_dataset=task.sentences.heldout,
        processing_class=task.tokenizer,
        passages=task.passages,
        callbacks=[RanksAtBothEnds(task, questions, phases)],
    )
    phases.train("pre-training", trainer.train, trainer.checkpoints)


def show(
    run: Path,
    phases: Phases,
    questions: list[Any],
    matched: dict[str, float],
    answer_recall: dict[str, float],
    answers: list[Any],
) -> None:
    """Write summary.json and report.html, and print what they say."""
    ranks, seconds = phases.record["results"], phases.finish()
    recall = {name: recall_at(found) for name, found in ranks.items()}
    summary_path = run / "summary.json"
    summary = json.loads(summary_path.read_text(encoding="utf-8"))
    summary |= {"recall": recall, "exact_match": matched, "answer_recall": answer_recall, "seconds": seconds}
    # Every question's rank, so that intervals can be had (`benchmarks/demo_seeds.py`).
    asked = [{"country": question.country, "field": question.field} for question in questions]
    summary |= {"seed": phases.record["arguments"]["seed"], "questions": asked, "ranks": ranks}
    summary_path.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
    report = write_report(run)
    print_examples(run / "examples.json")
    print(f"\nRecall of {len(questions)} questions about held-out countries, in percent")
    print_recall((text, recall[key]) for key, text in ROWS.items())
    print(f"\n{len(summary['generations'])} index generations were served:")
    for generation in summary["generations"]:
        print(
            f"  {generation['name']}: weights of step {generation['snapshot_step']}, built by process "
            f"{generation['builder_pid']}, served from step {generation['swapped_at_step']}"
        )
    print(f"\nExact match of the answers to the same {len(questions)} questions, in percent")
    baselines = {
        "realm": "REALM, fine-tuned",
        "shuffled_retrieval": "with another question's passages",
        "null_passage": "with the null passage alone",
        "majority": "each field's most common answer",
    }
    for key, text in baselines.items():
        print(f"  {text:34s}{matched[key]:6.1f}")
    print(f"  a passage that is read holds the answer: {answer_recall['5']:.1f}")
    print_answers(answers[:5], questions[:5])
    print(f"\nAsk it yourself: realm-hf ask --model {run / 'open_qa' / 'model'}")
    print("\n" + "; ".join(f"{phase} {spent:.0f} s" for phase, spent in seconds.items()))
    print(f"Report: {report}")


def print_examples(path: Path) -> None:
    """Five masked sentences with their passages, p(z|x) and retrieval utility (nats gained over the null passage)."""
    for example in json.loads(path.read_text(encoding="utf-8")):
        print(f"\n  {example['text']}\n  answer: {example['answer']}   filled in: {example['filling']}")
        for candidate in example["candidates"]:
            text = candidate["text"] or "(null passage)"
            text = text if len(text) <= 80 else text[:79] + "…"
            print(f"    p(z|x) {candidate['probability']:.3f}  utility {candidate['utility']:+6.2f}  {text}")


if __name__ == "__main__":
    sys.exit(main())
