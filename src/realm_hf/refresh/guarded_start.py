"""The first instructions of a trainer's builder: watch the trainer, then load the libraries, then serve.

    python -c RUN_BY_PATH .../guarded_start.py TRAINER_PID RUN --threads 1 --device cpu

Loading takes seconds, minutes on a busy machine. A builder that looked for its trainer only afterwards would take
whoever has adopted it for one, and outlive a trainer that died meanwhile. So this file is run by its path: as a module
of the package it would load the libraries first, as a script it would put its folder before them on the search path.

`prctl(PR_SET_PDEATHSIG)` was rejected: the kernel sends that signal when the thread ends that started the child, not
its process, and only Linux has it.
"""

from __future__ import annotations

import os
import sys
import threading

RUN_BY_PATH = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"

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


if __name__ == "__main__":
    guard = ParentGuard(int(sys.argv[2]))
    from realm_hf.refresh.builder_server import main

    guard.stop()
    sys.exit(main([*sys.argv[3:], "--trainer", sys.argv[2]]))
