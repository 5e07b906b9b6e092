"""The first instructions of a trainer's builder: watch the trainer, then load the libraries, then serve.

    python -c "... runpy.run_path ..." .../guarded_start.py TRAINER_PID RUN --threads 1 --device cpu

Loading takes seconds, minutes on a busy machine. A builder that looked for its trainer only afterwards would take
whoever has adopted it for one, and outlive a trainer that died meanwhile. So this file is run by its path: as a module
of the package it would load the libraries first, as a script it would put its folder before them on the search path.

`prctl(PR_SET_PDEATHSIG)` was rejected: the kernel sends that signal when the thread ends that started the child, not
its process, and only Linux has it.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

if __name__ == "__main__":
    parent_guard = runpy.run_path(str(Path(__file__).with_name("parent_guard.py")))
    guard = parent_guard["ParentGuard"](int(sys.argv[2]))
    from realm_hf.refresh.builder_server import main

    guard.stop()
    sys.exit(main([*sys.argv[3:], "--trainer", sys.argv[2]]))
