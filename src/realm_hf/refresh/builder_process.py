"""The builder as its trainer sees it: started clean, asked to build, watched, read when it ends, and never left
behind.

Three things are seen of a build, each by what is still right when the build is killed at that moment: the pipe of
its server says when its process starts and ends, its heartbeat file whether it makes progress, and the store whether
its generation is complete. [`Build`] holds the first two; the third is the store's, in all refresh modes.

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
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO, cast

from transformers.utils import logging

from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.heartbeat import HeartbeatMonitor, ProcessorMonitor
from realm_hf.storage.errors import explain_os_errors

logger = logging.get_logger(__name__)

# What a launcher sets for its ranks; a builder that read it would wait for other ranks that never come.
_LAUNCHER_PREFIXES = ("ACCELERATE_", "FSDP_", "TORCHELASTIC_", "PET_", "GROUP_", "ROLE_", "OMPI_", "PMI_", "SLURM_")
_LAUNCHER_NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "NODE_RANK")

# The interpreter's arguments that start a trainer's builder; TRAINER_PID and RUN follow. `guarded_start.py` is run by
# its path, and imported by nobody: it imports the server, which imports this module.
GUARDED_START = (
    "-c",
    "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')",
    str(Path(__file__).with_name("guarded_start.py")),
)

# RUN/logs/builder-*.log, one for each build and each server: the newest stay, and beside them the newest that failed.
KEPT_LOGS = 20
KEPT_FAILED_LOGS = 20
_FAILED = "failed-"
_TAIL_BYTES = 4096
_KILL_SECONDS = 10.0


def builder_environment(threads: int, environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """
    The environment of a builder: the trainer's without its launcher's variables, with thread settings of its own.

    Args:
        threads (`int`): Processor threads that each library may use.
        environment (`Mapping[str, str]`, *optional*): Instead of this process's own.
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
        # The server that forks builds must have one thread: numpy's OpenBLAS and pyarrow's allocator would start
        # others.
        "OPENBLAS_NUM_THREADS": "1",
        "JE_ARROW_MALLOC_CONF": "background_thread:false",
        # Waiting threads that spin would take the trainer's cores: a search beside a busy builder took 20 times as
        # long.
        "OMP_WAIT_POLICY": "passive",
        "TOKENIZERS_PARALLELISM": "false",
        # Everything a builder needs is in the run directory.
        "HF_HUB_OFFLINE": "1",
        "PYTHONUNBUFFERED": "1",
    }


class Build:
    """
    One build that was asked for.

    Args:
        run ([`RunDirectory`]): The run directory.
    """

    def __init__(self, run: RunDirectory):
        self.name = f"builder-{uuid.uuid4().hex[:12]}"
        self.log_path = run.logs / f"{self.name}.log"
        self.monitor = HeartbeatMonitor(run.heartbeats / f"{self.name}.json")
        self.pid: int | None = None
        self.status: int | None = None
        """Exit code, or minus the number of the signal that killed it; `None` while it runs."""

    def describe_failure(self) -> str:
        """How it stands or why it ended, with the end of its log, which is kept for longer than that of a good one."""
        self.log_path = mark_failed(self.log_path)
        return f"The index builder (process {self.pid}) {_describe_status(self.status)}; {_tail(self.log_path)}"


