"""A program that ends by itself after some minutes, for sessions that are shorter than what it has to do."""

from __future__ import annotations

import argparse
import os
import signal
import threading


def add_stop_argument(parser: argparse.ArgumentParser) -> None:
    """The option; its value is for [`stop_after`]."""
    parser.add_argument(
        "--stop_after_minutes", type=float, metavar="M", help="end then, with a checkpoint; the next call goes on"
    )


def stop_after(minutes: float | None) -> None:
    """Ask this process to end after some minutes, as SIGTERM does: a training writes a checkpoint first.

    Args:
        minutes: `None` for never.
    """
    if minutes is not None:
        timer = threading.Timer(60 * minutes, os.kill, (os.getpid(), signal.SIGTERM))
        timer.daemon = True
        timer.start()
