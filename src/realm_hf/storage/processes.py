"""Processes that share files: who one is, whether it still runs, and whether it works."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import time
import uuid
from dataclasses import dataclass
from pathlib import Path

__all__ = ["ProcessIdentity", "WorkMeter", "boot_id", "pid_namespace", "process_start"]

# Processor seconds between two looks that count as work.
_WORK_CPU_SECONDS = 0.01


def boot_id() -> str:
    """An identifier of this boot of this machine; process ids compare only within it."""
    linux = Path("/proc/sys/kernel/random/boot_id")
    if linux.exists():
        return linux.read_text(encoding="ascii").strip()
    if platform.system() == "Darwin":
        answer = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True)
        return answer.stdout.strip()
    return f"unknown-{uuid.uuid4().hex}"


def pid_namespace() -> str:
    """The container's process id namespace: the same boot may run many, each with a process 1 of its own."""
    link = Path("/proc/self/ns/pid")
    return str(link.readlink()) if link.exists() else "none"


def process_start(pid: int) -> str | None:
    """
    When a process started, in the kernel's ticks since boot, or `None` if there is no such process.

    Where /proc does not exist the answer for a living process is `""`: a recycled process id then counts as alive.
    """
    if Path("/proc/self/stat").exists():
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The second field, the command in parentheses, may itself hold spaces and parentheses.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in ("Z", "X") else fields[19]
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        return ""
    return ""


@dataclass(frozen=True)
class ProcessIdentity:
    """
    Which process, among all that may share a file system.

    Args:
        host (`str`): Host name.
        pid (`int`): Process id on that host.
        process_start (`str`): Its start time in the kernel's ticks: so that a recycled process id is not taken for it.
        boot_id (`str`): Boot of the host.
        pid_namespace (`str`): Process id namespace (containers).
    """

    host: str
    pid: int
    process_start: str
    boot_id: str
    pid_namespace: str

    @staticmethod
    def fields_of_this_process() -> dict[str, str | int]:
        """The fields above, of the process that asks."""
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "process_start": process_start(os.getpid()) or "",
            "boot_id": boot_id(),
            "pid_namespace": pid_namespace(),
        }

    def is_judged_from_here(self) -> bool:
        """Whether this process can tell if that one is alive: same host, same boot, same process id namespace."""
        return (self.host, self.boot_id, self.pid_namespace) == (socket.gethostname(), boot_id(), pid_namespace())

    def is_alive(self) -> bool:
        """Whether it still runs; means something only if `is_judged_from_here()`."""
        return process_start(self.pid) == self.process_start


class WorkMeter:
    """
    Tells the thread that writes a heartbeat whether this process has worked: marked progress, or used processor time
    beside that thread's own. One that hangs (a dead file system, a deadlock, a stopped process) has not.
    """

    def __init__(self) -> None:
        self._marks = 0
        self._noted = self._seen = (-1, 0.0)

    def mark(self) -> None:
        """Record that work was done, from any thread; cheap enough for every batch."""
        self._marks += 1

    def has_moved(self) -> bool:
        """Whether work was done since what [`note`] noted; asked by the heartbeat's thread."""
        self._seen = (self._marks, time.process_time() - time.thread_time())
        return self._seen[0] != self._noted[0] or self._seen[1] - self._noted[1] > _WORK_CPU_SECONDS

    def note(self) -> None:
        """The work that was last seen was reported; what was done since counts for the next time."""
        self._noted = self._seen
