"""One trainer a run: a lock file that says who holds it, and the [`Term`] that fences off a replaced trainer.

The lock is created exclusively with its content in place (a hard link of a finished file: unlike `O_CREAT | O_EXCL`
followed by a write, a kill between the two leaves no empty lock that nobody can judge). A holder that died on this
very boot of this very machine is taken over; whether one on another machine is alive cannot be known from here, so
that one is refused.

The lock keeps two trainers from starting beside each other; it does not keep one from going on that was stopped while
its lock was removed by hand. That is the term's part: a number claimed before the lock is taken, and places of
all lower numbers removed after it. (`run.json`, snapshots and generations call the number of the term `epoch`.)

`flock` alone was rejected: it is advisory, not kept by every network file system, and says nothing about the holder.
"""

from __future__ import annotations

import fcntl
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from realm_hf.runs.errors import RunDirectoryError, RunLocked
from realm_hf.runs.term import Term
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import fsync_path, read_json
from realm_hf.storage.processes import ProcessIdentity

_GUARD_SECONDS = 30.0


@dataclass(frozen=True)
class LockHolder(ProcessIdentity):
    """
    Who holds the run: a process, with the fields of [`ProcessIdentity`].

    Args:
        term (`int`): Number of the holder's [`Term`].
        since (`str`): Time of acquisition, ISO 8601, UTC.
    """

    term: int
    since: str

    @classmethod
    def of_this_process(cls, term: int) -> LockHolder:
        """This process as a holder."""
        since = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(**cls.fields_of_this_process(), term=term, since=since)  # type: ignore[arg-type]


class TrainerLock:
    """
    The held lock of a run directory; released by `release()` or as a context manager.

    Acquire it through [`RunDirectory.lock`].
    """

    def __init__(self, path: Path, holder: LockHolder, term: Term):
        self.path = path
        self.holder = holder
        self.term = term

    @classmethod
    def acquire(cls, path: Path, at_least: int) -> TrainerLock:
        """
        Take the lock, also from a holder that is known to be dead, and fence off all earlier trainers.

        Args:
            path (`Path`): The lock file.
            at_least (`int`): The greatest term known from elsewhere; this trainer's is greater, and greater than that
                of a dead holder.

        Raises:
            RunLocked: Somebody else holds it, or it cannot be known whether the holder still runs.
            OSError: The directory cannot be written to; the message says why.
        """
        with explain_os_errors("lock", path):
            stands = _holder_if_any(path)
            known = at_least if stands is None else max(at_least, stands.term)
            # Claimed before anybody is judged dead: who stands still after the judgement, and takes the lock away when
            # it is a successor's already, has lost its place to that successor and cannot.
            term = Term.claim(path.parent, known, lambda number: asdict(LockHolder.of_this_process(number)))
            with term.enforced():
                lock = cls(path, read_holder(term.signature), term)
            try:
                with term.enforced():
                    if stands is None:
                        lock._put()
                    else:
                        lock._succeed()
                    term.retire_earlier()
                    # A predecessor that was just giving its lock back may have taken ours; from here on none can.
                    if not lock.is_held():
                        lock._put()
            except RunLocked:
                term.abandon()
                raise
            except BaseException:
                lock.release()
                raise
        return lock

    def is_held(self) -> bool:
        """Whether the file still names this holder: false after a person or another trainer took it away."""
        try:
            return read_holder(self.path) == self.holder
        except (RunDirectoryError, FileNotFoundError):
            return False

    def release(self) -> None:
        """Give the lock back; one that was taken over meanwhile is left alone."""
        if self.is_held():
            try:
                taken = self._take_away()
            except FileNotFoundError:
                return  # fenced off or removed by hand since the line above
            if read_holder(taken) != self.holder:  # a successor's, who was about to fence us off
                with suppress(FileExistsError, FileNotFoundError):
                    os.link(taken, self.path)
            taken.unlink(missing_ok=True)

    def __enter__(self) -> TrainerLock:
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()

    def _put(self) -> None:
        try:
            os.link(self.term.signature, self.path)
        except FileExistsError:  # another trainer was faster
            holder = _holder_if_any(self.path)
            raise RunLocked(
                f"Another trainer of {self.path.parent} began and ended at this moment: start again."
                if holder is None
                else _refusal(self.path, holder)
            ) from None
        fsync_path(self.path.parent)

    def _succeed(self) -> None:
        """Take the lock from a holder that is dead."""
        with _alone_on_this_host(self.path):
            holder = _holder_if_any(self.path)
            if holder is not None:
                # One with a later term is dead only if it died since we looked; whoever starts next sees it.
                if not holder.is_judged_from_here() or holder.is_alive() or holder.term >= self.term.number:
                    raise RunLocked(_refusal(self.path, holder))
                with suppress(FileNotFoundError):  # a person removed it since
                    self._take_away().unlink()
            self._put()

    def _take_away(self) -> Path:
        taken = self.term.place / f"lock-{uuid.uuid4().hex[:8]}"
        self.path.rename(taken)
        return taken


def read_holder(path: Path) -> LockHolder:
    """Read the lock file's holder."""
    content = read_json(path, RunDirectoryError)
    if "epoch" in content:  # its name in locks of earlier versions
        content["term"] = content.pop("epoch")
    try:
        return LockHolder(**content)
    except TypeError as error:
        raise RunDirectoryError(
            f"{path} is not a lock of this version ({error}): remove it if no trainer runs."
        ) from error


@contextmanager
def _alone_on_this_host(path: Path) -> Iterator[None]:
    # Only a process on the dead holder's own host takes over, so that a lock among this host's processes is enough to
    # keep two of them from each removing the other's fresh lock in the belief that it is the dead one's.
    with path.with_name(f"{path.name}.guard").open("a+", encoding="utf-8") as guard:
        deadline = time.monotonic() + _GUARD_SECONDS
        while True:
            try:
                fcntl.flock(guard, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    guard.seek(0)
                    raise RunLocked(
                        f"Process {guard.read() or '?'} of this machine has been about to take {path.parent} over for "
                        f"{_GUARD_SECONDS:.0f} s and does not go on: is it stopped? End it (kill -9) and start again."
                    ) from None
                time.sleep(0.05)
        guard.truncate(0)
        guard.write(str(os.getpid()))
        guard.flush()
        yield


def _holder_if_any(path: Path) -> LockHolder | None:
    try:
        return read_holder(path)
    except FileNotFoundError:
        return None


def _refusal(path: Path, holder: LockHolder) -> str:
    who = f"process {holder.pid} on {holder.host} (term {holder.term}, since {holder.since})"
    if holder.is_judged_from_here():
        return (
            f"A trainer already runs on {path.parent}: {who}. One run directory has one trainer: stop that process or "
            "choose another output_dir."
        )
    return (
        f"The lock of {path.parent} is held by {who}, on another machine, boot or container, so that from here nobody "
        f"can tell whether it still runs. If you know that it does not, remove {path} and start again."
    )
