"""`make bench`: how fast this package is beside the old port, sentence-transformers, faiss and the machine's limit.

    python benchmarks/bench.py                                  # the packaged Factbook; half an hour on two cores
    python benchmarks/bench.py --corpus passages.parquet        # columns title and text
    python benchmarks/bench.py --only encoding --rounds 9       # one group of rows
    python benchmarks/bench.py --quick                          # does everything run? its figures mean nothing

Each group runs in a process of its own; both sides of a row run in turn, several times. Rows are printed as they come
and written to benchmarks/results.json and to the table of benchmarks/README.md. Rows of groups that were not run stay
there if they come from the same machine, versions, inputs and commit.
"""

import argparse
import importlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

from harness.machine import describe_machine
from harness.peer import peer_versions
from harness.rows import Row, Settings, notes, read_results, row_from_dict, table, write_results

FOLDER = Path(__file__).resolve().parent
GROUPS = ("pretraining_step", "encoding", "answering", "fine_tuning", "search", "opening", "refresh")
BEGIN, END = "<!-- table: begin -->", "<!-- table: end -->"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=GROUPS, default=GROUPS, metavar="GROUP", help=", ".join(GROUPS))
    parser.add_argument("--corpus", type=Path, help="Parquet file with title and text; default: the Factbook")
    parser.add_argument("--rounds", type=int, default=5, help="how often each side is timed, at least")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of each side")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of results.json and README.md")
    parser.add_argument("--measure", choices=GROUPS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.corpus is not None and not args.corpus.is_file():
        parser.error(f"there is no file {args.corpus}: give a Parquet file with the columns title and text")
    settings = Settings(args.corpus, args.rounds, args.quick, args.threads)
    if args.measure:
        measure_here(args.measure, settings)
        return
    machine = describe_machine(args.threads, peer_versions(), settings.inputs)
    if args.quick:
        machine["sizes"] = "quick: the figures mean nothing"
    args.output.mkdir(parents=True, exist_ok=True)
    results = args.output / "results.json"
    kept = read_results(results, machine)
    for group in args.only:
        started = time.perf_counter()
        for row in measure_apart(group, settings):
            print(table([row]).splitlines()[-1], flush=True)
            kept = merged(kept, row)
            write_results(kept, results, machine)
        print(f"{group}: {time.perf_counter() - started:.0f} s", file=sys.stderr, flush=True)
    write_page(args.output / "README.md", kept, machine)


def measure_here(group: str, settings: Settings) -> None:
    """Print the rows of one group as JSON; the process that `measure_apart` started."""
    import torch

    torch.set_num_threads(settings.threads)
    for row in importlib.import_module(f"rows.{group}").measure(settings):
        print(json.dumps(asdict(row)), flush=True)


def measure_apart(group: str, settings: Settings) -> Iterator[Row]:
    """Run one group in a process of its own, and give its rows as they come.

    Raises:
        SystemExit: The group failed; what it said stands on stderr.
    """
    command = [sys.executable, Path(__file__), "--measure", group, "--rounds", str(settings.rounds)]
    command += ["--threads", str(settings.threads)]
    command += ["--quick"] if settings.quick else []
    command += ["--corpus", settings.corpus] if settings.corpus else []
    environment = os.environ | {
        "OMP_NUM_THREADS": str(settings.threads),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
    }
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdout is not None
        for line in process.stdout:
            yield row_from_dict(json.loads(line))
    if process.returncode:
        raise SystemExit(f"The rows of {group!r} failed with {process.returncode}; the other rows are kept.")


def merged(rows: list[Row], new: Row) -> list[Row]:
    """`new` in the place of the row with its name and peer, or at the end."""
    keys = [(row.name, row.beside) for row in rows]
    key = (new.name, new.beside)
    return [new if row == key else old for row, old in zip(keys, rows, strict=True)] + [new] * (key not in keys)


def write_page(page: Path, rows: list[Row], machine: dict[str, str]) -> None:
    """Put table, notes and machine between the markers of a page; a page that is not there gets nothing else."""
    text = page.read_text(encoding="utf-8") if page.exists() else f"{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    facts = "\n".join(f"- {name}: {value}" for name, value in machine.items())
    body = f"\n{facts}\n\n{table(rows)}\n\n{notes(rows)}\n"
    page.write_text(f"{before}{BEGIN}{body}{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
