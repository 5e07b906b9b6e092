"""The demo's table over several seeds: recall with intervals, and what REALM gains over the best of the others.

    for seed in 0 1 2; do python examples/demo.py --seed $seed --output_dir runs/demo-$seed; done
    python benchmarks/demo_seeds.py runs/demo-0 runs/demo-1 runs/demo-2

Countries are resampled, not questions: questions about one country share its passages.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from harness.bootstrap import clustered_interval

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))
from demo import ROWS

# The fused rows have REALM in them, so that they are no rivals of it.
OTHERS = ("initial", "ict", "recurring", "bm25")


def read_summaries(runs: list[Path]) -> list[dict[str, Any]]:
    """`summary.json` of each run.

    Raises:
        SystemExit: There is none with ranks, two runs have one seed, or they asked different questions.
    """
    summaries: list[dict[str, Any]] = []
    for run in runs:
        path = run / "summary.json"
        content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if "ranks" not in content:
            raise SystemExit(f"{run} holds no finished demo: run examples/demo.py --output_dir {run} to its end.")
        summaries.append(content)
    seeds = [summary["seed"] for summary in summaries]
    if len(set(seeds)) < len(seeds):
        raise SystemExit(f"The seeds are {seeds}: give each run another --seed.")
    if any(summary["questions"] != summaries[0]["questions"] for summary in summaries):
        raise SystemExit("The runs asked different questions: they are of different versions of the demo.")
    return summaries


def tables(summaries: list[dict[str, Any]]) -> str:
    """The results as Markdown."""
    country = np.array([question["country"] for question in summaries[0]["questions"]])
    # row -> [seeds, Q]
    ranks = {name: np.array([summary["ranks"][name] for summary in summaries]) for name in ROWS}
    first = {name: (found < 1).astype(float) for name, found in ranks.items()}
    lines = [f"{len(summaries)} seeds, {len(country)} questions about {len(set(country))} countries\n"]
    lines += ["| | recall@1 | 95 % interval | recall@5 | recall@20 |", "|---|---|---|---|---|"]
    for name, text in ROWS.items():
        interval = _percent(clustered_interval(first[name].mean(0), country))
        deeper = " | ".join(f"{100 * (ranks[name] < k).mean():.1f}" for k in (5, 20))
        lines.append(f"| {text} | {100 * first[name].mean():.1f} | {interval} | {deeper} |")
    best = max(OTHERS, key=lambda name: first[name].mean())
    lines += [f"\nThe best of the others is: {ROWS[best]}\n"]
    lines += ["| REALM minus | recall@1 | 95 % interval | by seed |", "|---|---|---|---|"]
    for name in OTHERS:
        gain = first["realm"] - first[name]
        seeds = ", ".join(f"{100 * value:+.1f}" for value in gain.mean(1))
        interval = _percent(clustered_interval(gain.mean(0), country), "+")
        lines.append(f"| {ROWS[name]} | {100 * gain.mean():+.1f} | {interval} | {seeds} |")
    lines += ["\n| exact match of | mean | by seed |", "|---|---|---|"]
    for name in summaries[0]["exact_match"]:
        values = [summary["exact_match"][name] for summary in summaries]
        lines.append(f"| {name} | {np.mean(values):.1f} | {', '.join(map(str, values))} |")
    seconds = ", ".join(f"{summary['seconds']['total']:.0f}" for summary in summaries)
    return "\n".join([*lines, f"\nSeconds: {seconds}"])


def _percent(interval: tuple[float, float], sign: str = "") -> str:
    return " to ".join(f"{100 * end:{sign}.1f}" for end in interval)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="output_dir of each seed's demo")
    print(tables(read_summaries(parser.parse_args().runs)))
