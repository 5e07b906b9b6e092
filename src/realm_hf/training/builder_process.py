"""A builder process as its trainer sees it: started clean, watched, read when it ends, and never left behind.

`subprocess` with a cleaned environment was chosen over `multiprocessing`: a fork of a trainer that has searched with
threads hangs, and a spawned child would inherit the launcher's RANK, MASTER_ADDR and thread settings and take itself
for one of its ranks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Mapping
from typing import BinaryIO

from transformers.utils import logging

from realm_hf.index.staging import explained
from realm_hf.training.heartbeat import HeartbeatMonitor
from realm_hf.training.run_directory import RunDirectory

logger = logging.get_logger(__name__)

# What a launcher tells its ranks; a builder that believed it would wait for peers that never come.
_LAUNCHER_PREFIXES = (
    "ACCELERATE_",
    "FSDP_",
    "TORCHELASTIC_",
    "PET_",
    "NCCL_ASYNC_",
    "GROUP_",
    "ROLE_",
    "OMPI_",
    "PMI_",
    "SLURM_",
)
_LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK")

_TAIL_BYTES = 4096


def builder_environment(threads: int, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a builder: the trainer's without its launcher's variables, with thread settings of its own.

    Args:
        threads: Processor threads that each library may use.
        environment: Instead of this process's own.
    """
    inherited = os.environ if environment is None else environment
    cleaned = {
        name: value
        for name, value in inherited.items()
        if name not in _LAUNCHER_NAMES and not name.startswith((*_LAUNCHER_PREFIXES, "OMP_", "KMP_", "GOMP_"))
    }
    count = str(threads)
    return cleaned | {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        # Waiting threads that spin would take the trainer's cores: a search beside a busy builder took 20 times as
        # long.
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        # Everything a builder needs is in the run directory.
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


class BuilderProcess:
    """One builder that builds one generation: it warms up, waits for `build()`, builds the newest snapshot and ends.

    Args:
        run: The run directory.
        threads: Its processor threads.
        device: Its device, such as "cpu" or "cuda:1".
        nice: Added to the trainer's niceness, so that the trainer's threads go first on a shared processor.
    """

    def __init__(self, run: RunDirectory, *, threads: int = 1, device: str = "cpu", nice: int = 10):
        name = f"builder-{uuid.uuid4().hex[:12]}"
        self.heartbeat_path = run.heartbeats / f"{name}.json"
        self.log_path = run.logs / f"{name}.log"
        self.started = time.monotonic()
        command = [
            sys.executable,
            "-m",
            "realm_hf.training.builder",
            str(run.root),
            "--once",
            "--wait",
            "--stdin-guard",
        ]
        command += ["--name", name, "--threads", str(threads), "--device", device]
        with explained("write the builder's log", self.log_path), self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=builder_environment(threads),
                # A session of its own: Ctrl-C in the trainer's terminal reaches the trainer, which then ends its
                # builder.
                start_new_session=True,
            )
        with contextlib.suppress(ProcessLookupError):
            # Set from here rather than by a preexec_fn, which may deadlock in a process with threads; the threads that
            # the builder starts later inherit it.
            niceness = min(19, os.getpriority(os.PRIO_PROCESS, 0) + nice)
            os.setpriority(os.PRIO_PROCESS, self._process.pid, niceness)
        self.monitor = HeartbeatMonitor(self.heartbeat_path)

    @property
    def pid(self) -> int:
        """Process id."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """Exit status as `subprocess` gives it (negative: the signal that killed it), or `None` while it runs."""
        return self._process.poll()

    def build(self) -> bool:
        """Tell it to build the newest snapshot; false if it is dead."""
        return self._say(b"build\n")

    def tail(self) -> str:
        """The end of what it printed."""
        try:
            with self.log_path.open("rb") as file:
                file.seek(max(0, self.log_path.stat().st_size - _TAIL_BYTES))
                return file.read().decode(errors="replace").strip()
        except FileNotFoundError:
            return ""

    def describe_end(self) -> str:
        """Why it ended, in words, with the end of its log."""
        code = self.returncode
        if code is None:
            how = "still runs"
        elif code < 0:
            how = f"was killed by {signal.Signals(-code).name}"
            if code == -signal.SIGKILL:
                how += " (by hand, by its trainer, or by the kernel for want of memory)"
        else:
            how = f"ended with exit code {code}"
        tail = self.tail()
        end = f"its log {self.log_path} ends with:\n{tail}" if tail else f"its log {self.log_path} is empty"
        return f"The index builder (process {self.pid}) {how}; {end}"

    def kill(self) -> None:
        """End it and its children at once, and wait until it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self.reap()

    def stop(self, grace_seconds: float = 5.0) -> None:
        """Tell it to end, which it does at once wherever it stands; kill it if it does not."""
        # Said, not only hinted at by closing the pipe: a forked data loader worker may hold a copy of our end of it.
        self._say(b"stop\n")
        try:
            self._process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            logger.warning(
                "builder %d did not end within %.0f s of being told to; killing it", self.pid, grace_seconds
            )
            self.kill()
            return
        self.reap()

    def _say(self, word: bytes) -> bool:
        try:
            self._stdin.write(word)
            self._stdin.flush()
        except (BrokenPipeError, ValueError):
            return False
        return True

    @property
    def _stdin(self) -> BinaryIO:
        pipe = self._process.stdin
        assert pipe is not None
        return pipe  # type: ignore[return-value]

    def reap(self) -> None:
        """Wait for its end and remove its heartbeat; its log stays."""
        self._process.wait()
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self.heartbeat_path.unlink(missing_ok=True)
