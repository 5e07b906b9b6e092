"""Where the time of the pre-training step and of the encoder goes, operator by operator.

    python benchmarks/profile_model.py step --corpus passages.parquet
    python benchmarks/profile_model.py encoder

The inputs are those of the rows in rows/pretraining_step.py and rows/encoding.py. Shares are of the operators' own
time; the profiler's own cost lies on many small operators more than on few large ones. To profile another version of
the package, put its `src` in PYTHONPATH.
"""

import argparse
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.inputs import load_passages, load_tokenizer
from harness.rows import Settings
from rows.pretraining_step import make_batch, step
from rows.small_bert import make_config

import realm_hf
from realm_hf import RealmEmbedder, RealmForPreTraining
from realm_hf.generations.embedding import embed_passages

# Operators by what they are for; the rest is "other".
KINDS = {
    # The last is a product with its activation.
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "mkldnn::_linear_pointwise"),
    "attention": ("aten::_scaled_dot_product",),
    "activation, sums, copies": ("aten::mul", "aten::add", "aten::pow", "aten::tanh", "aten::gelu", "aten::copy_"),
    "embedding gradients": ("aten::embedding", "aten::fill_", "aten::zero_"),
    "layer norm": ("aten::native_layer_norm",),
    "softmax over the vocabulary": ("aten::_log_softmax", "aten::nll_loss"),
}


def main() -> None:
    """Print the profile."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("step", "encoder"))
    parser.add_argument("--corpus", type=Path, help="Parquet file with title and text; default: the Factbook")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=20, help="operators to print")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    settings = Settings(args.corpus, args.rounds, False, args.threads)
    work = pretraining_step(settings) if args.what == "step" else encoder(settings)
    work()
    seconds = []
    for _ in range(args.rounds):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        work()
    print(f"{realm_hf.__file__}: {np.median(seconds):.3f} s, median of {args.rounds}, {args.threads} thread(s)")
    averages = profile.key_averages()
    print(shares({event.key: event.self_cpu_time_total for event in averages}))
    print(averages.table(sort_by="self_cpu_time_total", row_limit=args.rows, max_name_column_width=50))


def pretraining_step(settings: Settings) -> Callable[[], Any]:
    """Forward and backward of four queries."""
    return step(RealmForPreTraining(make_config(settings)).train(), make_batch(settings, 4))


def encoder(settings: Settings) -> Callable[[], Any]:
    """Embeddings of 256 passages."""
    passages = load_passages(settings, load_tokenizer())
    rows = np.random.default_rng(0).choice(len(passages), 256, replace=False)
    embedder = RealmEmbedder(make_config(settings)).eval()
    return lambda: embed_passages(embedder, passages, rows=rows)


def shares(microseconds: dict[str, float]) -> str:
    """The operators' own time by kind, as a table."""
    sums: Counter[str] = Counter()
    for name, own in microseconds.items():
        kind = next((kind for kind, names in KINDS.items() if name.startswith(names)), "other")
        sums[kind] += own
    total = sum(sums.values())
    lines = ["| kind | share |", "|---|---:|"]
    return "\n".join(lines + [f"| {kind} | {own / total:.1%} |" for kind, own in sums.most_common()])


if __name__ == "__main__":
    main()
