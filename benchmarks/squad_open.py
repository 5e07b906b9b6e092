"""SQuAD without its paragraphs at hand: all of them are the knowledge corpus, and must be found first.

    python benchmarks/squad_open.py --passages passages.parquet --train train.parquet --dev dev.parquet \
        --weights .cache/minilm --output_dir runs/squad/minilm
    python benchmarks/squad_open.py ... --weights scratch --output_dir runs/squad/scratch

The files are described in harness/squad.py. Warm start by the inverse cloze task, index built once, fine-tuning
of query tower and reader on train questions, evaluation on dev questions. A second call goes on where the first ended.
Writes results.json and prints a table: recall of the gold paragraph over all dev questions, exact match and F1 of a
random sample of them, beside BM25 over the same paragraphs and beside the same reader with the gold paragraph.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
from harness.squad import Questions, add_file_arguments, random_bert, store_paragraphs

from realm_hf import RealmEmbedder, RealmForOpenQA, RealmForPreTraining, RealmRetriever, RealmTokenizer
from realm_hf.data.passages.build import PassageStore
from realm_hf.data.questions.matching import exact_match, token_f1
from realm_hf.qa.answerer import QuestionAnswerer
from realm_hf.qa.evaluation import evaluate_open_qa
from realm_hf.qa.predictions import write_predictions
from realm_hf.report.answers import write_answer_report
from realm_hf.training.arguments import InverseClozeTrainingArguments
from realm_hf.training.inverse_cloze import InverseClozeTrainer
from realm_hf.training.open_qa import OpenQATrainer
from realm_hf.training.open_qa_arguments import OpenQATrainingArguments
from realm_hf.training.retrieval_evaluation import RetrievalQuestions

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from bm25 import bm25_rows

KS = (1, 5, 20)
# LayerNorm bounds inner products of embeddings by their 128 dimensions; a tenth of it is a softmax that can learn.
MODEL = {
    "score_scale": 0.1,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "projection_dropout": 0.0,
}


def warm_start(args: argparse.Namespace, tokenizer: RealmTokenizer, passages: PassageStore) -> Path:
    """The inverse cloze task; the folder of its model."""
    folder: Path = args.output_dir / "warm_start"
    if folder.is_dir():
        return folder
    weights = args.weights
    if weights == "scratch":
        weights = random_bert(args.output_dir / "random_bert", len(tokenizer), args.seed)
    model = RealmForPreTraining.from_bert(weights, pooler="identity", seed=args.seed, **MODEL)
    InverseClozeTrainer(
        model,
        InverseClozeTrainingArguments(
            output_dir=str(args.output_dir / "inverse_cloze"),
            max_steps=args.inverse_cloze_steps,
            per_device_train_batch_size=args.inverse_cloze_batch_size,
            learning_rate=args.inverse_cloze_learning_rate,
            warmup_steps=max(1, args.inverse_cloze_steps // 10),
            max_query_length=64,
            save_steps=0,
            seed=args.seed,
        ),
        train_dataset=passages,
        processing_class=tokenizer,
    ).train().exit_if_interrupted()
    model.save_pretrained(folder)
    return folder


def fine_tune(
    args: argparse.Namespace, tokenizer: RealmTokenizer, passages: PassageStore, start: Path, train: Questions
) -> Path:
    """Query tower and reader on train questions; the folder of a model that answers by itself."""
    run: Path = args.output_dir / "open_qa"
    if (run / "model" / "retriever.json").is_file():
        return run / "model"
    result = OpenQATrainer(
        RealmForOpenQA.from_pretraining(start, seed=args.seed),
        OpenQATrainingArguments(
            output_dir=str(run),
            max_steps=args.max_steps,
            per_device_train_batch_size=args.batch_size,
            learning_rate=args.learning_rate,
            retriever_learning_rate=args.retriever_learning_rate,
            warmup_steps=args.max_steps // 20,
            searcher_beam_size=args.searcher_beam_size,
            reader_beam_size=args.reader_beam_size,
            reader_seq_len=args.max_passage_length + 32,
            save_steps=200,
            seed=args.seed,
        ),
        train_dataset=train.examples,
        processing_class=tokenizer,
        passages=passages,
        index_from=args.index_from,
    ).train(resume_from_checkpoint=(run / "checkpoints").is_dir())
    result.exit_if_interrupted()
    return run / "model"


def recall(ranks: np.ndarray) -> dict[str, float]:
    """Percent at each depth."""
    return {str(k): round(100 * float((ranks < k).mean()), 1) for k in KS}


def scores(predictions: list[str], asked: Questions) -> dict[str, float]:
    """Exact match and F1 in percent."""
    pairs = [(text, example.answers) for text, example in zip(predictions, asked.examples, strict=True)]
    return {
        "exact_match": round(100 * float(np.mean([exact_match(*pair) for pair in pairs])), 1),
        "f1": round(100 * float(np.mean([token_f1(*pair) for pair in pairs])), 1),
    }


def main() -> None:
    """Train what is not there yet, evaluate, write results.json and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_file_arguments(parser)
    parser.add_argument("--output_dir", type=Path, required=True)
    parser.add_argument("--weights", default=".cache/minilm", help="a BERT checkpoint, or 'scratch'")
    parser.add_argument("--tokenizer", default=".cache/minilm", help="whose vocabulary is used")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--max_passage_length", type=int, default=192, help="wordpieces; the rest of a paragraph is cut"
    )
    parser.add_argument("--inverse_cloze_steps", type=int, default=40)
    parser.add_argument("--inverse_cloze_batch_size", type=int, default=32)
    parser.add_argument("--inverse_cloze_learning_rate", type=float, default=5e-5)
    parser.add_argument("--max_steps", type=int, default=700, help="of fine-tuning")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--learning_rate", type=float, default=2e-4)
    parser.add_argument("--retriever_learning_rate", type=float, default=2e-5)
    parser.add_argument(
        "--index_from", help="an earlier fine-tuning of the same warm start, whose index is taken over"
    )
    parser.add_argument("--searcher_beam_size", type=int, default=1000)
    parser.add_argument("--reader_beam_size", type=int, default=2, help="passages read in training; then five")
    parser.add_argument("--dev_questions", type=int, default=1000, help="answered; recall is over all of them")
    args = parser.parse_args()

    seconds: dict[str, float] = {}
    clock = time.perf_counter()

    def lap(phase: str) -> None:
        nonlocal clock
        now = time.perf_counter()
        seconds[phase], clock = round(now - clock, 1), now

    args.output_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = RealmTokenizer.from_pretrained(args.tokenizer)
    passages = store_paragraphs(args.passages, tokenizer, args.output_dir / "passages", args.max_passage_length)
    train, dev = Questions.read(args.train), Questions.read(args.dev)
    lap("data")
    start = warm_start(args, tokenizer, passages)
    lap("inverse cloze")
    folder = fine_tune(args, tokenizer, passages, start, train)
    lap("index and fine-tuning")

    retriever = RealmRetriever.from_pretrained(folder)
    model = RealmForOpenQA.from_pretrained(folder, retriever=retriever).eval()
    # The index is of the tower that the warm start left; fine-tuning moves the queries alone.
    before = RealmEmbedder.from_pretrained(folder / "embedder").eval()
    sparse = bm25_rows(passages, dev.texts, max(KS))
    found = passages.duplicate_groups[sparse] == passages.duplicate_groups[np.array(dev.gold)][:, None]
    asked_of_towers = RetrievalQuestions(dev.examples, passages, tokenizer, gold_rows=dev.gold)
    recalls = {
        name: recall(asked_of_towers.ranks(tower, retriever, max(KS)))
        for name, tower in (("after ICT", before), ("fine-tuned", model.embedder))
    }
    recalls["BM25"] = recall(np.where(found.any(1), found.argmax(1), max(KS)))
    lap("recall")

    asked = dev.sample(args.dev_questions, args.seed)
    answerer = QuestionAnswerer(model, retriever)
    result = evaluate_open_qa(answerer, asked.examples, KS, top_k=5, retrieval_utility=False)
    lap("answering")
    first = bm25_rows(passages, asked.texts, 5)
    gold = np.array(asked.gold)[:, None]
    matched = {
        "REALM": scores([record.answer.text or "" for record in result.records], asked),
        "the same reader over BM25's five": scores([a.text or "" for a in answerer.read(asked.texts, first)], asked),
        "the same reader, given the gold paragraph": scores(
            [a.text or "" for a in answerer.read(asked.texts, gold)], asked
        ),
    }
    lap("baselines")
    write_predictions(result.records, args.output_dir / "predictions.jsonl")
    write_answer_report(args.output_dir, title="SQuAD, paragraphs to be found")
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    counts = json.loads((folder.parent / "summary.json").read_text(encoding="utf-8"))["trained_questions"]
    results = {
        "settings": settings,
        "passages": len(passages),
        "questions": {"recall": len(dev.gold), "answered": len(asked.gold), "trained": counts},
        "recall_of_gold": recalls,
        "answer_recall": {str(k): round(100 * share, 1) for k, share in result.answer_recall.items()},
        "scores": matched,
        "latency_p50": result.latency_p50,
        "questions_per_second": result.questions_per_second,
        "seconds": seconds,
    }
    (args.output_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print("\n| retriever |" + "".join(f" recall@{k} |" for k in KS) + "\n|---|" + "---|" * len(KS))
    for name, figures in recalls.items():
        print(f"| {name} |" + "".join(f" {figures[str(k)]:.1f} |" for k in KS))
    print("\n| | exact match | F1 |\n|---|---|---|")
    for name, figures in matched.items():
        print(f"| {name} | {figures['exact_match']:.1f} | {figures['f1']:.1f} |")
    print("\n" + "; ".join(f"{phase} {spent:.0f} s" for phase, spent in seconds.items()))


if __name__ == "__main__":
    main()
