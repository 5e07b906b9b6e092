"""A term: the time for which one trainer owns a run, and the place through which it changes the run.

    RUN/terms/3/             the place of the third trainer
    RUN/terms/3/holder.json  who that is

A trainer may be stopped between any two system calls and go on when another has long taken the run over. No check
before a rename helps against that: the process is stopped after the check. So the rename itself is what fails:
whatever a trainer publishes in its run goes out through its place in one rename, and whatever it takes away goes into
its place in one rename. A successor removes the places of all earlier terms before it reads anything, and from then on
every such call of its predecessor ends with "no such file or directory".

Where a directory of the run is on another file system (RUN/index may be a link to a larger disk), the place has a twin
there, RUN/index/.terms/3, made and removed with it.

Only this package's own code writes under a place, and it makes the directory once: a library that saves a model makes
missing parents, and would make a removed place anew. The newest place stays after its trainer's end; it is the count
of the terms.
"""

from __future__ import annotations

import errno
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from realm_hf.runs.errors import RunDirectoryError, RunTakenOver
from realm_hf.storage.directories import TWINS
from realm_hf.storage.files import read_json, write_json

_GONE = ".gone-"
_HOLDER = "holder.json"
_REMOVAL_SECONDS = 60.0


class Term:
    """
    One trainer's term. Get one by [`claim`].

    Args:
        root (`Path`): The run directory.
        number (`int`): Counts the terms of the run from 1.
    """

    def __init__(self, root: Path, number: int):
        self.root, self.number = root, number

    @classmethod
    def claim(cls, root: Path, at_least: int, sign: Callable[[int], Mapping[str, Any]]) -> Term:
        """
        Take the next number; whoever takes one later has a greater one.

        Args:
            root (`Path`): The run directory.
            at_least (`int`): The greatest number known from elsewhere.
            sign (`Callable[[int], Mapping[str, Any]]`): Gives the content of `holder.json` for a number.
        """
        terms = root / "terms"
        terms.mkdir(exist_ok=True)
        while True:
            term = cls(root, max([at_least, *_numbers(terms)]) + 1)
            try:
                term.place.mkdir()
            except FileExistsError:
                continue
            # Stopped before the line above, while others claimed, ended and removed this very number?
            if max(_numbers(terms), default=0) > term.number:
                term.abandon()
                continue
            with term.enforced():
                for twins in term._homes()[1:]:
                    (twins / str(term.number)).mkdir(parents=True, exist_ok=True)
                write_json(term.signature, sign(term.number))
            return term

    @property
    def place(self) -> Path:
        """Out of and into this directory goes all that this trainer changes in the run."""
        return self.root / "terms" / str(self.number)

    @property
    def signature(self) -> Path:
        """The file that says whose term it is."""
        return self.place / _HOLDER

    def abandon(self) -> None:
        """Give up a number before anything was done under it."""
        for home in reversed(self._homes()):
            shutil.rmtree(home / str(self.number), ignore_errors=True)

    def retire_earlier(self) -> None:
        """
        Take all earlier trainers' places away. When it returns none of them can change the run any more.

        The rename cuts the path off at once. The directory itself is removed too, and that is waited for: another host
        of a network file system may still know it by its handle.

        Raises:
            RunDirectoryError: A place does not go, because files are put into it again and again.
        """
        for home in self._homes():
            for number in _numbers(home):
                if number < self.number:
                    with suppress(FileNotFoundError):  # its owner gave it up, or another successor was faster
                        (home / str(number)).rename(home / f"{_GONE}{number}-{uuid.uuid4().hex[:8]}")
            for gone in home.glob(f"{_GONE}*"):  # also what a successor left that was killed at this point
                _remove_for_good(gone)

    def _homes(self) -> list[Path]:
        """RUN/terms, and the directories of the twins on other file systems."""
        device = self.root.stat().st_dev
        elsewhere = [path for path in sorted(self.root.iterdir()) if path.is_dir() and path.stat().st_dev != device]
        return [self.root / "terms", *(path / TWINS for path in elsewhere)]

    def is_lost(self) -> bool:
        """Whether a successor has taken the run over: one system call, cheap enough for every step."""
        return not self.place.is_dir()

    def require(self) -> None:
        """
        Go on only if the run is still this trainer's.

        Raises:
            RunTakenOver: It is not.
        """
        if self.is_lost():
            raise self._taken_over()

    @contextmanager
    def enforced(self) -> Iterator[None]:
        """Turn whatever fails in the block because the run was taken over into [`RunTakenOver`]."""
        try:
            yield
        except RunTakenOver:
            raise
        except Exception as error:
            if self.is_lost():
                raise self._taken_over() from error
            raise

    def _taken_over(self) -> RunTakenOver:
        return RunTakenOver(
            f"{self.root} was taken over by {self._successor()}: this trainer (process {os.getpid()}, term "
            f"{self.number}) ends. Nothing that it did since then was written there."
        )

    def _successor(self) -> str:
        terms = self.place.parent
        newest = max(_numbers(terms), default=0)
        try:
            holder = read_json(terms / str(newest) / _HOLDER)
            return f"process {holder['pid']} on {holder['host']} at {holder['since']}, term {newest}"
        except (OSError, ValueError, KeyError):
            return "another trainer"  # which is still starting, or somebody removed its place by hand


def _numbers(home: Path) -> list[int]:
    present = home.iterdir() if home.is_dir() else ()
    return [int(path.name) for path in present if path.name.isascii() and path.name.isdigit()]


def _remove_for_good(folder: Path) -> None:
    deadline = time.monotonic() + _REMOVAL_SECONDS
    while folder.exists():
        try:
            shutil.rmtree(folder)
        except OSError as error:
            # Another process removes too, or one that is cut off by now had put something in.
            if error.errno not in (errno.ENOENT, errno.ENOTEMPTY):
                raise
            if time.monotonic() > deadline:
                raise RunDirectoryError(
                    f"{folder} belonged to an earlier trainer and could not be removed for {_REMOVAL_SECONDS:.0f} s: "
                    "something is put into it again and again. End that trainer and start again."
                ) from error
