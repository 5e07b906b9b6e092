"""Tasks that any number of processes do together, on any nodes that share a directory, with nobody in charge.

    ROOT/claims/3.1/owner.json   the first claim of task 3, and whose it is; it stays as long as ROOT
    ROOT/claims/3.1/place/       through it the owner publishes; its time of change is the owner's heartbeat
    ROOT/claims/3.1/work/        where the owner writes
    ROOT/parts/3/                what task 3 made, with `part.json`: its files' sizes and digests
    ROOT/count.json              how many tasks there are, where that is found out on the way

A claim is one rename to a name that is taken once for ever: of two processes one gets it, and none that has slept
since it looked can get it again. A part leaves by a rename through its owner's place, so that an owner whose place was
taken away publishes nothing.

A place is taken away when its owner is dead or silent. Death is seen at once from the same boot of the same machine;
from elsewhere it is silence: a heartbeat that has not moved for `stale_seconds` of the watcher's own clock. The next
claim (3.2) comes first, then the earlier place goes, then the task begins anew.

`flock` was rejected, because not every network file system keeps it between nodes; so was a server, because it would
have to be alive.
"""

from __future__ import annotations

import errno
import os
import shutil
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from transformers.utils import logging

from realm_hf.storage.directories import fsync_tree
from realm_hf.storage.files import TEMPORARY_PREFIX, check_files, describe_files, fsync_path, read_json, write_json
from realm_hf.storage.processes import ProcessIdentity, WorkMeter
from realm_hf.storage.sealed_json import read_sealed_json, write_sealed_json

__all__ = ["STALE_SECONDS", "Claim", "SharedTasks"]

logger = logging.get_logger(__name__)

STALE_SECONDS = 120.0
"""Silence after which an owner on another machine, or one that hangs, loses its task."""
_BEAT_SECONDS = 0.5
_LOOK_SECONDS = 0.2
_PART_FILE, _COUNT_FILE = "part.json", "count.json"


@dataclass(frozen=True)
class Claim:
    """
    A task that this process has claimed.

    Args:
        task (`int`): Its number.
        path (`Path`): Directory of the claim.
    """

    task: int
    path: Path

    @property
    def place(self) -> Path:
        """Gone as soon as the task is another's."""
        return self.path / "place"

    @property
    def work(self) -> Path:
        """Where the task is done. Libraries make missing parents: what they write here has no way out but `place`."""
        return self.path / "work"

    def is_lost(self) -> bool:
        """Whether another process has taken the task over."""
        return not self.place.is_dir()

    def take_place(self) -> None:
        """Let its owner publish nothing any more."""
        with suppress(FileNotFoundError):
            gone = self.place.rename(self.path / f"gone-{uuid.uuid4().hex[:8]}")
            shutil.rmtree(gone, ignore_errors=True)
        shutil.rmtree(self.work, ignore_errors=True)


Work = Callable[[Claim], Mapping[str, Any] | None]
"""Does a task: writes files into [`Claim.work`], which is empty, and may say something of them for `part.json`."""


