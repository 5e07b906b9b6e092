"""The other side: a process with a Python environment of its own, in which the old transformers lives.

Both sides exist at once and take turns, so the peer waits on a pipe while ours runs: it reads one JSON line, does the
work once, answers with one JSON line. What it works on is prepared before, from files in a folder.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from .machine import ROOT

REQUIREMENTS = ROOT / "benchmarks" / "peer-requirements.txt"
WORKER = ROOT / "benchmarks" / "peer_worker" / "worker.py"
ENVIRONMENT = ROOT / ".cache" / "peer"


def peer_python() -> Path:
    """The peer's Python: `PEER_PYTHON`, or `.cache/peer`, which is made where it is not there (some minutes, once).

    `TORCH_INDEX_URL` names another package index for torch alone, as in the Makefile.
    """
    given = os.environ.get("PEER_PYTHON")
    if given:
        return Path(given)
    python = ENVIRONMENT / "bin" / "python"
    stamp = ENVIRONMENT / "requirements.sha256"
    wanted = hashlib.sha256(REQUIREMENTS.read_bytes()).hexdigest()
    if not stamp.exists() or stamp.read_text() != wanted:
        print(f"setting up the peer's environment in {ENVIRONMENT}", file=sys.stderr, flush=True)
        subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
        install = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "-c", REQUIREMENTS]
        index = os.environ.get("TORCH_INDEX_URL")
        subprocess.run([*install, "torch", *(["--index-url", index] if index else [])], check=True)
        subprocess.run([*install, "-r", REQUIREMENTS], check=True)
        stamp.write_text(wanted)
    return python


def peer_versions() -> str:
    """What the peer's environment holds, in words."""
    names = ("torch", "transformers", "sentence-transformers")
    code = f"from importlib.metadata import version; print(', '.join(f'{{n}} {{version(n)}}' for n in {names}))"
    done = subprocess.run([peer_python(), "-c", code], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(
            f"The peer's Python {peer_python()} lacks one of {', '.join(names)}: unset PEER_PYTHON, or install "
            f"{REQUIREMENTS} there.\n{done.stderr}"
        )
    return done.stdout.strip()


class Peer:
    """A worker process for one task; a `Side` of an alternation.

    Args:
        task: Name of the module in benchmarks/peer_worker whose `prepare(folder, options)` returns the work.
        folder: Files for it.
        threads: Its CPU threads.
        options: More for `prepare`, as JSON.

    Raises:
        RuntimeError: The worker ended; what it said stands on stderr.
    """

    def __init__(self, task: str, folder: Path, threads: int, options: dict[str, Any] | None = None):
        environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment |= {"OMP_NUM_THREADS": str(threads), "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self._task = task
        self._process = subprocess.Popen(
            [peer_python(), WORKER, task, folder, str(threads), json.dumps(options or {})],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._answer()

    def step(self) -> dict[str, Any]:
        """Do the work once; `seconds`, and what the task reports for the comparison of results."""
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        return self._answer()

    def __call__(self) -> float:
        """Do the work once; its seconds."""
        return float(self.step()["seconds"])

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.communicate()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"The peer's worker for {self._task!r} ended with {self._process.wait()}.")
        answer: dict[str, Any] = json.loads(line)
        return answer
