"""Heartbeats of index builders: a counter that moves while work is done, and the clock of whoever watches it.

A beat says that work was done, not merely that a thread is alive: the counter moves when the builder marks progress or
has used processor time, so that a builder that hangs (a dead file system, a deadlock, a stopped process) falls silent.
The watcher judges by its own monotonic clock how long ago it last saw the counter move: clocks of two machines are
never compared.
"""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from transformers.utils import logging

from realm_hf.storage.files import read_json, write_json
from realm_hf.storage.processes import WorkMeter

logger = logging.get_logger(__name__)

# Of a process that is watched from outside: more than one uses that only waits for a request.
_WATCHED_CPU_SECONDS = 0.1
# A file system that has gone away does not keep a builder from ending.
_LAST_BEAT_SECONDS = 5.0


@dataclass(frozen=True)
class Beat:
    """
    What a heartbeat file holds.

    Args:
        counter (`int`): Grows with every beat; its absolute value means nothing.
        host (`str`): Host name of the builder.
        pid (`int`): Its process id there.
        phase (`str`): "starting", "waiting", "embedding", "indexing" or "writing".
        snapshot (`str`, *optional*, defaults to `""`): Name of the snapshot at work, or "".
        done (`int`, *optional*, defaults to 0): Passages embedded.
        total (`int`, *optional*, defaults to 0): Passages to embed.
        failures (`int`, *optional*, defaults to 0): Failed builds in a row.
        error (`str`, *optional*, defaults to `""`): Why the last of them failed.
    """

    counter: int
    host: str
    pid: int
    phase: str
    snapshot: str = ""
    done: int = 0
    total: int = 0
    failures: int = 0
    error: str = ""

    @property
    def is_building(self) -> bool:
        """Whether the builder works on a snapshot."""
        return self.snapshot != ""


class Heartbeat:
    """
    Writes a heartbeat file from a background thread until `stop()`; the file goes with it.

    A beat that finds no room on the disk is logged once and tried again: the thread ends with the builder only.

    Args:
        path (`Path`): The file; its directory exists.
        interval (`float`, *optional*, defaults to 0.5): Seconds between two looks at whether work was done.
    """

    def __init__(self, path: Path, interval: float = 0.5):
        self.path = path
        self.interval = interval
        self._beat = Beat(counter=0, host=socket.gethostname(), pid=os.getpid(), phase="starting")
        self._meter = WorkMeter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def mark(self, phase: str, snapshot: str = "", done: int = 0, total: int = 0) -> None:
        """Record that work was done; cheap enough for every batch."""
        self._beat = replace(self._beat, phase=phase, snapshot=snapshot, done=done, total=total)
        self._meter.mark()

    def report_failure(self, failures: int, error: str = "") -> None:
        """Record how many builds failed in a row and why the last one did, for whoever waits for one."""
        self._beat = replace(self._beat, failures=failures, error=error)
        self._meter.mark()

    def stop(self) -> None:
        """End the thread and remove the file."""
        self._ended.set()
        self._thread.join(_LAST_BEAT_SECONDS)
        self.path.unlink(missing_ok=True)

    def _run(self) -> None:
        counter = 0
        is_written = True
        while not self._ended.is_set():
            if self._meter.has_moved():
                try:
                    write_json(self.path, asdict(self._beat) | {"counter": counter + 1}, durable=False)
                except OSError as error:
                    if is_written:
                        logger.warning(
                            "no heartbeat can be written, tried again every %.1f s: %s", self.interval, error
                        )
                    is_written = False
                else:
                    counter += 1
                    self._meter.note()
                    if not is_written:
                        logger.warning("the heartbeat is written again")
                    is_written = True
            self._ended.wait(self.interval)


def read_beat(path: Path) -> Beat | None:
    """The last beat, or `None` if the file is not there (not yet, or no longer) or cannot be read."""
    try:
        return Beat(**read_json(path))
    except (OSError, TypeError, ValueError):
        return None  # a file of another version is nobody we can watch; a disk that fails now may answer later


class HeartbeatMonitor:
    """
    Tells for how long a heartbeat has been silent, by the watcher's own monotonic clock.

    Args:
        path (`Path`): The heartbeat file; it may appear later: silence counts from the construction.
        baseline ([`Beat`], *optional*): A beat that was there before and proves nothing: its builder may be long dead.
    """

    def __init__(self, path: Path, baseline: Beat | None = None):
        self.path = path
        self.beat = baseline
        self.has_moved = False
        self._moved_at = time.monotonic()

    def silent_seconds(self) -> float:
        """Look at the file; seconds since its counter was last seen to move."""
        beat = read_beat(self.path)
        if beat is not None and beat != self.beat:
            self.beat, self.has_moved, self._moved_at = beat, True, time.monotonic()
        return time.monotonic() - self._moved_at


class ProcessorMonitor:
    """
    Tells for how long a process has used next to no processor time: one that has no heartbeat yet.

    A builder loads its libraries before it can beat: seconds on a free processor, minutes on one that training keeps
    busy and that the builder is the last to get.

    Args:
        pid (`int`): The process.
    """

    def __init__(self, pid: int):
        self.pid = pid
        self._used = self._now()
        self._moved_at = time.monotonic()

    def silent_seconds(self) -> float:
        """Seconds since it was last seen to have used a tenth of a second, or since the construction."""
        used = self._now()
        if used - self._used >= _WATCHED_CPU_SECONDS:
            self._used, self._moved_at = used, time.monotonic()
        return time.monotonic() - self._moved_at

    def _now(self) -> float:
        try:
            fields = Path(f"/proc/{self.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):
            return 0.0  # it has ended, or this system keeps no such account
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class FleetMonitor:
    """
    Watches every heartbeat in a directory: builders that were started elsewhere come and go.

    Args:
        directory (`Path`): RUN/heartbeats.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._monitors = {path: HeartbeatMonitor(path, read_beat(path)) for path in directory.glob("*.json")}
        self._last_seen = time.monotonic()

    def silent_seconds(self) -> float:
        """Seconds since any builder's counter was last seen to move (since the construction, if none ever was)."""
        present = set(self.directory.glob("*.json"))
        self._monitors = {path: self._monitors.get(path) or HeartbeatMonitor(path) for path in present}
        now = time.monotonic()
        for monitor in self._monitors.values():
            age = monitor.silent_seconds()
            if monitor.has_moved:
                self._last_seen = max(self._last_seen, now - age)
        return now - self._last_seen

    def building(self, within_seconds: float, max_failures: int | None = None) -> Beat | None:
        """
        The beat of a builder at work that was seen to move within so many seconds.

        Args:
            within_seconds (`float`): Longest silence.
            max_failures (`int`, *optional*): A builder that failed more often in a row is passed over; `None` for no
                limit.
        """
        for monitor in self._monitors.values():
            beat = monitor.beat
            if (
                monitor.has_moved
                and beat is not None
                and beat.is_building
                and (max_failures is None or beat.failures <= max_failures)
                and monitor.silent_seconds() < within_seconds
            ):
                return beat
        return None

    def failing(self) -> Beat | None:
        """The beat of the builder that failed most often in a row, if any did."""
        beats = [monitor.beat for monitor in self._monitors.values() if monitor.has_moved and monitor.beat is not None]
        return max((beat for beat in beats if beat.failures), key=lambda beat: beat.failures, default=None)
