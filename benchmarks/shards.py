"""Corpora and indexes that several processes make: rate against processes, memory, and what kills cost.

    python benchmarks/shards.py corpus passages.parquet --copies 10 --processes 1 2 --kills 10
    python benchmarks/shards.py corpus passages.parquet --streaming
    python benchmarks/shards.py index runs/demo --builders 1 2 4 --ray 2

`corpus` takes a Parquet file with the columns title and text; of each further copy one word is varied, so that it
is no duplicate. It is stored once for each number of processes, and once more while workers are killed at random;
every store must have the same fingerprint, and no range may be finished twice. With `--streaming` the workers stream
the file. Memory is what the processes have of their own (anonymous pages), the largest sum that was seen.

`index` builds the newest snapshot of a run that has no generation of it, by so many builders side by side, and then by
so many workers on Ray; where there are two or more one of them is killed on the way. All rows are compared with those
of the first build. The generations that it makes are removed again.
"""

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness.machine import own_megabytes

if TYPE_CHECKING:
    from datasets import Dataset

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY = ROOT / "tests" / "fixtures" / "vocab.txt"
_LOOK_SECONDS = 0.2


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(required=True)
    corpus = kinds.add_parser("corpus")
    corpus.add_argument("passages", type=Path)
    corpus.add_argument("--copies", type=int, default=10)
    corpus.add_argument("--rows", type=int, help="of each copy; all by default")
    corpus.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    corpus.add_argument("--kills", type=int, default=10)
    corpus.add_argument("--streaming", action="store_true")
    corpus.add_argument("--folder", type=Path, default=ROOT / ".cache" / "shards")
    corpus.add_argument("--model", default=str(VOCABULARY), help="a tokenizer, or a vocabulary file")
    corpus.set_defaults(measure=measure_corpus)
    index = kinds.add_parser("index")
    index.add_argument("run", type=Path)
    index.add_argument("--builders", type=int, nargs="+", default=[1, 2, 4])
    index.add_argument("--ray", type=int, help="workers on Ray, after the others")
    index.set_defaults(measure=measure_index)
    worker = kinds.add_parser("worker")
    worker.add_argument("rows", type=Path)
    worker.add_argument("output", type=Path)
    worker.add_argument("model")
    worker.add_argument("log", type=Path)
    worker.add_argument("--streaming", action="store_true")
    worker.set_defaults(measure=work)
    args = parser.parse_args()
    args.measure(args)


def measure_corpus(args: argparse.Namespace) -> None:
    """Store the copies by several numbers of processes, then with kills."""
    args.folder.mkdir(parents=True, exist_ok=True)
    print("| passages | processes | killed | seconds | passages/s | own memory, MB |\n|---:|---:|---:|---:|---:|---:|")
    fingerprints: dict[int, set[str]] = {}
    for copies in sorted({1, args.copies}):
        rows = args.folder / f"rows-{copies}-{args.rows}.parquet"
        if not rows.exists():
            write_copies(args.passages, rows, copies, args.rows)
        if not args.streaming:
            # `datasets` converts the file once, in up to a gigabyte of memory; that is not the workers' doing.
            load_rows(rows)
        plans = [(count, 0) for count in args.processes]
        if copies == args.copies and args.kills:
            plans.append((max(args.processes), args.kills))
        for processes, kills in plans:
            seconds, megabytes, fingerprint, count = store_rows(args, rows, processes, kills)
            fingerprints.setdefault(copies, set()).add(fingerprint)
            rate = f"{count / seconds:,.0f}"
            print(f"| {count:,} | {processes} | {kills} | {seconds:.1f} | {rate} | {megabytes:,.0f} |", flush=True)
    different = {copies: found for copies, found in fingerprints.items() if len(found) > 1}
    print(f"fingerprints: {fingerprints}")
    if different:
        raise SystemExit(f"one corpus has several fingerprints: {different}")


def write_copies(source: Path, target: Path, copies: int, rows: int | None) -> None:
    """Rows of `source`, in each further copy with another last word."""
    table = pq.read_table(source, columns=["title", "text"])
    table = table if rows is None else table.slice(0, rows)
    with pq.ParquetWriter(target, table.schema) as writer:
        for copy in range(copies):
            for batch in table.to_batches(16_384):
                texts = [text if not copy else f"{text} copy{copy}" for text in batch["text"].to_pylist()]
                columns = {"title": batch["title"], "text": pa.array(texts, table.schema.field("text").type)}
                writer.write_table(pa.table(columns, schema=table.schema))


