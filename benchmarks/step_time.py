"""What a refresh costs the steps beside it: a table from the log of any run.

    python benchmarks/step_time.py [RUN]            # by default runs/demo

Steps are told apart by what went on beside them: nothing, a build in another process, or a swap (its step includes
noticing the generation, agreeing on it and exchanging the index; the step that begins a build includes the snapshot).
Steps before the retriever learns have no refresh and cost less: they are left out unless --all is given.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from realm_hf.runs.records import read_log


def read_steps(run: Path) -> tuple[list[dict[str, Any]], int]:
    """The log's optimizer steps, and the last step in which the towers were frozen."""
    log = run / "log.jsonl"
    if not log.is_file():
        raise SystemExit(f"There is no {log}. Give the folder of a run; `make demo` leaves one in runs/demo.")
    steps = [record for record in read_log(log) if "step_seconds" in record]
    first_build = next((record["step"] for record in steps if record["building"]), 1)
    return steps, first_build


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", default=Path("runs/demo"))
    parser.add_argument("--all", action="store_true", help="count the steps before the first build, too")
    args = parser.parse_args()
    steps, first_build = read_steps(args.run)
    if not args.all:
        steps = [record for record in steps if record["step"] >= first_build]
    swaps = [bool(record["events"]) for record in steps]
    began = [
        record["building"] and (number == 0 or not steps[number - 1]["building"])
        for number, record in enumerate(steps)
    ]
    groups: dict[str, list[dict[str, Any]]] = {
        "no build": [s for s, swap in zip(steps, swaps, strict=True) if not s["building"] and not swap],
        "snapshot written, build begins": [s for s, new in zip(steps, began, strict=True) if new],
        "build beside": [
            s for s, new, swap in zip(steps, began, swaps, strict=True) if s["building"] and not new and not swap
        ],
        "swap": [s for s, swap in zip(steps, swaps, strict=True) if swap],
        "all": steps,
    }
    print("| steps | n | p50 s | p99 s | mean s | staleness in steps: mean, max | in seconds: mean, max |")
    print("|---|---|---|---|---|---|---|")
    for name, group in groups.items():
        if not group:
            print(f"| {name} | 0 | | | | | |")
            continue
        seconds = np.array([record["step_seconds"] for record in group])
        stale = np.array([record["staleness_steps"] for record in group])
        age = np.array([record["staleness_seconds"] for record in group])
        p50, p99 = np.percentile(seconds, [50, 99])
        print(
            f"| {name} | {len(group)} | {p50:.2f} | {p99:.2f} | {seconds.mean():.2f} | "
            f"{stale.mean():.1f}, {stale.max()} | {age.mean():.0f}, {age.max():.0f} |"
        )


if __name__ == "__main__":
    main()