class BuilderProcess:
    """
    The [`BuilderServer`] of one trainer.

    Args:
        run ([`RunDirectory`]): The run directory.
        threads (`int`, *optional*, defaults to 1): Processor threads of a build.
        device (`str`, *optional*, defaults to `"cpu"`): Where builds embed, such as "cpu" or "cuda:1".
        index_threads (`int`, *optional*): Those of its index; `threads` by default.
    """

    def __init__(
        self,
        run: RunDirectory,
        *,
        threads: int = 1,
        index_threads: int | None = None,
        device: str = "cpu",
    ):
        self.run = run
        self.build: Build | None = None
        self.log_path = run.logs / f"builder-server-{uuid.uuid4().hex[:12]}.log"
        self._unread = b""
        prune_logs(run.logs)
        command = [
            sys.executable,
            *GUARDED_START,
            str(os.getpid()),
            str(run.root),
        ]
        counts = ["--threads", str(threads), "--index-threads", str(index_threads or threads)]
        with explain_os_errors("write the builder's log", self.log_path), self.log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, *counts, "--device", device],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=builder_environment(threads),
                # A session of its own: Ctrl-C in the trainer's terminal reaches the trainer, which then ends its
                # builder.
                start_new_session=True,
            )
        self._loading = ProcessorMonitor(self._process.pid)
        os.set_blocking(self._stdout.fileno(), False)

    @property
    def pid(self) -> int:
        """Process id of the server; a build has its own."""
        return self._process.pid

    @property
    def is_alive(self) -> bool:
        """Whether the server runs."""
        return self._process.poll() is None

    def request(self) -> Build:
        """Ask for a build of the newest snapshot; a server that is still loading reads the request afterwards."""
        prune_logs(self.run.logs, living=self.log_path)
        self.build = Build(self.run)
        with contextlib.suppress(BrokenPipeError):  # a dead server is noticed by `is_alive`
            self._stdin.write(f"build {self.build.name}\n".encode())
            self._stdin.flush()
        return self.build

    def silent_seconds(self) -> float:
        """Seconds without progress of the build; before its first beat, of the server or fork that loads for it."""
        if self.build is None:
            return 0.0
        silent = self.build.monitor.silent_seconds()
        return silent if self.build.monitor.has_moved else min(silent, self._loading.silent_seconds())

    def look(self) -> None:
        """Read what the server has answered about its build; never waits."""
        with contextlib.suppress(BlockingIOError):
            while received := os.read(self._stdout.fileno(), 4096):
                self._unread += received
        *lines, self._unread = self._unread.split(b"\n")
        for answer, name, number in (line.decode().split() for line in lines):
            if self.build is not None and name == self.build.name:
                if answer == "started":
                    self.build.pid = int(number)
                    self._loading = ProcessorMonitor(self.build.pid)
                else:
                    self.build.status = int(number)

    def describe_end(self) -> str:
        """Why the server ended, with the end of its log, which is kept for longer than others, as is its build's."""
        self.log_path = mark_failed(self.log_path)
        if self.build is not None:
            self.build.log_path = mark_failed(self.build.log_path)
        how = _describe_status(self._process.poll())
        return f"The index builder's server (process {self.pid}) {how}; {_tail(self.log_path)}"

    def kill(self) -> None:
        """End the server and its build at once, and wait a few seconds until they are gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        try:
            self._process.wait(_KILL_SECONDS)
        except subprocess.TimeoutExpired:
            logger.warning(
                "the index builder's server (process %d) was killed, but has not ended within %.0f s: it waits for a "
                "file system that does not answer. It is left behind, and ends when that does.",
                self.pid,
                _KILL_SECONDS,
            )
        with contextlib.suppress(BrokenPipeError):
            self._stdin.close()
        self._stdout.close()
        if self.build is not None:
            self.build.monitor.path.unlink(missing_ok=True)

    def stop(self, grace_seconds: float = 2.0) -> None:
        """End the server, which kills its build. One that is still loading libraries is killed: it holds nothing."""
        # Written, not only implied by closing the pipe: a forked data loader worker may hold a copy of our end of it.
        with contextlib.suppress(BrokenPipeError):
            self._stdin.write(b"stop\n")
            self._stdin.flush()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(grace_seconds)
        self.kill()

    @property
    def _stdin(self) -> BinaryIO:
        return cast(BinaryIO, self._process.stdin)

    @property
    def _stdout(self) -> BinaryIO:
        return cast(BinaryIO, self._process.stdout)


def mark_failed(log: Path) -> Path:
    """Name a log that of a failed build; returns its new path, or the old one where that cannot be done."""
    failed = log.with_name(_FAILED + log.name)
    try:
        return log.rename(failed)
    except OSError:
        return log  # it was never opened, or the disk does not answer; the failure that is being reported matters more


def prune_logs(logs: Path, living: Path | None = None) -> None:
    """
    Remove all but the newest logs.

    Args:
        logs (`Path`): RUN/logs.
        living (`Path`, *optional*): The log of a server that runs, however old it is.
    """
    for pattern, kept in (("builder-*.log", KEPT_LOGS), (f"{_FAILED}builder-*.log", KEPT_FAILED_LOGS)):
        with contextlib.suppress(OSError):  # another disk error will say so; old logs are no reason to stop
            found = [path for path in logs.glob(pattern) if path != living]
            for old in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[kept:]:
                old.unlink(missing_ok=True)


def _describe_status(status: int | None) -> str:
    if status is None:
        return "still runs"
    if status >= 0:
        return f"ended with exit code {status}"
    how = f"was killed by {signal.Signals(-status).name}"
    return f"{how} (by hand or by the kernel for want of memory)" if -status == signal.SIGKILL else how


def _tail(log: Path) -> str:
    if not log.exists() or not log.stat().st_size:
        return f"its log {log} is empty"
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        return f"its log {log} ends with:\n{file.read().decode(errors='replace').strip()}"
