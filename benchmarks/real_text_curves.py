"""Curves of the arms of benchmarks/real_text.py, from its lines: what they learned from, and what they found.

    python benchmarks/real_text_curves.py --plot docs/assets/real-text.svg

Drawn are the lines of one setting, the last one measured unless `--setting` counts another (1 is the first): loss,
what a passage is worth, the null passage's share, entropy and staleness of the steps, as means over pieces of the run;
and recall of train questions, in the index that is served.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from harness.panels import Points, draw_panels
from harness.results import Line, by_setting, read_lines

FOLDER = Path(__file__).resolve().parent
RESULTS = FOLDER / "real-text.jsonl"
PLOT = FOLDER.parent / "docs" / "assets" / "real-text.svg"
#: Heading to the list of points and the figure in it.
PANELS = {
    "loss, nats a span": ("curve", "loss"),
    "utility of what is found, nats a span": ("curve", "retrieval_utility"),
    "p(null passage), unread ones counted": ("curve", "null_mass"),
    "entropy of p(z|x), nats": ("curve", "entropy"),
    "staleness, steps": ("curve", "staleness_steps"),
    "recall@5 of train questions": ("evaluations", "recall_at_5"),
}


def panels(lines: list[Line]) -> dict[str, dict[str, Points]]:
    """Heading to run to points; a panel without points is left out.

    Args:
        lines: Of one setting, each with `curve` and `evaluations`.
    """
    drawn: dict[str, dict[str, Points]] = {}
    for heading, (points, figure) in PANELS.items():
        for line in lines:
            found = [(point["step"], point[figure]) for point in line[points] if figure in point]
            if found:
                drawn.setdefault(heading, {})[f"{line['arm']}, seed {line['seed']}"] = found
    return drawn


def main() -> None:
    """Draw the lines of a setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PLOT)
    parser.add_argument("--setting", type=int, help="which, counted from 1 as they were measured; default: the last")
    args = parser.parse_args()
    settings = by_setting([line for line in read_lines(args.results) if "curve" in line])
    number = len(settings) if args.setting is None else args.setting
    if not 1 <= number <= len(settings):
        raise SystemExit(f"{args.results} has lines of {len(settings)} settings, none of number {number}.")
    chosen = settings[number - 1]
    draw_panels("REALM on real text", "step", panels(chosen), args.plot)
    print(f"{args.plot}: {', '.join(dict.fromkeys(line['arm'] for line in chosen))}")


if __name__ == "__main__":
    main()
