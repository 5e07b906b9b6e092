"""Commands that look after a run directory: build its index, inspect it, verify it, write its report.

Each imports what it needs when it runs: help needs none of it.
"""

from __future__ import annotations

import argparse
import json

from realm_hf.refresh.builder_options import BuilderOptions, add_arguments

__all__ = ["add_build_index", "add_inspect", "add_report", "add_verify"]

_EXIT_WRONG = 1
Commands = argparse._SubParsersAction


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="the run directory")


def add_build_index(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `build-index` to the commands of an `argparse` parser; `options.command(options)` runs it."""
    parser = commands.add_parser(
        "build-index",
        description="Build the index of the newest snapshot of RUN; with --watch, of each that training writes "
        "(refresh='external'). Started several times, on any nodes that share RUN, the builders make one index "
        "together; so do the ranks of `accelerate launch` or `torchrun`.",
        epilog="exit codes: 0 built, 1 the build failed, 3 nothing to build, 4 RUN cannot be used",
    )
    add_arguments(parser)
    parser.add_argument(
        "--engine",
        choices=["here", "ray"],
        default="here",
        help="where builders run: this process, or a Ray cluster that sees RUN (default: %(default)s)",
    )
    parser.add_argument("--builders", type=int, help="with --engine ray: how many (default: 1)")
    parser.add_argument(
        "--gpus", type=float, help="with --engine ray: GPUs of each builder (default: 1 with --device cuda, else none)"
    )
    parser.set_defaults(command=_build_index)


def _build_index(options: argparse.Namespace) -> int:
    if options.engine == "ray":
        from realm_hf.refresh.ray_engine import build_on_ray

        builders = 1 if options.builders is None else options.builders
        return build_on_ray(BuilderOptions.of(options), builders, gpus=options.gpus)
    if options.builders is not None or options.gpus is not None:
        raise ValueError("--builders and --gpus need --engine ray; here, start build-index several times.")
    from realm_hf.refresh import builder

    return builder.run(BuilderOptions.of(options))


def add_inspect(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `inspect`, as above."""
    parser = commands.add_parser(
        "inspect", description="Trainer, snapshots, index generations, builders and checkpoints of RUN."
    )
    _add_run(parser)
    parser.add_argument("--json", action="store_true", help="as JSON, with every recorded field")
    parser.set_defaults(command=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from realm_hf.runs.directory import RunDirectory
    from realm_hf.runs.inspection import describe_run, run_as_text

    run = RunDirectory.open(options.run)
    print(json.dumps(describe_run(run), indent=2) if options.json else "\n".join(run_as_text(run)))
    return 0


def add_verify(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `verify`, as above."""
    parser = commands.add_parser(
        "verify",
        description="Hash every file of the passages and of each index generation, and recompute random rows of each "
        "generation from the snapshot that it was built from.",
        epilog="exit codes: 0 all is well, 1 something is wrong, 4 RUN cannot be used",
    )
    _add_run(parser)
    parser.add_argument("--rows", type=int, default=100, help="rows to recompute of each (default: %(default)s)")
    parser.add_argument(
        "--tolerance",
        type=float,
        help="how far a row may move, as a share of its length (default: 0.001; 0.008 for tf32, 0.06 for bfloat16)",
    )
    parser.add_argument("--seed", type=int, default=0, help="draws the rows (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="where to recompute (default: %(default)s)")
    parser.set_defaults(command=_verify)


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
    return _EXIT_WRONG if wrong else 0


def add_report(commands: Commands[argparse.ArgumentParser]) -> None:
    """Add `report`, as above."""
    parser = commands.add_parser(
        "report", description="Write a single-file HTML report of RUN from its log and summary."
    )
    _add_run(parser)
    parser.add_argument("--output", metavar="FILE", help="where to write it (default: RUN/report.html)")
    parser.set_defaults(command=_report)


def _report(options: argparse.Namespace) -> int:
    from realm_hf.report import write_report

    print(write_report(options.run, options.output))
    return 0
