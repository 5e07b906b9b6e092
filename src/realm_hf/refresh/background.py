"""One thread for all that reaches the disk beside training, in its order; it never keeps the process alive.

`concurrent.futures` was rejected: the interpreter joins its threads when it ends, so that one write to a file system
that has gone away would hold the trainer for ever.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future


class Background:
    """Runs what is submitted, one after the other, in a daemon thread that starts with the first."""

    def __init__(self, name: str):
        self._name = name
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def submit(self, work: Callable[[], None]) -> Future[None]:
        """Queue `work`; the future holds what it raises."""
        if self._is_closed:
            raise RuntimeError(f"{self._name} was closed: nothing can be submitted any more")
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        future: Future[None] = Future()

        def settle() -> None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - the future holds it; the thread goes on
                future.set_exception(error)
            else:
                future.set_result(None)

        self._work.put(settle)
        return future

    def close(self, timeout: float) -> bool:
        """Finish what is queued, for up to `timeout` seconds; returns whether all is done."""
        if not self._is_closed:
            self._is_closed = True
            self._work.put(None)
        if self._thread is None:
            return True
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            work()
