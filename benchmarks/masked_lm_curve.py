"""Masked language modelling: held-out loss and utility against the tokens seen, from the logs of runs.

    python benchmarks/masked_lm_curve.py --runs "4 x 256, from nothing=runs/masked-lm-small" \
        "MiniLM's body=runs/masked-lm-minilm" --page docs/results/masked-lm.md

Reads log.jsonl of runs of `examples/train_masked_lm.py`, which may still go on, and writes a JSON line for each
evaluation into masked-lm-curve.jsonl, a plot into docs/assets, and table and plot into the page. Called without
`--runs`, it draws what the file holds. Loss is in nats a masked wordpiece and a masked word; utility in nats of log p
that a passage with the span gives to it.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
from harness.panels import draw_panels
from harness.results import Line, read_lines, write_between, write_lines

from realm_hf.runs.records import read_run

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "masked-lm-curve.jsonl"
PLOT = FOLDER.parent / "docs" / "assets" / "masked-lm.svg"
PANELS = {
    "held-out loss, nats a wordpiece": "loss",
    "held-out loss, nats a word": "word_loss",
    "utility of a passage, nats": "utility",
}
_ROWS = 12


def curve(folder: Path) -> list[dict[str, Any]]:
    """The evaluations of a run, by ascending step.

    Args:
        folder: The run directory.

    Returns:
        For each `step`, `tokens` and `seconds` (of training, until then), `loss`, `word_loss` and, if the corpus has
        recurring spans, `utility` with its standard error `utility_error`.

    Raises:
        SystemExit: There is no evaluation yet.
    """
    run = read_run(folder)
    if not run.evaluations:
        raise SystemExit(f"{folder} has no evaluation yet: wait for one, or set eval_steps.")
    steps = np.array([record["step"] for record in run.steps])
    # A run that was resumed logs its last steps twice; `run.steps` has each once.
    totals = {
        name: np.concatenate([[0.0], np.cumsum([record.get(of, 0) for record in run.steps])])
        for name, of in (("tokens", "tokens"), ("seconds", "step_seconds"))
    }
    found = []
    for record in run.evaluations:
        done = np.searchsorted(steps, record["step"], side="right")
        held_out = {name.removeprefix("eval_"): value for name, value in record.items() if name.startswith("eval_")}
        point = {"step": record["step"], "tokens": int(totals["tokens"][done]), **held_out}
        found.append({**point, "seconds": round(float(totals["seconds"][done]), 1)})
    return found


def table(lines: list[Line]) -> str:
    """Markdown: up to twelve evaluations of each run, the first and the last among them."""
    parts = [
        "| run | step | tokens seen | nats a wordpiece | nats a word | utility, nats | hours |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name in dict.fromkeys(line["run"] for line in lines):
        of_run = [line for line in lines if line["run"] == name]
        for place in np.unique(np.linspace(0, len(of_run) - 1, min(_ROWS, len(of_run))).round().astype(int)):
            line = of_run[place]
            utility = f"{line['utility']:+.3f} ± {line['utility_error']:.3f}" if "utility" in line else ""
            parts.append(
                f"| {name} | {line['step']:,} | {line['tokens'] / 1e6:.2f} M | {line['loss']:.3f} | "
                f"{line['word_loss']:.3f} | {utility} | {line['seconds'] / 3600:.2f} |"
            )
    return "\n".join(parts)


def panels(lines: list[Line]) -> dict[str, dict[str, list[tuple[float, float]]]]:
    """Heading to run to points; a panel without points is left out."""
    names = dict.fromkeys(line["run"] for line in lines)
    drawn = {
        heading: {
            name: points
            for name in names
            if (points := [(line["tokens"], line[key]) for line in lines if line["run"] == name and key in line])
        }
        for heading, key in PANELS.items()
    }
    return {heading: runs for heading, runs in drawn.items() if runs}


def main() -> None:
    """Read the runs, write lines, plot and page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", nargs="+", default=[], metavar="NAME=FOLDER", help="their earlier lines are replaced"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    parser.add_argument("--page", type=Path, help="the page whose table and plot are replaced")
    args = parser.parse_args()
    read = dict(run.rsplit("=", 1) for run in args.runs)
    lines = [line for line in read_lines(args.results) if line["run"] not in read]
    lines += [{"run": name, **point} for name, folder in read.items() for point in curve(Path(folder))]
    if not lines:
        raise SystemExit(f"{args.results} has no line yet: give --runs.")
    write_lines(args.results, lines)
    draw_panels("Masked language modelling, held out", "tokens seen", panels(lines), args.plot)
    print(table(lines))
    if args.page is not None:
        picture = os.path.relpath(args.plot, args.page.parent)
        write_between(args.page, f"![Loss and utility against tokens seen]({picture})\n\n{table(lines)}")


if __name__ == "__main__":
    main()
