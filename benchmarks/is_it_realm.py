"""Is it REALM? The same start, the same steps, one thing changed at a time; three seeds.

    python benchmarks/is_it_realm.py --weights .cache/minilm --output runs/is_it_realm/minilm.json
    python benchmarks/is_it_realm.py --weights scratch --output runs/is_it_realm/scratch.json
    python benchmarks/is_it_realm.py --tables runs/is_it_realm/minilm.json

For each seed: initial weights -> ICT -> the reader alone learns to read over ICT's frozen index. From there, with the
same number of further steps and the same batches:

    realm     both learn, the index is rebuilt every --refresh_steps steps (sync, so that the run is repeatable)
    no refresh  both learn, the index stays ICT's; candidates are still scored by the live towers
    detached  p(z|x) is a constant: the reader goes on, the retriever learns nothing

and beside them `ict, equal compute`: ICT from the start, for as many seconds as ICT, reading and `realm` took.
Recall is of gold passages; a row of the output holds every question's rank, so that intervals can be had by resampling
countries (questions about one country share its passages). Utility is nats of log p(y|x) gained over the null passage.
"""

from __future__ import annotations

import argparse
import copy
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from harness.bootstrap import clustered_interval
from transformers import BertConfig, BertForMaskedLM, set_seed

from realm_hf import RealmForPreTraining, RealmTokenizer
from realm_hf.runs.records import read_log
from realm_hf.training.arguments import InverseClozeTrainingArguments, RealmTrainingArguments
from realm_hf.training.inverse_cloze import InverseClozeTrainer
from realm_hf.training.pretraining import RealmTrainer

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from factbook_task import (
    MAX_PASSAGE_LENGTH,
    MAX_QUERY_LENGTH,
    FactbookTask,
    bm25_ranks,
    index_now,
    prepare_task,
    ranks_of,
    start_model,
)

CELLS = {"seen": True, "held out": False}


def scratch_checkpoint(folder: Path, tokenizer: RealmTokenizer, seed: int) -> str:
    """A random BERT, 2 layers of 128: clean of any text that its authors may have seen."""
    set_seed(seed)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
    )
    BertForMaskedLM(config).save_pretrained(folder)
    return str(folder)


