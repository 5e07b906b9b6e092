"""What does not make the pre-training step faster here: variants of one step, in turn, on the same batch.

    python benchmarks/step_variants.py --corpus passages.parquet
    python benchmarks/step_variants.py --variants committed "matrix products" --keep_memory

Chunks of other sizes, attention in separate operators, layers compiled; with --keep_memory freed memory is kept
instead of given back to the kernel between tensors, in a process of its own because glibc does not take that back.
Prints median and least seconds of each, beside the bare matrix products.
"""

import argparse
import ctypes
import os
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from harness.rows import Settings
from rows.matrix_products import bare_products
from rows.pretraining_step import make_batch, step
from rows.small_bert import make_config

from realm_hf import RealmForPreTraining
from realm_hf.models.modeling_bert_tower import RealmBertModel
from realm_hf.models.ragged_encoding import CHUNK_TOKENS

COMMITTED = CHUNK_TOKENS["cpu"]
CHUNKS = {"chunks to 1,024 tokens": (512, 1024), "chunks to 2,048 tokens": (512, 2048)}
VARIANTS = ("committed", *CHUNKS, "attention in separate operators", "compiled", "matrix products")
QUERIES = 4
# glibc's numbers for mallopt: the size from which a block is mapped, and how much free memory is kept.
_MAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_MOST_THRESHOLD = 32 << 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--corpus", type=Path, help="Parquet file with title and text; default: the Factbook")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--variants", nargs="+", choices=VARIANTS, default=VARIANTS, metavar="V", help=str(VARIANTS))
    parser.add_argument(
        "--keep_memory", action="store_true", help="freed memory stays with the process, in all variants"
    )
    args = parser.parse_args()
    if args.keep_memory:
        keep_memory()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    settings = Settings(args.corpus, args.rounds, False, args.threads)
    batch = make_batch(settings, QUERIES)
    sides = {name: make_variant(name, settings, batch) for name in args.variants}
    for run in sides.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    faults: dict[str, list[int]] = {name: [] for name in sides}
    for _ in range(args.rounds):
        for name, run in sides.items():
            before, started = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
            faults[name].append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
    print("| variant | median s | least s | page faults |\n|---|---:|---:|---:|")
    for name, taken in seconds.items():
        middle = statistics.median(taken)
        print(f"| {name} | {middle:.2f} | {min(taken):.2f} | {statistics.median(faults[name]):,.0f} |")


def make_variant(name: str, settings: Settings, batch: dict[str, torch.Tensor]) -> Callable[[], object]:
    """A step, forward and backward, of a model of its own with the same weights."""
    torch.manual_seed(0)
    model = RealmForPreTraining(make_config(settings)).train()
    if name == "matrix products":
        return bare_products(model, batch)[0]
    if name == "attention in separate operators":
        model.set_attn_implementation("eager")
    if name == "compiled":
        for tower in (module for module in model.modules() if isinstance(module, RealmBertModel)):
            for layer in tower.encoder.layer:
                layer.compile(dynamic=True)
    run = step(model, batch)

    def variant() -> object:
        CHUNK_TOKENS["cpu"] = CHUNKS.get(name, COMMITTED)
        return run()

    return variant


def keep_memory() -> None:
    """Let glibc keep what is freed, from now on: its own thresholds, which move, do not come back."""
    libc = ctypes.CDLL(None)
    libc.mallopt(_MAP_THRESHOLD, _MOST_THRESHOLD)
    libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


if __name__ == "__main__":
    main()
