"""Is a BERT's pre-training step, or its encoding, slower than at an earlier commit? Both commits in turn, one run.

    python benchmarks/beside_commit.py --commit 65a5faa            # the last before other encoders than BERT
    python benchmarks/beside_commit.py --commit 65a5faa --only step --rounds 15

The earlier commit is checked out in .cache/beside. Each side is a process with its own `src` first on the path; one
waits while the other works, as in bench.py. Weights, token ids and lengths are drawn with a seed, and both must give
the same loss and the same embeddings. Prints milliseconds of both and the ratio of the rounds: below 1 is faster.
`--clock cpu` counts the processor's time of each side instead, for a machine that has other work.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import torch
from harness.alternation import alternate, half_interquartile_range

from realm_hf import RealmConfig, RealmEmbedder, RealmForPreTraining

ROOT = Path(__file__).resolve().parents[1]
SHAPE = {
    "vocab_size": 30_522, "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4,
    "intermediate_size": 1024, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
TINY = SHAPE | {"vocab_size": 200, "hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64}
WORKS = ("step", "encoding")
# What both sides compute may differ by rounding only.
_TOLERANCE = 1e-4

Work = Callable[[], float]


def rows_of_tokens(rng: np.random.Generator, count: int, mean: int, words: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids `[count, longest]` of unequal lengths around `mean`, and their mask."""
    lengths = np.clip(rng.normal(mean, mean / 3, count).astype(np.int64), 8, 2 * mean)
    mask = np.arange(lengths.max()) < lengths[:, None]
    return torch.from_numpy(np.where(mask, rng.integers(5, words, mask.shape), 0)), torch.from_numpy(mask).long()


def prepare(name: str, shape: dict[str, Any], queries: int, candidates: int, passages: int) -> Work:
    """
    One work of this process's package.

    Args:
        name: `"step"`: forward and backward of pre-training; `"encoding"`: passages embedded.
        shape: Of the BERT.
        queries: Of a step.
        candidates: Of a query.
        passages: That are embedded.

    Returns:
        What does it once and returns a figure that both sides must have: the loss, or the mean of an embedding.
    """
    torch.manual_seed(0)
    rng, config = np.random.default_rng(0), RealmConfig(**shape)
    words = shape["vocab_size"]
    if name == "encoding":
        embedder = RealmEmbedder(config).eval()
        ids, mask = rows_of_tokens(rng, passages, 140, words)

        def encode() -> float:
            with torch.no_grad():
                return float(embedder.encode_tokens(ids, mask).abs().mean())

        return encode
    model = RealmForPreTraining(config).train()
    batch: dict[str, torch.Tensor] = {}
    batch["query_input_ids"], batch["query_attention_mask"] = rows_of_tokens(rng, queries, 30, words)
    for part, mean in (("candidate", 140), ("joint", 170)):
        rows = rows_of_tokens(rng, queries * candidates, mean, words)
        for kind, tensor in zip(("input_ids", "attention_mask"), rows, strict=True):
            batch[f"{part}_{kind}"] = tensor.view(queries, candidates, -1)
    batch["mlm_positions"] = torch.arange(1, 5).repeat(queries, 1)
    batch["mlm_labels"] = torch.from_numpy(rng.integers(5, words, (queries, 4)))

    def step() -> float:
        model.zero_grad(set_to_none=True)
        loss = model(**batch).loss
        loss.backward()
        return float(loss.detach())

    return step


def serve(name: str, args: argparse.Namespace) -> None:
    """A side: does the work once for each line that it reads, and says how long it took."""
    torch.set_num_threads(args.threads)
    clock = {"wall": time.perf_counter, "cpu": time.process_time}[args.clock]
    work = prepare(name, TINY if args.quick else SHAPE, 2 if args.quick else 4, 8, 16 if args.quick else 256)
    for _ in sys.stdin:
        start = clock()
        value = work()
        print(json.dumps({"seconds": clock() - start, "value": value}), flush=True)


class Side:
    """A process with the package of one source folder; a side of an alternation."""

    def __init__(self, folder: Path, name: str, args: argparse.Namespace):
        self.values: list[float] = []
        command = [sys.executable, __file__, "--serve", name, "--threads", str(args.threads), "--clock", args.clock]
        paths = [str(folder / "src"), str(Path(__file__).parent)]
        self._process = subprocess.Popen(
            [*command, *(["--quick"] if args.quick else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": str(args.threads)},
        )

    def __call__(self) -> float:
        """Do the work once; its seconds."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"A side ended with {self._process.wait()}; what it said stands above.")
        answer = json.loads(line)
        self.values.append(answer["value"])
        return float(answer["seconds"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()


def check_out(commit: str) -> Path:
    """The files of an earlier commit, in .cache/beside."""
    done = subprocess.run(
        ["git", "rev-parse", f"{commit}^{{commit}}"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"There is no commit {commit!r} here.")
    folder = ROOT / ".cache" / "beside" / done.stdout.strip()
    if not folder.is_dir():
        folder.mkdir(parents=True)
        archive = subprocess.run(["git", "archive", commit, "src"], cwd=ROOT, capture_output=True, check=True)
        subprocess.run(["tar", "-x", "-C", folder], input=archive.stdout, check=True)
    return folder


def compare(name: str, before: Path, args: argparse.Namespace) -> str:
    """A line of the table."""
    with Side(ROOT, name, args) as now, Side(before, name, args) as then:
        found = alternate(now, then, args.rounds, most_rounds=3 * args.rounds)
    difference = max(abs(value - then.values[0]) for value in [*now.values, *then.values])
    if difference > _TOLERANCE * abs(then.values[0]):
        raise SystemExit(f"{name}: both sides compute another figure, {now.values[0]} and {then.values[0]}.")
    ratios = [ours / theirs for ours, theirs in zip(found.ours_rounds, found.peer_rounds, strict=True)]
    return (
        f"| {name} | {1000 * found.ours:.1f} ± {1000 * found.ours_spread:.1f} | {1000 * found.peer:.1f} ± "
        f"{1000 * found.peer_spread:.1f} | {statistics.median(ratios):.3f} ± {half_interquartile_range(ratios):.3f} | "
        f"{len(ratios)} |"
    )


def main() -> None:
    """Compare, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--commit", default="65a5faa", help="the earlier one (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=WORKS, default=WORKS)
    parser.add_argument("--rounds", type=int, default=9, help="how often each side is timed, at least")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does it run?")
    parser.add_argument("--serve", choices=WORKS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.serve:
        serve(args.serve, args)
        return
    before = check_out(args.commit)
    print("| work | now, ms | before, ms | now / before | rounds |\n|---|---:|---:|---:|---:|")
    for name in args.only:
        print(compare(name, before, args), flush=True)


if __name__ == "__main__":
    main()
