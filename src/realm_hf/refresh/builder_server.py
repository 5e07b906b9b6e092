"""The trainer's own builder ("async"): loads the libraries once, then forks one process for each generation.

    python -m realm_hf.refresh.builder_server RUN --threads 1 --device cpu

[`BuilderProcess`] starts it by `guarded_start.py`, which watches the trainer while the libraries are loaded.

Loading torch and transformers takes about 8 seconds of processor time, longer than many a build. Here it is paid once
a run: the server imports everything, computes nothing, and a build is a fork of it with a process id of its own. Fork
is safe here for the reason for which it is not in a trainer: this process has one thread and has never started any. (A
new interpreter for each build was tried: on two cores its start took 8 processor seconds from training at every
refresh.)

Requests on standard input, answers on standard output, one a line:

    build NAME      ->  started NAME PID        a process was forked; its log is RUN/logs/NAME.log
                                                (with several devices one for each: NAME-1, NAME-2 ... help NAME)
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
from dataclasses import replace
from typing import NoReturn

import realm_hf.data.passages.store
import realm_hf.models.modeling_realm  # noqa: F401 - what a build needs is loaded before the fork
from realm_hf.refresh.builder_options import BuilderOptions, add_arguments, devices_of
from realm_hf.refresh.parent_guard import ParentGuard

_STDIN, _STDOUT, _STDERR = 0, 1, 2


class BuilderServer:
    """
    Serves one run until it is asked to stop.

    Args:
        options ([`BuilderOptions`]): Of every build; each gets a name of its own.
        trainer (`int`): Process id of its trainer, with which it ends.
    """

    def __init__(self, options: BuilderOptions, trainer: int):
        self.options = options
        self._trainer = trainer
        self._build: tuple[str, int] | None = None
        self._helpers: dict[str, int] = {}
        self._unread = b""

    def serve(self) -> None:
        """Answer requests until the last one, or the end of the trainer."""
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
            request, _, name = line.decode().partition(" ")
            if request == "stop":
                return False
            if request == "build" and self._build is None:
                self._fork(name)
        return bool(received)

    def _fork(self, name: str) -> None:
        device, *others = devices_of(self.options.device)
        self._build = (name, self._start(name, device))
        for number, other in enumerate(others, 1):
            helper = f"{name}-{number}"
            self._helpers[helper] = self._start(helper, other)
        _answer(f"started {name} {self._build[1]}")

    def _start(self, name: str, device: str) -> int:
        server = os.getpid()
        pid = os.fork()
        if pid == 0:
            _build_and_exit(replace(self.options, name=name, device=device), server)
        return pid

    def _reap(self) -> None:
        if self._build is None:
            return
        name, pid = self._build
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            self._build = None
            self._kill_helpers()  # of a build that is over, or that begins anew with all of them
            _answer(f"ended {name} {os.waitstatus_to_exitcode(status)}")

    def _kill_build(self) -> None:
        if self._build is not None:
            self._kill(*self._build)
            self._kill_helpers()

    def _kill_helpers(self) -> None:
        while self._helpers:
            self._kill(*self._helpers.popitem())

    def _kill(self, name: str, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)  # not waited for yet, so that the number is still its own
        os.waitpid(pid, 0)
        (self.options.run / "heartbeats" / f"{name}.json").unlink(missing_ok=True)


def _answer(line: str) -> None:
    # The trainer may be dead; then the loop ends of itself, and the build must still be killed.
    with contextlib.suppress(BrokenPipeError):
        os.write(_STDOUT, f"{line}\n".encode())


def _build_and_exit(options: BuilderOptions, server: int) -> NoReturn:
    """
    What the forked child does.

    Args:
        options ([`BuilderOptions`]): Of this build.
        server (`int`): Process id of the server, with which the build ends.
    """
    code = 1
    try:
        path = options.run / "logs" / f"{options.name}.log"
        log = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        nothing = os.open(os.devnull, os.O_RDWR)
        os.dup2(nothing, _STDIN)
        os.dup2(log, _STDOUT)
        os.dup2(log, _STDERR)
        ParentGuard(server)
        # Read by FAISS's OpenBLAS, which is loaded only here.
        os.environ["OPENBLAS_NUM_THREADS"] = str(options.index_threads or options.threads or 1)
        from realm_hf.refresh import builder

        code = builder.run(options)
    except BaseException:  # noqa: BLE001 - a forked child must not run on as a second server
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the server; returns its exit code.

    Args:
        arguments (`Sequence[str]`, *optional*): Those of the command line by default.
    """
    parser = argparse.ArgumentParser(prog="python -m realm_hf.refresh.builder_server")
    add_arguments(parser)
    parser.add_argument("--trainer", type=int, default=os.getppid(), help="process id (default: of the parent)")
    parsed = parser.parse_args(arguments)
    # What is loaded by now lives as long as the process: the collector need not touch it, nor a fork copy it.
    gc.freeze()
    BuilderServer(BuilderOptions.of(parsed), parsed.trainer).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
