"""The rates that `realm-hf estimate` starts from, measured on one core of this machine: an entry of rates.json.

    python benchmarks/device_rates.py
    python benchmarks/device_rates.py --corpus passages.parquet --disk_folder runs

Operations are counted as the estimate counts them, so that the rates turn its counts into seconds, with everything
that a step has beside matrix products in them. A median of five each; nothing else should run meanwhile.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.alternation import timed
from harness.inputs import SCRATCH, load_passages, load_tokenizer
from harness.machine import describe_machine
from harness.rows import Settings
from harness.step_batch import forward_operations
from harness.vectors import passages as synthetic_embeddings
from rows.pretraining_step import make_batch, step
from rows.small_bert import SHAPE, make_config

from realm_hf import RealmEmbedder, RealmForPreTraining
from realm_hf.estimate import ModelShape
from realm_hf.estimate.index_costs import index_operations
from realm_hf.generations.embedding import embed_passages
from realm_hf.index.default_index import plan_index
from realm_hf.index.faiss_index import build_index
from realm_hf.index.sharded import ShardedIndex
from realm_hf.models.precision import encoding_in, native_bfloat16
from realm_hf.storage.files import HashingFile

THREADS = 1
QUERIES, PASSAGES, VECTORS = 4, 256, 150_000
SEARCHED, SEARCHES, K = 500_000, 64, 24
DISK_BYTES, PIECE = 512 * 2**20, 2**20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="Parquet file with title and text; default: the Factbook")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--disk_folder", type=Path, default=SCRATCH, help="on the disk that a run writes to")
    args = parser.parse_args()
    torch.set_num_threads(THREADS)
    torch.manual_seed(0)
    settings = Settings(args.corpus, args.rounds, False, THREADS)
    machine = describe_machine(THREADS, "", settings.inputs)
    rates = {
        "train_tflops": training(settings) / 1e12,
        "encode_tflops": encoding(settings) / 1e12,
        "index_tflops": index(args.rounds) / 1e12,
        "disk_gigabytes": disk(args.disk_folder, args.rounds) / 1e9,
    }
    if native_bfloat16(torch.device("cpu")):
        rates["bfloat16_encode_tflops"] = encoding(settings, "bfloat16") / 1e12
    rates["gigascores"] = choosing(args.rounds, rates["encode_tflops"] * 1e12) / 1e9
    entry: dict[str, Any] = {name: float(f"{rate:.2g}") for name, rate in rates.items()}
    lengths = f"passages of {load_passages(settings, load_tokenizer()).lengths.mean():.0f} wordpieces"
    entry["source"] = f"one core of a {machine['cpu']}, fp32, BERT of 4 x 256, {lengths}"
    print(json.dumps({"cpu-core": entry}, indent=2))


def training(settings: Settings) -> float:
    """Operations a second of the pre-training step, forward and backward."""
    batch = make_batch(settings, QUERIES)
    run = step(RealmForPreTraining(make_config(settings)).train(), batch)
    return 3 * forward_operations(_shape(), batch) / _median_seconds(run, settings.rounds)


def encoding(settings: Settings, dtype: str = "float32") -> float:
    """Operations a second of embedding passages."""
    passages = load_passages(settings, load_tokenizer())
    rows = np.random.default_rng(0).choice(len(passages), PASSAGES, replace=False)
    forward = sum(map(_shape().forward_operations, passages.lengths[rows].tolist()))
    embedder = RealmEmbedder(make_config(settings)).eval()
    with encoding_in(dtype, torch.device("cpu")):
        return forward / _median_seconds(lambda: embed_passages(embedder, passages, rows=rows), settings.rounds)


def index(rounds: int) -> float:
    """Operations a second of building the lists of "auto": k-means, finding each row's list, filling it."""
    vectors = synthetic_embeddings(VECTORS)
    plan = plan_index("auto", VECTORS)
    run = partial(build_index, vectors, plan.factory, train_size=plan.train_size, threads=THREADS)
    return index_operations(VECTORS, vectors.shape[1], plan.factory, plan.train_size) / _median_seconds(run, rounds)


def choosing(rounds: int, operations_a_second: float) -> float:
    """Scores a second among which a search in shards chooses: its time without that of the products."""
    vectors = synthetic_embeddings(SEARCHED)
    search = partial(ShardedIndex(vectors.astype(np.float16)).search, vectors[:SEARCHES], K)
    products = 2 * SEARCHED * vectors.shape[1] * SEARCHES / operations_a_second
    return SEARCHED * SEARCHES / (_median_seconds(search, rounds) - products)


def disk(folder: Path, rounds: int) -> float:
    """Bytes a second of a file as a generation is written: hashed on the way, forced to the disk at the end."""
    content = np.random.default_rng(0).bytes(DISK_BYTES)
    folder.mkdir(parents=True, exist_ok=True)

    def run() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as work, HashingFile(Path(work) / "content") as file:
            for start in range(0, DISK_BYTES, PIECE):
                file.write(content[start : start + PIECE])

    return DISK_BYTES / _median_seconds(run, rounds)


def _shape() -> ModelShape:
    return ModelShape(SHAPE["hidden_size"], SHAPE["num_hidden_layers"], SHAPE["intermediate_size"])  # type: ignore[arg-type]


def _median_seconds(run: Callable[[], Any], rounds: int) -> float:
    side = timed(run)
    side()
    return statistics.median(side() for _ in range(rounds))


if __name__ == "__main__":
    main()
