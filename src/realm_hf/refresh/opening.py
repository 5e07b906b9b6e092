"""A proposed generation as one rank opens it, in a thread beside training."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from realm_hf.generations.store import Generation

OPEN_TIMEOUT_SECONDS = 1800.0
"""Longest that a rank may take to open a generation: files are mapped, snapshot and manifest are read, queries are
probed, which is minutes on the slowest disk. A disk that gives no answer for so long will give none."""


class Opening:
    """
    One rank's attempt to open a proposed generation.

    Args:
        name (`str`): The generation.
        step (`int`): Optimizer step of the proposal.
        open_generation (`Callable[[str], Generation]`): Opens it; whatever it raises counts as failed.
        timeout (`float`): Seconds after which it counts as failed.
    """

    def __init__(self, name: str, step: int, open_generation: Callable[[str], Generation], timeout: float):
        self.name = name
        self.step = step
        self.timeout = timeout
        self.started = time.monotonic()
        self.seconds = 0.0
        self.generation: Generation | None = None
        self.error: str | None = None
        self._open_generation = open_generation
        self._lock = threading.Lock()
        self._abandoned = False
        thread = threading.Thread(target=self._run, name=f"open-{name}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no thread to be had: for the other ranks a failure like any other
            self.error = f"{type(error).__name__}: {error}"

    def _run(self) -> None:
        try:
            generation = self._open_generation(self.name)
        except BaseException as error:  # noqa: BLE001 - whatever it is, also SystemExit or a panic of a Rust library
            self.error = f"{type(error).__name__}: {error}"
            return
        with self._lock:
            self.seconds = time.monotonic() - self.started
            if not self._abandoned:
                self.generation = generation
                return
        generation.close()

    def look(self) -> tuple[bool, bool]:
        """Whether it is open, and whether it failed; one that takes too long has failed."""
        if self.generation is None and self.error is None and time.monotonic() - self.started > self.timeout:
            self.error = f"not opened within {self.timeout:.0f} s: does the file system answer?"
        return self.generation is not None and self.error is None, self.error is not None

    def abandon(self) -> None:
        """Close what was opened, or have the thread close it when it is done."""
        with self._lock:
            self._abandoned = True
            generation, self.generation = self.generation, None
        if generation is not None:
            generation.close()
