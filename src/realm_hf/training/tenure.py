"""A run directory that is one trainer's own for the time of a training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from realm_hf.runs.leftovers import remove_leftovers
from realm_hf.runs.lock import TrainerLock
from realm_hf.runs.term import Term
from realm_hf.storage.errors import explain_os_errors
from realm_hf.training.ranks import Ranks


class Tenure:
    """Every rank has one; the lock, and what is written under it, are the main process's.

    Args:
        ranks ([`Ranks`]): Those of the training.
    """

    def __init__(self, ranks: Ranks):
        self._ranks = ranks
        #: Of the lock, on every rank; 0 before.
        self.epoch = 0
        #: On the main process, once it has the lock: what it changes in the directory goes through the term's place.
        self.term: Term | None = None

    @contextmanager
    def over(self, directory: Path, acquire: Callable[[], TrainerLock]) -> Iterator[None]:
        """Hold the directory while the block runs.

        Args:
            directory (`pathlib.Path`): The run; its `checkpoints/` is made.
            acquire (`Callable`): Takes its lock; called on the main process.

        Raises:
            RunTakenOver: It is another trainer's by now; raised in place of whatever failed for that reason.
        """
        lock: TrainerLock | None = None

        def take() -> int:
            nonlocal lock
            checkpoints = directory / "checkpoints"
            with explain_os_errors("create", checkpoints):
                checkpoints.mkdir(parents=True, exist_ok=True)
            lock = acquire()
            return lock.term.number

        self.epoch = self._ranks.on_main(take, "lock the run")
        try:
            if lock is None:
                yield
            else:
                self.term = lock.term
                with lock.term.enforced():
                    remove_leftovers(directory)
                    yield
                    lock.term.require()
        finally:
            if lock is not None:
                lock.release()
