"""The trainer's own builder ("async"): loads the libraries once, then forks one process for each generation.

    python -m realm_hf.refresh.builder_server RUN --threads 1 --device cpu

[`BuilderProcess`] starts it by `guarded_start.py`, which watches the trainer while the libraries are loaded.

Loading torch and transformers takes about 8 seconds of processor time, longer than many a build. Here it is paid once
a run: the server imports everything, computes nothing, and a build is a fork of it with a process id of its own. Fork
is safe here for the reason for which it is not in a trainer: this process has one thread and has never started any. (A
new interpreter for each build was tried: on two cores its start took 8 processor seconds from training at every
refresh.)

Words on standard input, answers on standard output, one a line:

    build NAME      ->  started NAME PID        a process was forked; its log is RUN/logs/NAME.log
                        ended NAME STATUS       its exit code, or minus the signal that killed it
    stop, or end of file                        kill the build and end

The server also ends when it gets a new parent: its trainer is dead, though a forked data loader worker may still hold
the pipe.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import select
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import realm_hf.data.passages.store
import realm_hf.models.modeling_realm  # noqa: F401 - what a build needs is loaded before the fork
from realm_hf.refresh.guarded_start import ParentGuard

_STDIN, _STDOUT, _STDERR = 0, 1, 2


class BuilderServer:
    """Serves one run until it is told to stop.

    Args:
        run: RUN.
        device: Where builds embed.
        threads: Processor threads of a build.
        index_threads: Those of its index.
        trainer: Process id of its trainer, with which it ends.
    """

    def __init__(self, run: Path, *, device: str, threads: int, index_threads: int, trainer: int):
        self.run = run
        self.device = device
        self.threads = threads
        self.index_threads = index_threads
        self._trainer = trainer
        self._build: tuple[str, int] | None = None
        self._unread = b""

    def serve(self) -> None:
        """Answer words until the last one."""
        while os.getppid() == self._trainer:
            readable, _, _ = select.select([_STDIN], [], [], 0.02 if self._build else 0.5)
            if readable and not self._listen():
                break
            self._reap()
        self._kill_build()

    def _listen(self) -> bool:
        received = os.read(_STDIN, 4096)
        *lines, self._unread = (self._unread + received).split(b"\n")
        for line in lines:
            word, _, name = line.decode().partition(" ")
            if word == "stop":
                return False
            if word == "build" and self._build is None:
                self._fork(name)
        return bool(received)

    def _fork(self, name: str) -> None:
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            _be_a_build(self.run, name, self.device, self.threads, self.index_threads, server)
        self._build = (name, pid)
        _say(f"started {name} {pid}")

    def _reap(self) -> None:
        if self._build is None:
            return
        name, pid = self._build
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            self._build = None
            _say(f"ended {name} {os.waitstatus_to_exitcode(status)}")

    def _kill_build(self) -> None:
        if self._build is not None:
            name, pid = self._build
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            (self.run / "heartbeats" / f"{name}.json").unlink(missing_ok=True)


def _say(line: str) -> None:
    # The trainer may be dead; then the loop ends of itself, and the build must still be killed.
    with contextlib.suppress(BrokenPipeError):
        os.write(_STDOUT, f"{line}\n".encode())


def _be_a_build(run: Path, name: str, device: str, threads: int, index_threads: int, server: int) -> None:
    """The forked child: never returns."""
    code = 1
    try:
        log = os.open(run / "logs" / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, _STDIN)
        os.dup2(log, _STDOUT)
        os.dup2(log, _STDERR)
        ParentGuard(server)
        # Read by FAISS's OpenBLAS, which is loaded only here.
        os.environ["OPENBLAS_NUM_THREADS"] = str(index_threads)
        from realm_hf.refresh.builder import main

        counts = ["--threads", str(threads), "--index-threads", str(index_threads)]
        code = main([str(run), "--once", "--name", name, "--device", device, *counts])
    except BaseException:  # noqa: BLE001 - a forked child must not run on as a second server
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the server."""
    parser = argparse.ArgumentParser(prog="python -m realm_hf.refresh.builder_server")
    parser.add_argument("run", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--index-threads", type=int, default=1)
    parser.add_argument("--trainer", type=int, default=os.getppid(), help="process id (default: of the parent)")
    options = parser.parse_args(arguments)
    # What is loaded by now lives as long as the process: the collector need not touch it, nor a fork copy it.
    gc.freeze()
    BuilderServer(
        options.run,
        device=options.device,
        threads=options.threads,
        index_threads=options.index_threads,
        trainer=options.trainer,
    ).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
