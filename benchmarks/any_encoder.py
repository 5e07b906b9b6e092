"""A RoBERTa from nothing to answers: every program of `realm-hf` with an encoder that is no BERT.

    python benchmarks/any_encoder.py --output_dir runs/any-encoder --page docs/results/any-encoder.md

The encoder is small, its vocabulary byte-level BPE of the corpus, the corpus the CIA World Factbook (extra `demo`):
masked language modelling, the inverse cloze task, two hundred joint steps of REALM on statements, fine-tuning on
questions about the countries that the statements spoke of, and questions about the others. Each phase is a command and
leaves a line in any-encoder.jsonl; a phase that is over is not run again, and one that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import random
import shlex
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from harness.results import Line, append_line, read_lines, write_between

from realm_hf import Answer, BM25Source, RealmForOpenQA, RealmRetriever
from realm_hf.cli.main import main as realm_hf
from realm_hf.data import PassageStore
from realm_hf.data.questions.matching import exact_match
from realm_hf.qa.answerer import QuestionAnswerer
from realm_hf.runs.records import read_run

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from factbook import factbook_passages, factbook_questions, factbook_statements

RESULTS = Path(__file__).resolve().parent / "any-encoder.jsonl"
SIZES = "model_type=roberta,hidden_size=128,num_hidden_layers=2,num_attention_heads=4,intermediate_size=512"
SHOWN = 6
# Steps at each end of a run whose losses are averaged: a batch of eight is noisy.
_ENDS = 20
_LOSSES = ("loss", "held_out")
_NAMES = {
    "masked_lm": "masked language modelling",
    "inverse_cloze": "inverse cloze task",
    "realm": "REALM, jointly",
    "qa": "fine-tuning on questions",
}


def write_rows(file: Path, rows: Iterable[dict[str, Any]]) -> Path:
    """JSON lines, which every program reads."""
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return file


def write_data(folder: Path, dev_questions: int) -> dict[str, Path]:
    """Passages, statements, and questions whose fields the statements spoke of: their countries too, and others."""
    folder.mkdir(parents=True, exist_ok=True)
    asked = [question for question in factbook_questions() if question.field_seen]
    random.Random(0).shuffle(asked)  # noqa: S311 - an order, not a secret
    cells = {
        "train": [question for question in asked if question.country_seen],
        "dev": [question for question in asked if not question.country_seen][:dev_questions],
    }
    return {
        "passages": write_rows(folder / "passages.jsonl", factbook_passages()),
        "statements": write_rows(folder / "statements.jsonl", factbook_statements()),
        **{
            name: write_rows(
                folder / f"{name}.jsonl",
                ({"question": q.question, "answer": q.answer, "passage": q.passage} for q in questions),
            )
            for name, questions in cells.items()
        },
    }


def options(entries: dict[str, Any]) -> list[str]:
    """As words of a command line."""
    return [word for name, value in entries.items() for word in (f"--{name}", str(value))]


def commands(args: argparse.Namespace, data: dict[str, Path]) -> dict[str, list[str]]:
    """The command of each phase."""
    run: Path = args.output_dir
    corpus = {"knowledge_corpus": data["passages"], "rows_are_passages": True}
    common = {"use_cpu": True, "disable_tqdm": True, "save_steps": 100, "seed": args.seed}
    towers = {"pooling_mode": "mean", "projection": "none", "normalize": True}
    masked_lm = {
        "output_dir": run / "masked_lm", "from_nothing": args.sizes, "vocab_size": args.vocab_size,
        "max_steps": args.masked_lm_steps, "per_device_train_batch_size": 32, "max_length": 96,
        "max_candidate_length": 96, "learning_rate": 1e-3, "warmup_steps": args.masked_lm_steps // 10,
        "eval_steps": args.masked_lm_steps, "eval_examples": 128,
    }  # fmt: skip
    inverse_cloze = {
        "output_dir": run / "inverse_cloze", "model_name_or_path": run / "masked_lm" / "model",
        "max_steps": args.inverse_cloze_steps, "per_device_train_batch_size": 64, "max_candidate_length": 96,
        "max_query_length": 32, "learning_rate": 5e-4, "warmup_steps": args.inverse_cloze_steps // 10,
    }  # fmt: skip
    realm = {
        "output_dir": run / "realm", "model_name_or_path": run / "inverse_cloze" / "model",
        "pretraining_corpus": data["statements"], "max_steps": args.joint_steps, "per_device_train_batch_size": 8,
        "num_candidates": 4, "candidate_mix": "bm25=2,dense=1", "max_candidate_length": 96, "max_query_length": 32,
        "learning_rate": 3e-4, "warmup_steps": args.joint_steps // 10, "refresh": "sync",
        "refresh_steps": max(1, args.joint_steps // 2), "heldout_fraction": 0.02, "max_eval_sentences": 64,
        "eval_steps": max(1, args.joint_steps // 2),
    }  # fmt: skip
    qa = {
        "output_dir": run / "qa", "model_name_or_path": run / "realm" / "model", "train_questions": data["train"],
        "gold_passages": True, "max_steps": args.question_steps, "per_device_train_batch_size": 8,
        "searcher_beam_size": 100, "reader_beam_size": 2, "reader_seq_len": 128, "max_query_length": 32,
        "learning_rate": 5e-4, "warmup_steps": args.question_steps // 10, "dev_fraction": 0,
    }  # fmt: skip
    answers = {
        "model": run / "qa" / "model", "questions": data["dev"], "output_dir": run / "answers", "use_cpu": True,
        "latency_questions": 10,
    }  # fmt: skip
    return {
        "masked_lm": ["warm-start", "masked-lm", *options(corpus | common | masked_lm)],
        "inverse_cloze": ["warm-start", "inverse-cloze", *options(corpus | common | towers | inverse_cloze)],
        "realm": ["pretrain", *options(corpus | common | realm)],
        "qa": ["finetune", *options(common | qa)],
        "answers": ["evaluate", *options(answers)],
    }


def losses(run: Path) -> Line:
    """What a run's log says of its loss: the mean of its first and of its last steps, and of what is held out."""
    record = read_run(run)
    values = [step["loss"] for step in record.steps]
    held_out = [evaluation["eval_loss"] for evaluation in record.evaluations if "eval_loss" in evaluation]
    ends = min(_ENDS, max(1, len(values) // 2))
    return {
        "steps": len(values),
        "loss": [round(float(np.mean(values[:ends])), 3), round(float(np.mean(values[-ends:])), 3)],
        "seconds": round(sum(step["step_seconds"] for step in record.steps)),
        **({"held_out": [round(value, 3) for value in held_out]} if held_out else {}),
    }


def read_elsewhere(run: Path, questions: Path) -> Line:
    """Exact match of the same model where it is given the passage that holds the answer, and where BM25 finds five."""
    rows = [json.loads(line) for line in questions.read_text(encoding="utf-8").splitlines()]
    asked = [row["question"] for row in rows]
    retriever = RealmRetriever.from_pretrained(run / "qa" / "model")
    answerer = QuestionAnswerer(RealmForOpenQA.from_pretrained(run / "qa" / "model"), retriever)

    def share(answers: list[Answer]) -> float:
        right = [exact_match(answer.text or "", [row["answer"]]) for answer, row in zip(answers, rows, strict=True)]
        return float(np.mean(right))

    given = share(answerer.read(asked, np.array([[row["passage"]] for row in rows])))
    assert retriever.tokenizer is not None
    retriever.candidate_source = BM25Source.build(PassageStore(run / "realm" / "passages"), retriever.tokenizer)
    return {"given_gold": given, "from_bm25": share(answerer(asked))}


def answered(folder: Path) -> Line:
    """Figures of the evaluation, how many answers are exact slices of their passages, and the first of them."""
    figures = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    records = [json.loads(line) for line in (folder / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    names = ("questions", "exact_match", "token_f1", "shuffled_exact_match", "answer_recall")
    return {
        **{name: figures[name] for name in names},
        "slices": sum(_is_slice(record) for record in records),
        "examples": [
            {
                "question": record["question"],
                "answer": record["prediction"],
                "right": record["answers"][0],
                "passage": _passage(record),
            }
            for record in records[:SHOWN]
        ],
    }


def _passage(record: dict[str, Any]) -> str:
    """The text that the answer was read in."""
    return next((str(read["text"]) for read in record["evidence"] if read["row"] == record["row"]), "")


def _is_slice(record: dict[str, Any]) -> bool:
    found = record["prediction"]
    return bool(found) and _passage(record)[record["start_char"] : record["end_char"]] == found


def table(lines: list[Line]) -> str:
    """Losses by phase, the figures of the answers, and some of them."""
    parts = [
        "| phase | steps | loss, first and last steps | held out, first and last | minutes |",
        "|---|---:|---:|---:|---:|",
    ]
    for line in (line for line in lines if "loss" in line):
        ends = [" to ".join(f"{line[name][at]:.3f}" for at in (0, -1)) if name in line else "" for name in _LOSSES]
        minutes = f"{line['seconds'] / 60:.0f}"
        parts.append("| " + " | ".join([_NAMES[line["phase"]], str(line["steps"]), *ends, minutes]) + " |")
    for line in (line for line in lines if "examples" in line):
        recall = ", ".join(f"{share:.1%} in {depth}" for depth, share in line["answer_recall"].items())
        parts += [
            "",
            f"{line['questions']} questions: exact match {line['exact_match']:.1%}, token F1 {line['token_f1']:.1%}; "
            f"exact match {line['from_bm25']:.1%} where BM25 finds the passages, {line['given_gold']:.1%} where the "
            f"one with the answer is given, and {line['shuffled_exact_match']:.1%} with another question's.",
            "",
            f"A passage with the answer is among those found: {recall}. {line['slices']} answers are exact slices of "
            "their passages.",
            "",
            "| question | answer | right | passage |",
            "|---|---|---|---|",
            *(_answer(example) for example in line["examples"]),
        ]
    return "\n".join(parts)


def _answer(example: dict[str, Any]) -> str:
    cells = (example["question"], example["answer"], example["right"], example["passage"])
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def measure(args: argparse.Namespace) -> None:
    """Run the phases that have no line yet."""
    data = write_data(args.output_dir / "data", args.dev_questions)
    figures: dict[str, Callable[[], Line]] = {
        "answers": lambda: {
            **answered(args.output_dir / "answers"),
            **read_elsewhere(args.output_dir, data["dev"]),
        }
    }
    over = {line["phase"] for line in read_lines(args.results)}
    for phase, words in commands(args, data).items():
        if phase in over:
            continue
        print("realm-hf", shlex.join(words), flush=True)
        resumed = ["--resume_from_checkpoint", "true"] if (args.output_dir / phase / "checkpoints").is_dir() else []
        if code := realm_hf([*words, *resumed]):
            raise SystemExit(code)
        line = figures.get(phase, lambda: losses(args.output_dir / phase))()  # noqa: B023 - called at once
        append_line(args.results, {"phase": phase, **line})


def main() -> None:
    """Run what has not run, and print the table or write it into the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=Path("runs/any-encoder"))
    parser.add_argument("--results", type=Path, default=RESULTS, help="a JSON line for each phase")
    parser.add_argument("--page", type=Path, help="the page whose table is replaced")
    parser.add_argument("--sizes", default=SIZES, help="as --from_nothing of warm-start masked-lm")
    parser.add_argument("--vocab_size", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--masked_lm_steps", type=int, default=100)
    parser.add_argument("--inverse_cloze_steps", type=int, default=20)
    parser.add_argument("--joint_steps", type=int, default=200)
    parser.add_argument("--question_steps", type=int, default=200)
    parser.add_argument("--dev_questions", type=int, default=200)
    args = parser.parse_args()
    measure(args)
    written = table(read_lines(args.results))
    print(written)
    if args.page is not None:
        write_between(args.page, written)


if __name__ == "__main__":
    main()
