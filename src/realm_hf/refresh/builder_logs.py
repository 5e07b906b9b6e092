"""RUN/logs/builder-*.log: one for each build and each server. The newest stay, and longer those that failed."""

from __future__ import annotations

import contextlib
from pathlib import Path

KEPT_LOGS = 20
KEPT_FAILED_LOGS = 20

_FAILED = "failed-"


def mark_failed(log: Path) -> Path:
    """Name a log that of a failed build; returns its new path, or the old one where that cannot be done."""
    failed = log.with_name(_FAILED + log.name)
    try:
        return log.rename(failed)
    except OSError:
        return log  # it was never opened, or the disk does not answer; there is a failure to tell already


def prune_logs(logs: Path, living: Path | None = None) -> None:
    """Remove all but the newest logs.

    Args:
        logs: RUN/logs.
        living: The log of a server that runs, however old it is.
    """
    for pattern, kept in (("builder-*.log", KEPT_LOGS), (f"{_FAILED}builder-*.log", KEPT_FAILED_LOGS)):
        with contextlib.suppress(OSError):  # another disk error will say so; old logs are no reason to stop
            found = [path for path in logs.glob(pattern) if path != living]
            for old in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True)[kept:]:
                old.unlink(missing_ok=True)
