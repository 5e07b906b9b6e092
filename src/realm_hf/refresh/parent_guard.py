"""A process that ends when its parent has died.

It imports nothing but Python's own modules: `guarded_start.py` runs it by its path before anything is loaded.
"""

from __future__ import annotations

import os
import threading

_LOOK_SECONDS = 0.2


class ParentGuard:
    """
    Ends this process when its parent is dead, until it is stopped.

    Args:
        parent (`int`): Process id of the parent, as the parent itself said.
    """

    def __init__(self, parent: int):
        self.parent = parent
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="parent-guard", daemon=True)
        self._end_if_orphaned()
        self._thread.start()

    def stop(self) -> None:
        """Watch no more; the thread is gone when this returns, so that the process may fork."""
        self._stopped.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._stopped.wait(_LOOK_SECONDS):
            self._end_if_orphaned()

    def _end_if_orphaned(self) -> None:
        if os.getppid() != self.parent:
            os._exit(1)