def store_rows(args: argparse.Namespace, rows: Path, processes: int, kills: int) -> tuple[float, float, str, int]:
    """Seconds, megabytes of own memory, fingerprint and passages of one store; it is removed again."""
    from realm_hf.data import PassageStore

    output, log = args.folder / "store", args.folder / "ranges.log"
    shutil.rmtree(output, ignore_errors=True)
    log.unlink(missing_ok=True)
    command = [sys.executable, __file__, "worker", str(rows), str(output), args.model, str(log)]
    command += ["--streaming"] * args.streaming
    chance, started, most, killed = random.Random(0), time.monotonic(), 0.0, 0  # noqa: S311
    workers = [subprocess.Popen(command) for _ in range(processes)]
    next_kill = started + chance.uniform(20, 40)
    while any(worker.poll() is None for worker in workers):
        time.sleep(_LOOK_SECONDS)
        most = max(most, sum(own_megabytes(worker.pid) for worker in workers))
        if killed < kills and time.monotonic() > next_kill:
            victim = chance.randrange(len(workers))
            workers[victim].kill()
            workers[victim].wait()
            workers[victim] = subprocess.Popen(command)
            killed, next_kill = killed + 1, time.monotonic() + chance.uniform(20, 40)
    seconds = time.monotonic() - started
    codes = [worker.returncode for worker in workers]
    made = log.read_text(encoding="utf-8").split()
    if any(codes) or len(made) != len(set(made)) or killed < kills:
        raise SystemExit(
            f"exit codes {codes}, {len(made)} ranges made, {len(set(made))} of them different, {killed} kills"
        )
    store = PassageStore.load(output)
    found = seconds, most, store.fingerprint, len(store)
    shutil.rmtree(output)
    return found


def work(args: argparse.Namespace) -> None:
    """One worker: stores the rows with all others that do, and logs the ranges that it finished."""
    from transformers import AutoTokenizer

    from realm_hf import RealmTokenizer
    from realm_hf.data import load_documents, passages_from_rows
    from realm_hf.storage.tasks import Claim, SharedTasks

    publish = SharedTasks.publish

    def logged(tasks: SharedTasks, claim: Claim, facts: Mapping[str, Any]) -> bool:
        published = publish(tasks, claim, facts)
        if published and tasks.root.name == "ranges":
            with args.log.open("a", encoding="utf-8") as log:
                log.write(f"{claim.task}\n")
        return published

    SharedTasks.publish = logged  # type: ignore[method-assign]
    path = Path(args.model)
    tokenizer = RealmTokenizer(str(path)) if path.suffix == ".txt" else AutoTokenizer.from_pretrained(args.model)
    rows = load_documents(args.rows, streaming=True) if args.streaming else load_rows(args.rows)
    passages_from_rows(rows, tokenizer, args.output)


def load_rows(rows: Path) -> "Dataset":
    """The rows of a file, converted on the first call."""
    from datasets import load_dataset

    return load_dataset("parquet", data_files=str(rows), split="train", cache_dir=str(rows.parent / "cache"))


def measure_index(args: argparse.Namespace) -> None:
    """Build one snapshot by several numbers of builders."""
    from realm_hf.generations.store import GenerationStore
    from realm_hf.runs.directory import RunDirectory

    run = RunDirectory.open(args.run)
    store = GenerationStore(run.index)
    before = {info.name for info in store.list()}
    first: np.ndarray | None = None
    print(
        "| builders | killed | seconds | rows/s | largest difference | generations |\n|---:|---:|---:|---:|---:|---:|"
    )
    for count, on_ray in [*((count, False) for count in args.builders), *([(args.ray, True)] if args.ray else [])]:
        command = [sys.executable, "-m", "realm_hf", "build-index", str(args.run)]
        command += ["--engine", "ray", "--builders", str(count)] if on_ray else []
        started = time.monotonic()
        builders = [subprocess.Popen(command, stderr=subprocess.DEVNULL) for _ in range(1 if on_ray else count)]
        killed = 0
        while any(builder.poll() is None for builder in builders):
            time.sleep(_LOOK_SECONDS)
            done = len(list(run.index.glob(".builds/*/embed/parts/*")))
            if count > 1 and not killed and done * 16_384 > run.config.rows / 2:
                os.kill(ray_worker(builders[0].pid) if on_ray else builders[0].pid, signal.SIGKILL)
                killed = 1
        seconds = time.monotonic() - started
        made = [info for info in store.list() if info.name not in before]
        if len(made) != 1:
            codes = [builder.returncode for builder in builders]
            raise SystemExit(f"{len(made)} generations were made (exit codes {codes}): has the snapshot one already?")
        with store.open(made[0].name, verify="sha256") as generation:
            rows = np.array(generation.embeddings, np.float32)
        first = rows if first is None else first
        difference = float(np.abs(rows - first).max())
        rate = f"{made[0].rows / seconds:,.0f}"
        print(
            f"| {count}{' (Ray)' * on_ray} | {killed} | {seconds:.1f} | {rate} | {difference:.1e} | {len(made)} |",
            flush=True,
        )
        shutil.rmtree(run.index / made[0].name)


def ray_worker(driver: int) -> int:
    """Process id of a builder that a driver has started on a cluster of this machine."""
    import psutil

    below = psutil.Process(driver).children(recursive=True)
    return next(process.pid for process in below if process.cmdline()[:1] == ["ray::_work_in"])


if __name__ == "__main__":
    main()
