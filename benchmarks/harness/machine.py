"""What a figure was measured on: hardware, versions, commit."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# What decides the figures; results and pages do not.
_CODE = ("src", "benchmarks/harness", "benchmarks/rows", "benchmarks/peer_worker", "benchmarks/peer-requirements.txt")


def describe_machine(threads: int, peer: str, inputs: str) -> dict[str, str]:
    """Facts for the head of the table; results are kept together only where all of them are equal.

    Args:
        threads: CPU threads of each side.
        peer: Versions of the peer's environment.
        inputs: What the passages are.
    """
    return {
        "cpu": cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "threads": str(threads),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB",
        "python": platform.python_version(),
        "versions": _versions("torch", "transformers", "faiss-cpu", "numpy"),
        "peer": peer,
        "inputs": inputs,
        "commit": commit(),
    }


def measured_on(
    threads: int, *code: str, libraries: tuple[str, ...] = ("torch", "transformers", "numpy", "bm25s")
) -> dict[str, str]:
    """The same facts, for one result of a program about learning: processor, threads, versions, commit.

    Args:
        threads: CPU threads that computed.
        code: Files or folders beside `src` that decide the figures.
        libraries: Whose versions are named.
    """
    cores = len(os.sched_getaffinity(0))
    return {
        "cpu": f"{cpu_name()}, {threads} of {cores} cores",
        "python": platform.python_version(),
        "versions": _versions(*libraries),
        "commit": commit("src", *code),
    }


def commit(*code: str) -> str:
    """The commit, with `-dirty` where code that decides the figures was changed since (by default: of the speeds)."""
    head = _git("rev-parse", "--short=10", "HEAD")
    # Results are no code: a run that has written its first line is not dirty by that.
    changed = _git("status", "--porcelain", "--", *(code or _CODE), ":(exclude)*.jsonl")
    return f"{head}-dirty" if changed else head


def _versions(*names: str) -> str:
    return ", ".join(f"{name} {version(name)}" for name in names)


def _git(*arguments: str) -> str:
    if shutil.which("git") is None:
        return "unknown"
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def cpu_name() -> str:
    """What the processor calls itself."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()


def own_megabytes(pid: int) -> float:
    """Anonymous memory of a process, in MB; 0 when it has ended."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Anonymous:")) / 1000
