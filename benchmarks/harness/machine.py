"""What a figure was measured on: hardware, versions, commit."""

import os
import platform
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
    ours = ("torch", "transformers", "faiss-cpu", "numpy")
    return {
        "cpu": _cpu_name(),
        "cores": str(len(os.sched_getaffinity(0))),
        "threads": str(threads),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GB",
        "python": platform.python_version(),
        "versions": ", ".join(f"{name} {version(name)}" for name in ours),
        "peer": peer,
        "inputs": inputs,
        "commit": commit(),
    }


def commit() -> str:
    """The commit, with `-dirty` where code that decides the figures was changed since."""
    head = _git("rev-parse", "--short=10", "HEAD")
    return f"{head}-dirty" if _git("status", "--porcelain", "--", *_CODE) else head


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def _cpu_name() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor()
