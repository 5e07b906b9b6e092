"""`realm-hf`: ask questions; convert old checkpoints; estimate, build, inspect, verify and report a training run.

Exit codes: 0 all is well; 1 something is wrong, and was said; 2 the command was not understood; 3 `build-index`: there
was nothing to build; 4 the folder is not a run directory, or cannot be used.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from importlib.metadata import version

from realm_hf.cli import ask, convert, estimate
from realm_hf.refresh import builder
from realm_hf.refresh.builder_options import BuilderOptions, add_arguments

EXIT_WRONG = 1
EXIT_UNUSABLE = builder.EXIT_UNUSABLE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    options = _parser().parse_args(arguments)
    try:
        code: int = options.command(options)
    except (OSError, RuntimeError, ValueError) as error:
        print(f"realm-hf: {error}", file=sys.stderr)
        return EXIT_UNUSABLE
    return code


def _build_index(options: argparse.Namespace) -> int:
    return builder.run(BuilderOptions.of(options))


def _inspect(options: argparse.Namespace) -> int:
    from realm_hf.runs.directory import RunDirectory
    from realm_hf.runs.inspection import describe_run, run_as_text

    run = RunDirectory.open(options.run)
    print(json.dumps(describe_run(run), indent=2) if options.json else "\n".join(run_as_text(run)))
    return 0


def _verify(options: argparse.Namespace) -> int:
    from realm_hf.runs.directory import RunDirectory
    from realm_hf.runs.verification import verify_run

    run = RunDirectory.open(options.run)
    wrong = generations = 0
    for finding in verify_run(
        run, rows=options.rows, tolerance=options.tolerance, seed=options.seed, device=options.device
    ):
        print(f"{'ok   ' if finding.is_good else 'WRONG'}  {finding.part}: {finding.message}", flush=True)
        wrong += not finding.is_good
        generations += finding.part != "passages"
    if not generations and not wrong:
        print("there is no generation to verify: train, or run `realm-hf build-index`")
    return EXIT_WRONG if wrong else 0


def _report(options: argparse.Namespace) -> int:
    from realm_hf.report import write_report

    print(write_report(options.run, options.output))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="realm-hf",
        description="Ask questions; convert checkpoints; estimate, build, inspect, verify and report runs.",
        epilog="Each command takes --help. RUN is the output_dir of a training run.",
    )
    parser.add_argument("--version", action="version", version=f"realm-hf {version('realm-hf')}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    build = commands.add_parser(
        "build-index",
        help="build the index of a run's newest snapshot",
        description="Build the index of the newest snapshot of RUN; with --watch, of each that training writes "
        "(refresh='external'). Under `accelerate launch` or `torchrun` the ranks embed a share each.",
        epilog="exit codes: 0 built, 1 the build failed, 3 nothing to build, 4 RUN cannot be used",
    )
    add_arguments(build)
    build.set_defaults(command=_build_index)

    inspect = commands.add_parser(
        "inspect",
        help="say what a run directory holds",
        description="Trainer, snapshots, index generations, builders and checkpoints of RUN.",
    )
    inspect.add_argument("run", metavar="RUN", help="the run directory")
    inspect.add_argument("--json", action="store_true", help="as JSON, with every recorded field")
    inspect.set_defaults(command=_inspect)

    verify = commands.add_parser(
        "verify",
        help="check a run's files and recompute rows of its indexes",
        description="Hash every file of the passages and of each index generation, and recompute random rows of each "
        "generation from the snapshot that it was built from.",
        epilog="exit codes: 0 all is well, 1 something is wrong, 4 RUN cannot be used",
    )
    verify.add_argument("run", metavar="RUN", help="the run directory")
    verify.add_argument("--rows", type=int, default=100, help="rows to recompute of each (default: %(default)s)")
    verify.add_argument(
        "--tolerance",
        type=float,
        help="how far a row may move, as a share of its length (default: 0.001; 0.008 for tf32, 0.06 for bfloat16)",
    )
    verify.add_argument("--seed", type=int, default=0, help="draws the rows (default: %(default)s)")
    verify.add_argument("--device", default="cpu", help="where to recompute (default: %(default)s)")
    verify.set_defaults(command=_verify)

    report = commands.add_parser(
        "report",
        help="write the run's HTML report",
        description="Write a single-file HTML report of RUN from its log and summary.",
    )
    report.add_argument("run", metavar="RUN", help="the run directory")
    report.add_argument("--output", metavar="FILE", help="where to write it (default: RUN/report.html)")
    report.set_defaults(command=_report)
    ask.add_parser(commands)
    convert.add_parser(commands)
    estimate.add_parser(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
