"""The peer's side of one measurement; run by the peer's Python, started by harness/peer.py.

    python worker.py TASK FOLDER THREADS OPTIONS

TASK names a module beside this file with `prepare(folder, options)`, which returns a function that does the work once
and returns what it found as a dictionary. Each line on stdin is one request; waiting for it costs no
processor time.
"""

import importlib
import json
import os
import sys
import time
from pathlib import Path

import torch


def main() -> None:
    """Prepare, then answer each line of stdin with one line of JSON."""
    task, folder, threads, options = sys.argv[1:]
    torch.set_num_threads(int(threads))
    torch.manual_seed(0)
    # Answers alone go to the pipe, whatever libraries print.
    with os.fdopen(os.dup(sys.stdout.fileno()), "w") as answers:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        work = importlib.import_module(task).prepare(Path(folder), json.loads(options))
        print(json.dumps({"ready": True}), file=answers, flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            found = work()
            seconds = time.perf_counter() - start
            print(json.dumps({"seconds": seconds, **found}), file=answers, flush=True)


if __name__ == "__main__":
    main()
