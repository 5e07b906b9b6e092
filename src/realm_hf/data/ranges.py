"""Documents in ranges: each is prepared once, by whichever process claims it; one process joins what they made.

    .NAME-parts/KEY/ranges/     the tasks and parts of the ranges, see [`SharedTasks`]
    .NAME-parts/KEY/states/     of a stream: where it goes on behind each range
    .NAME-parts/KEY/join/       the claim of whoever joins them

beside the store NAME that comes of it. KEY names documents and settings. So any number of processes, on all nodes
that see the directory, prepare one corpus by the same call, a build that was killed goes on where it stopped, and the
result depends neither on who made a part nor on which was ready first. A document is never split.
"""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from datasets import Dataset

from realm_hf.data.streams import DocumentStream
from realm_hf.storage.directories import StagedDirectory, require_vacant, retire_directory
from realm_hf.storage.files import json_sha256
from realm_hf.storage.tasks import Claim, SharedTasks

__all__ = ["RANGE_DOCUMENTS", "Part", "build_in_ranges", "helpers_for"]

RANGE_DOCUMENTS = 16_384
"""Documents of a range. Fingerprints of stores of more documents depend on it."""
_JOIN_STALE_SECONDS = 1800.0
"""Joining tens of gigabytes, a process that syncs them to a slow disk gives no sign of work for minutes."""
_TOKENIZERS = "TOKENIZERS_PARALLELISM"


@dataclass(frozen=True)
class Part:
    """
    What was made of one range.

    Args:
        path (`Path`): Directory of its files.
        facts (`Mapping`): What its maker said of it.
    """

    path: Path
    facts: Mapping[str, Any]


Prepare = Callable[[Dataset, int, Path], Mapping[str, Any]]
"""Makes the files of a range in a directory, from its documents and the number of the first, and describes them."""
Join = Callable[[Sequence[Part], Path], None]
"""Makes the store of all parts, in the order of the documents, in a directory that is empty."""


@dataclass
class _Work:
    """Prepares a range; pickled to helpers where the system cannot fork."""

    tasks: SharedTasks
    documents: Dataset | DocumentStream
    prepare: Prepare
    range_documents: int
    states: Path

    def __call__(self) -> bool:
        return self.tasks.run(self.do)

    def do(self, claim: Claim) -> Mapping[str, Any]:
        first = claim.task * self.range_documents
        if isinstance(self.documents, DocumentStream):
            chosen = self.documents.read(first, self.range_documents, self.states)
            if len(chosen) < self.range_documents:
                self.tasks.end_at(-(-self.documents.position // self.range_documents))
            return self.prepare(chosen, first, claim.work) if len(chosen) else {}
        stop = min(first + self.range_documents, len(self.documents))
        # The whole keeps its fingerprint, by which caches find it.
        chosen = self.documents if stop - first == len(self.documents) else self.documents.select(range(first, stop))
        return self.prepare(chosen, first, claim.work)


def helpers_for(documents: Dataset | DocumentStream, processes: int) -> int:
    """How many processes work beside this one, if `processes` were asked for: none that surely has no range."""
    if isinstance(documents, DocumentStream):
        return max(0, processes - 1)
    return max(0, min(processes, -(-len(documents) // RANGE_DOCUMENTS)) - 1)


def build_in_ranges(
    documents: Dataset | DocumentStream,
    output_dir: Path,
    *,
    key: Mapping[str, Any],
    prepare: Prepare,
    join: Join,
    helpers: int = 0,
) -> None:
    """
    Make a store of documents, alone or with all processes that make the same one at this time.

    An error of the disk, or of what a stream is read from, leaves the finished parts, and the next call goes on from
    them; after any other error, which would come again, nothing is left.

    Args:
        documents (`Dataset` or [`DocumentStream`]): The documents.
        output_dir (`Path`): Where the store appears, in one rename.
        key (`Mapping`): What the result depends on beside the documents and this release.
        prepare (`Prepare`): Does one range.
        join (`Join`): Joins them.
        helpers (`int`, *optional*, defaults to 0): Further processes to start on this machine.

    Raises:
        FileExistsError: `output_dir` holds something, or another build with other settings was faster.
    """
    require_vacant(output_dir)
    home = output_dir.absolute().with_name(f".{output_dir.name}-parts")
    range_documents = RANGE_DOCUMENTS
    if isinstance(documents, DocumentStream):
        count, fingerprint = None, documents.fingerprint
    else:
        count, fingerprint = -(-len(documents) // range_documents), documents._fingerprint
    made_by = {"documents": fingerprint, "range": range_documents, "release": version("realm-hf"), **key}
    folder = home / json_sha256(made_by)[:16]
    ranges = SharedTasks(folder / "ranges", count, durable=True)
    ending = SharedTasks(folder / "join", 1, stale_seconds=_JOIN_STALE_SECONDS)
    work = _Work(ranges, documents, prepare, range_documents, folder / "states")
    if output_dir.is_dir() and any(output_dir.iterdir()):
        _remove(home)
        return  # the others were ready between the first line and this one

    def join_all(claim: Claim) -> None:
        parts = [Part(ranges.part(task), ranges.read_part(task)) for task in ranges.numbers()]
        with StagedDirectory(output_dir, place=claim.place) as staged:
            join(parts, staged.path)

    try:
        with _helping(helpers, work):
            work()
        ending.run(join_all)
    except Exception as error:
        if _would_come_again(error, documents):
            _remove(home)
        raise
    if not output_dir.is_dir():
        raise RuntimeError(
            f"The build of {output_dir} was removed from {home} before it was complete: another process that took "
            "part in it failed. Its message says why."
        )
    _remove(home)


def _would_come_again(error: Exception, documents: Dataset | DocumentStream) -> bool:
    if isinstance(documents, DocumentStream):  # not all errors of a network are an `OSError`
        return isinstance(error, FileExistsError | TypeError | ValueError)
    return isinstance(error, FileExistsError) or not isinstance(error, OSError)


def _remove(home: Path) -> None:
    with suppress(FileNotFoundError):  # others that took part remove it too
        retire_directory(home)


@contextmanager
def _helping(count: int, work: Callable[[], bool]) -> Iterator[None]:
    """Processes that do the same beside the block. One that fails prints why, and its task goes to the others."""
    if not count:
        yield
        return
    before = os.environ.get(_TOKENIZERS)
    os.environ[_TOKENIZERS] = "false"  # their threads do not outlive a fork, and each process is to take one core
    processes = [multiprocessing.Process(target=work, daemon=True) for _ in range(count)]
    try:
        for process in processes:
            process.start()
        yield
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()
                process.join()
        if before is None:
            del os.environ[_TOKENIZERS]
        else:
            os.environ[_TOKENIZERS] = before