class SharedTasks:
    """
    Tasks 0 to `count - 1`, each done by one of the processes that call [`run`] with the same directory.

    Where nobody knows how many there are, as of a stream, `count` is `None`, and tasks are claimed one behind the
    other until one finds that it lies behind the last and says so by [`end_at`].

    Args:
        root (`Path`): The directory, the same for all; made if it is not there. Whoever needs no parts any more
            removes it, and the others' [`run`] returns.
        count (`int`, *optional*): Number of tasks, if it is known.
        stale_seconds (`float`, *optional*, defaults to 120.0): Silence after which an owner loses its task.
        durable (`bool`, *optional*, defaults to `False`): Fsync each part before it appears. Without, a part that a
            power failure has cut is found by its digest only.
        clock (`Callable`, *optional*): Seconds that only grow; the monotonic clock by default.
    """

    def __init__(
        self,
        root: Path,
        count: int | None,
        *,
        stale_seconds: float = STALE_SECONDS,
        durable: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ):
        self.root = root
        self._count = count
        self.stale_seconds = stale_seconds
        self.durable = durable
        self._clock = clock
        self._claims, self._parts = root / "claims", root / "parts"
        self._owners: dict[Claim, ProcessIdentity] = {}
        self._beats: dict[Claim, tuple[int, float]] = {}
        for folder in (self._claims, self._parts):
            folder.mkdir(parents=True, exist_ok=True)

    @property
    def count(self) -> int | None:
        """Number of tasks; `None` as long as nobody knows it."""
        path = self.root / _COUNT_FILE
        if self._count is None and path.is_file():
            self._count = int(read_sealed_json(path)["count"])
        return self._count

    def numbers(self) -> range:
        """All tasks, once their number is known."""
        if self.count is None:
            raise ValueError(f"nobody knows yet how many tasks there are in {self.root}")
        return range(self.count)

    def end_at(self, count: int) -> None:
        """
        Say how many tasks there are. A task behind the last, which somebody may be at, makes no part.

        Args:
            count (`int`): Number of tasks; whoever says it says the same.
        """
        write_sealed_json(self.root / _COUNT_FILE, {"count": count}, durable=self.durable)

    def run(self, work: Work, *, idle: Callable[[], None] | None = None) -> bool:
        """
        Do tasks until all are done, by whomever.

        Args:
            work (`Work`): Does one task. What it writes is thrown away if it raises, or if the task was taken over.
            idle (`Callable`, *optional*): Called again and again while other processes have all that is left.

        Returns:
            `bool`: `False` if somebody has removed the directory meanwhile, as those who need no parts any more do.
        """
        try:
            while not self._is_complete():
                claim = self.claim()
                if claim is not None:
                    self._do(claim, work)
                else:
                    if idle is not None:
                        idle()
                    time.sleep(_LOOK_SECONDS)
        except FileNotFoundError:
            if self._parts.is_dir():
                raise
            return False
        return True

    def _is_complete(self) -> bool:
        return self.count is not None and len(self.done()) >= self.count

    def done(self) -> set[int]:
        """The tasks whose parts are there."""
        return {int(path.name) for path in self._parts.iterdir() if path.name.isdigit()}

    def part(self, task: int) -> Path:
        """Directory of what a task made."""
        return self._parts / str(task)

    def read_part(self, task: int) -> dict[str, Any]:
        """
        What a task said of its part, after a comparison of all its files with their digests.

        Raises:
            OSError: A file is missing or changed. The part is removed, so that its task is done again next time.
        """
        part = self.part(task)
        try:
            facts = read_sealed_json(part / _PART_FILE)
            check_files(part, facts["files"], verify=True)
        except (ValueError, KeyError, FileNotFoundError) as error:
            with suppress(FileNotFoundError):
                retired = part.rename(self.root / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:8]}")
                shutil.rmtree(retired, ignore_errors=True)
            message = f"{part} is damaged ({error}): it was removed. Start again, and it is made anew"
            raise OSError(errno.EIO, message) from error
        return facts

    def claim(self) -> Claim | None:
        """Claim the first task that nobody has, or whose owner is dead or silent; `None` if there is none now."""
        newest = self._newest_claims()
        done = self.done()
        # Where the end is not known: all that were begun, and the next.
        count = max([-1, *newest, *done]) + 2 if self.count is None else self.count
        candidates = (task for task in range(count) if task not in done)
        open_tasks = [task for task in candidates if task not in newest or self._is_open(newest[task])]
        if not open_tasks:
            return None
        draft = self._draft()
        try:
            for task in open_tasks:
                attempt = 1 + (int(newest[task].path.suffix[1:]) if task in newest else 0)
                claim = Claim(task, self._claims / f"{task}.{attempt}")
                if not _rename_once(draft, claim.path):
                    continue  # another process was faster
                for earlier in range(1, attempt):
                    Claim(task, self._claims / f"{task}.{earlier}").take_place()
                # It may have been published before its owner's place went, and this process have slept since.
                if not self.part(task).exists() and not claim.is_lost():
                    return claim
                claim.take_place()
                draft = self._draft()
        finally:
            shutil.rmtree(draft, ignore_errors=True)
        return None

    def publish(self, claim: Claim, facts: Mapping[str, Any]) -> bool:
        """
        Let what was written in `claim.work` appear as the task's part, whole and once.

        Args:
            claim ([`Claim`]): Of this process.
            facts (`Mapping`): What is said of the part in `part.json`.

        Returns:
            `bool`: `False` if the task was taken over: nothing has appeared.
        """
        content = {**facts, "files": describe_files(claim.work, claim.work)}
        write_sealed_json(claim.work / _PART_FILE, content, durable=False)
        if self.durable:
            fsync_tree(claim.work)
        try:
            ready = claim.work.rename(claim.place / "part")
            published = _rename_once(ready, self.part(claim.task))
        except FileNotFoundError:
            return False
        if self.durable:
            fsync_path(self._parts)
        return published

    def _do(self, claim: Claim, work: Work) -> None:
        beat = _Beat(claim.place)
        try:
            claim.work.mkdir()
            facts = work(claim) or {}
            if self.count is not None and claim.task >= self.count:
                return
            published = self.publish(claim, facts)
        except Exception:
            if not claim.is_lost():
                raise
            published = False
        finally:
            beat.stop()
            lost = claim.is_lost()
            claim.take_place()  # a task that failed is free again
        if lost or not published:
            logger.warning("task %d of %s was taken over by another process", claim.task, self.root)

    def _draft(self) -> Path:
        """A claim without a name yet."""
        draft = self._claims / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex[:8]}"
        draft.mkdir()
        (draft / "place").mkdir()
        write_json(draft / "owner.json", ProcessIdentity.fields_of_this_process(), durable=False)
        return draft

    def _newest_claims(self) -> dict[int, Claim]:
        attempts: dict[int, int] = {}
        for path in self._claims.iterdir():
            task, _, attempt = path.name.partition(".")
            if task.isdigit():
                attempts[int(task)] = max(attempts.get(int(task), 0), int(attempt))
        return {task: Claim(task, self._claims / f"{task}.{attempt}") for task, attempt in attempts.items()}

    def _is_open(self, claim: Claim) -> bool:
        """Whether the owner of a task has given it back, is dead, or has been silent for too long."""
        try:
            beat = claim.place.stat().st_mtime_ns
        except FileNotFoundError:
            return True
        if claim not in self._owners:
            content = read_json(claim.path / "owner.json")
            names = {field.name for field in fields(ProcessIdentity)}
            self._owners[claim] = ProcessIdentity(**{name: content[name] for name in names})
        owner = self._owners[claim]
        if owner.is_judged_from_here() and not owner.is_alive():
            return True
        now = self._clock()
        seen, since = self._beats.get(claim, (beat, now))
        self._beats[claim] = (beat, now) if seen != beat else (seen, since)
        return seen == beat and now - since > self.stale_seconds


class _Beat:
    """Moves the time of change of a claim's place while this process works, from a thread."""

    def __init__(self, place: Path):
        self.place = place
        self._meter = WorkMeter()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="claim-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join(_BEAT_SECONDS * 10)  # not for ever: the file system may have gone away

    def _run(self) -> None:
        while not self._ended.wait(_BEAT_SECONDS):
            if self._meter.has_moved():
                with suppress(OSError):  # taken away, which the work's end finds; or a disk that may answer later
                    os.utime(self.place)
                    self._meter.note()


def _rename_once(source: Path, target: Path) -> bool:
    """Rename a directory to a name that no directory with content has; whether it was free."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
            return False
        raise
    return True