class Seed:
    """One seed's arms.

    Args:
        args: The command line.
        seed: The seed.
        work: Scratch folder.
        tokenizer: The tokenizer.
    """

    def __init__(self, args: argparse.Namespace, seed: int, work: Path, tokenizer: RealmTokenizer):
        self.args, self.seed, self.work = args, seed, work
        self.task: FactbookTask = prepare_task(work / "data", tokenizer, seed=seed)
        self.questions = self.task.questions[:: args.every]
        self.results: dict[str, dict[str, Any]] = {}

    def record(self, arm: str, model: RealmForPreTraining, seconds: float, **figures: float) -> None:
        """Rank every question's gold passage with the model's own embeddings, freshly computed."""
        model.eval()
        retriever = index_now(model.embedder, self.task)
        ranks = ranks_of(model.query_embedder, retriever, self.task, self.questions)
        self.results[arm] = {"ranks": ranks.tolist(), "seconds": round(seconds, 1), **figures}
        heldout = np.array([not q.country_seen and q.field_seen for q in self.questions])
        print(f"  seed {self.seed} {arm:20s} recall@1 {100 * (ranks[heldout] < 1).mean():5.1f}", figures, flush=True)

    def inverse_cloze(self, model: RealmForPreTraining, steps: int, name: str) -> float:
        """Train the towers for `steps`; seconds taken."""
        started = time.perf_counter()
        arguments = InverseClozeTrainingArguments(
            output_dir=str(self.work / name),
            max_steps=steps,
            per_device_train_batch_size=32,
            learning_rate=self.args.inverse_cloze_learning_rate,
            warmup_steps=min(5, steps // 2),
            mask_probability=1.0,
            keep_probability=1.0,
            save_steps=0,
            seed=self.seed,
        )
        InverseClozeTrainer(
            model, arguments, train_dataset=self.task.passages, processing_class=self.task.tokenizer
        ).train().exit_if_interrupted()
        return time.perf_counter() - started

    def pretrain(
        self, model: RealmForPreTraining, name: str, steps: int, **changes: Any
    ) -> tuple[float, dict[str, float]]:
        """Pre-train for `steps`; seconds of its steps, synchronous builds included, and held-out figures."""
        arguments = RealmTrainingArguments(
            output_dir=str(self.work / name),
            max_steps=steps,
            per_device_train_batch_size=self.args.batch_size,
            num_candidates=self.args.num_candidates,
            warmup_steps=5,
            max_query_length=MAX_QUERY_LENGTH,
            max_candidate_length=MAX_PASSAGE_LENGTH,
            refresh_steps=self.args.refresh_steps,
            save_steps=0,
            **{"refresh": "off", **changes},
        )
        sentences = self.task.sentences
        run = RealmTrainer(
            model,
            arguments,
            train_dataset=sentences.train,
            eval_dataset=sentences.heldout,
            processing_class=self.task.tokenizer,
            passages=self.task.passages,
        )
        metrics = run.train().exit_if_interrupted().metrics
        seconds = sum(record.get("step_seconds", 0.0) for record in read_log(self.work / name / "log.jsonl"))
        shutil.rmtree(self.work / name)
        return seconds, {key.removeprefix("eval_"): value for key, value in metrics.items()}

    def run(self, weights: str, pooler: str) -> dict[str, Any]:
        """All arms of this seed."""
        args = self.args
        model = start_model(weights, self.seed, pooler)  # type: ignore[arg-type]
        self.record("initial", model, 0.0)
        warm = self.inverse_cloze(model, args.inverse_cloze_steps, "ict")
        self.record("ict", model, warm)
        reading = {"freeze_retriever_steps": args.reading_steps, "reading_candidates": 2, "seed": self.seed}
        read, _ = self.pretrain(model, "reading", args.reading_steps, learning_rate=args.learning_rate, **reading)
        arms: dict[str, dict[str, Any]] = {
            "realm": {"refresh": "sync"},
            "realm, no refresh": {},
            "realm, detached": {"detach_retrieval": True},
        }
        for arm, changes in arms.items():
            trained = copy.deepcopy(model)
            # Another seed than the reader's: the arms go on with statements in another order, the same for all.
            joint = {"learning_rate": args.joint_learning_rate, "seed": self.seed + 1000, **changes}
            spent, figures = self.pretrain(trained, "arm", args.joint_steps, **joint)
            self.record(arm, trained, read + spent, **figures)
        per_step = warm / args.inverse_cloze_steps
        steps = args.inverse_cloze_steps + round(self.results["realm"]["seconds"] / per_step)
        longer = start_model(weights, self.seed, pooler)  # type: ignore[arg-type]
        spent = self.inverse_cloze(longer, steps, "ict_longer")
        self.record("ict, equal compute", longer, spent, steps=steps)
        return {"seed": self.seed, "arms": self.results}


def tables(path: Path) -> None:
    """Print the results as Markdown."""
    data = json.loads(path.read_text(encoding="utf-8"))
    country = np.array([q["country"] for q in data["questions"]])
    seen_country = np.array([q["country_seen"] for q in data["questions"]])
    seen_field = np.array([q["field_seen"] for q in data["questions"]])
    # arm -> ranks [seeds, Q]
    ranks = {arm: np.array([s["arms"][arm]["ranks"] for s in data["seeds"]]) for arm in data["seeds"][0]["arms"]}
    ranks["BM25"] = np.array([data["bm25"]])
    asked = ~seen_country & seen_field
    print(f"Held-out countries, fields of the statements: {asked.sum()} questions, {len(data['seeds'])} seeds\n")
    print("| arm | recall@1 | 95 % interval | recall@5 | utility (nats) | seconds |\n|---|---|---|---|---|---|")
    for arm, r in ranks.items():
        hits = (r[:, asked] < 1).mean(0)
        low, high = clustered_interval(hits, country[asked])
        rows = [s["arms"].get(arm, {}) for s in data["seeds"]]
        known = [row["retrieval_utility"] for row in rows if "retrieval_utility" in row]
        utility = f"{np.mean(known):+.2f}" if known else ""
        spent = f"{np.mean([row['seconds'] for row in rows]):.0f}" if arm != "BM25" else ""
        print(
            f"| {arm} | {100 * hits.mean():.1f} | {100 * low:.1f} to {100 * high:.1f} | "
            f"{100 * (r[:, asked] < 5).mean():.1f} | {utility} | {spent} |"
        )
    print("\nDifference in recall@1 to `realm`, paired by question, countries resampled\n")
    print("| arm | realm minus arm | 95 % interval | by seed |\n|---|---|---|---|")
    for arm, r in ranks.items():
        if arm == "realm":
            continue
        gain = (ranks["realm"][:, asked] < 1).astype(float) - (r[:, asked] < 1)
        low, high = clustered_interval(gain.mean(0), country[asked])
        seeds = ", ".join(f"{100 * g:+.1f}" for g in gain.mean(1))
        print(f"| {arm} | {100 * gain.mean():+.1f} | {100 * low:+.1f} to {100 * high:+.1f} | {seeds} |")
    print("\nrecall@1 by country x field: before REALM (after ICT) -> after REALM\n")
    print("| | " + " | ".join(f"field {name}" for name in CELLS) + " |\n|---|---|---|")
    for name, value in CELLS.items():
        cells = []
        for other in CELLS.values():
            chosen = (seen_country == value) & (seen_field == other)
            before, after = (100 * (ranks[arm][:, chosen] < 1).mean() for arm in ("ict", "realm"))
            cells.append(f"{before:.1f} -> {after:.1f} (n = {chosen.sum()})")
        print(f"| country {name} | " + " | ".join(cells) + " |")


def main() -> None:
    """Run all seeds, writing after each, or print the tables of an earlier run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", type=Path, help="print the tables of this file and do nothing else")
    parser.add_argument("--weights", default=".cache/minilm", help="a BERT checkpoint folder, or 'scratch'")
    parser.add_argument("--tokenizer", default=".cache/minilm", help="whose vocabulary is used")
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--inverse_cloze_steps", type=int, default=20)
    parser.add_argument("--inverse_cloze_learning_rate", type=float, default=5e-5)
    parser.add_argument("--reading_steps", type=int, default=110)
    parser.add_argument("--joint_steps", type=int, default=60)
    parser.add_argument("--refresh_steps", type=int, default=15)
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_candidates", type=int, default=4)
    parser.add_argument("--learning_rate", type=float, default=3e-4, help="of the reader")
    parser.add_argument("--joint_learning_rate", type=float, default=1e-4, help="of the steps in which arms differ")
    parser.add_argument("--every", type=int, default=2, help="ask every n-th question")
    args = parser.parse_args()
    if args.tables:
        return tables(args.tables)
    if args.output is None:
        parser.error("--output is needed: the JSON file for the results")
    tokenizer = RealmTokenizer.from_pretrained(args.tokenizer)
    work = args.output.with_suffix("")
    shutil.rmtree(work, ignore_errors=True)
    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(args).items()}
    data: dict[str, Any] = {"settings": settings, "seeds": []}
    for seed in args.seeds:
        arms = Seed(args, seed, work / str(seed), tokenizer)
        if not data["seeds"]:
            data["questions"] = [
                {"country": q.country, "country_seen": q.country_seen, "field_seen": q.field_seen}
                for q in arms.questions
            ]
            data["bm25"] = bm25_ranks(arms.task, arms.questions).tolist()
        scratch = args.weights == "scratch"
        weights = scratch_checkpoint(work / str(seed) / "bert", tokenizer, seed) if scratch else args.weights
        data["seeds"].append(arms.run(weights, "identity"))
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(data) + "\n", encoding="utf-8")
    return tables(args.output)


if __name__ == "__main__":
    main()
