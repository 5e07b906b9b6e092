"""What a builder is started with: one object, from the command line or from the server that forks it.

The module imports nothing of the package: the server has it in memory before it forks, and must not have FAISS.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self


@dataclass(frozen=True)
class BuilderOptions:
    """
    The options of a builder; their names are those of the command line.

    Args:
        run (`Path`): The run directory.
        watch (`bool`, *optional*, defaults to `False`): Build each newest snapshot until interrupted, instead of one.
        device (`str`, *optional*, defaults to `"cpu"`): Where passages are embedded, such as `"cuda:1"`.
        threads (`int`, *optional*): Processor threads; the libraries' own number by default.
        index_threads (`int`, *optional*): Threads of k-means and of filling the index; `threads` by default, else all
            usable cores.
        nice (`int`, *optional*, defaults to 0): Niceness to add, for a processor that others use too.
        name (`str`, *optional*): Of the heartbeat file; a new one by default.
        poll_seconds (`float`, *optional*, defaults to 2.0): With `watch`, the pause between two looks.
    """

    run: Path
    watch: bool = False
    device: str = "cpu"
    threads: int | None = None
    index_threads: int | None = None
    nice: int = 0
    name: str | None = None
    poll_seconds: float = 2.0

    @classmethod
    def of(cls, parsed: argparse.Namespace) -> Self:
        """
        The options that a parser with [`add_arguments`] has read.

        Args:
            parsed (`argparse.Namespace`): May hold others beside them.
        """
        return cls(**{field.name: getattr(parsed, field.name) for field in fields(cls)})


def devices_of(device: str) -> list[str]:
    """The devices of a trainer's builder: names with commas between them, `"cuda:1,cuda:2"`."""
    return [name.strip() for name in device.split(",")]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """
    Add the options of a builder to a parser.

    Args:
        parser (`argparse.ArgumentParser`): Of the builder, its server, or `realm-hf build-index`.
    """
    parser.add_argument("run", metavar="RUN", type=Path, help="the run directory (output_dir of the training run)")
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--once", action="store_true", help="build the newest snapshot and end (default)")
    mode.add_argument("--watch", action="store_true", help="build each newest snapshot, until interrupted")
    parser.add_argument("--device", default="cpu", help="where to embed, such as cuda:1 (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=None, help="processor threads (default: the libraries' own)")
    parser.add_argument(
        "--index-threads",
        type=int,
        default=None,
        help="threads of k-means and of filling the index (default: those of --threads, else all usable cores)",
    )
    parser.add_argument("--nice", type=int, default=0, help="niceness to add, for a processor that others use too")
    parser.add_argument("--name", help=argparse.SUPPRESS)  # of the heartbeat file: the trainer knows it beforehand
    parser.add_argument(
        "--poll-seconds", type=float, default=2.0, help="with --watch: pause between looks (default: %(default)s)"
    )
