"""What killed trainers leave in a run directory beside their places: unpublished directories and temporary locks."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.lock import read_holder
from realm_hf.storage.directories import remove_stale_staging
from realm_hf.storage.files import TEMPORARY_PREFIX

logger = logging.getLogger(__name__)

_DAY_SECONDS = 86_400


def remove_leftovers(root: Path) -> list[str]:
    """
    Remove them, if their writer is gone; called by the next trainer when it holds the lock.

    Args:
        root (`Path`): The run directory.

    Returns:
        `list[str]`: Their names.
    """
    removed = []
    for folder in (root / "checkpoints", root / "checkpoints" / "aside", root / "best"):
        removed += remove_stale_staging(folder)
    for name in ("model", "passages", "tokenizer"):
        removed += remove_stale_staging(root, name)
    # Earlier versions wrote the lock beside itself and were sometimes killed before it was renamed.
    for temporary in root.glob(f"{TEMPORARY_PREFIX}trainer.lock-*"):
        if not _may_be_written(temporary):
            temporary.unlink(missing_ok=True)
            removed.append(temporary.name)
    if removed:
        logger.info("removed what killed trainers had left in %s: %s", root, ", ".join(removed))
    return removed


def _may_be_written(temporary: Path) -> bool:
    """Whether its writer may still be at work, a matter of milliseconds. (It would be refused: the lock is held.)"""
    try:
        holder = read_holder(temporary)
        if holder.is_judged_from_here():
            return holder.is_alive()
        return time.time() - temporary.stat().st_mtime < _DAY_SECONDS
    except (FileNotFoundError, RunDirectoryError):  # gone, or cut
        return False
