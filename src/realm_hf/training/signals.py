"""Ending a training in good order: SIGTERM and Ctrl-C alike, and the command that takes it up again."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGINT, signal.SIGTERM)
_ONE_PRESS_SECONDS = 1.0
_NOTICES = {
    signal.SIGINT: b"\nCtrl-C: a checkpoint is written after this step or the next. Press it again to end without.\n",
    signal.SIGTERM: b"\nSIGTERM: a checkpoint is written after this step or the next.\n",
}


class StopRequest:
    """Whether this process was asked to stop, and by which signal."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._since = 0.0
        #: The first signal.
        self.signal: signal.Signals | None = None

    def is_set(self) -> bool:
        """Whether a stop was asked for."""
        return self._event.is_set()

    def set(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask for a stop, as the signal would."""
        if self.signal is None:
            self.signal, self._since = number, time.monotonic()
        self._event.set()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While the block runs, SIGTERM and Ctrl-C ask for a stop and end nothing; a second Ctrl-C ends the process.

        Only the main thread can listen. A signal that the parent has switched off (`nohup`, a shell's background job)
        stays so.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in SIGNALS}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN:
                signal.signal(number, self._asked)
        try:
            yield
        finally:
            for number, handler in before.items():
                if handler is not None:  # one that no Python code installed cannot be put back from here
                    signal.signal(number, handler)

    def _asked(self, number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGINT and self.signal is not None:
            # A terminal and a launcher may both pass one and the same Ctrl-C on.
            if time.monotonic() - self._since > _ONE_PRESS_SECONDS:
                # The kernel ends the process: an exception would wait for a collective, and for what cleans up.
                signal.signal(signal.SIGINT, signal.SIG_DFL)
                os.kill(os.getpid(), signal.SIGINT)
            return
        if self.signal is None:
            # Not through a stream: the handler may run in the middle of a write to it.
            os.write(2, _NOTICES[signal.Signals(number)])
        self.set(signal.Signals(number))


def resume_command() -> str:
    """This process's command line, or its launcher's, with `--resume_from_checkpoint true`; to be pasted."""
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    words = _launcher() or (["<launcher as before>", *_program()] if several else sys.orig_argv)
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word != "--resume_from_checkpoint" and not word.startswith("--resume_from_checkpoint="):
            kept.append(word)
        skip = word == "--resume_from_checkpoint"
    return " ".join(word if word.startswith("<") else shlex.quote(word) for word in kept) + (
        " --resume_from_checkpoint true"
    )


def _program() -> list[str]:
    """Script and arguments as a launcher was given them: its `-m PACKAGE` has become the path of a __main__.py."""
    script = Path(sys.argv[0])
    return ["-m", script.parent.name, *sys.argv[1:]] if script.name == "__main__.py" else sys.argv


def _launcher() -> list[str]:
    """The command line of the process that started this one, if it ends with the same script and arguments."""
    file = Path(f"/proc/{os.getppid()}/cmdline")
    if not file.is_file():
        return []
    words = [word for word in file.read_bytes().decode(errors="replace").split("\0") if word]
    tail = _program()
    return words if len(words) > len(tail) and words[len(words) - len(tail) :] == tail else []


def report_interruption(number: signal.Signals, step: int, max_steps: int) -> None:
    """Say at which step a training was stopped, and how it goes on.

    Args:
        number (`signal.Signals`): What stopped it.
        step (`int`): The last step that was taken.
        max_steps (`int`): Of the whole training.
    """
    left = " All steps are taken; the last index and evaluation are left." if step >= max_steps else ""
    logger.warning(
        "%s: stopped after step %d of %d.%s Go on with resume_from_checkpoint=true.",
        number.name,
        step,
        max_steps,
        left,
    )
