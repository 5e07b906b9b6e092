"""Checkpoints that do not lead to where training goes on: kept under a name that nobody takes for the newest.

checkpoints/aside/step-1200-term-2/     left by a resume from an earlier one
checkpoints/aside/step-1300-damaged/    passed over by a resume, its state.json unreadable
"""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from realm_hf.storage.directories import StagedDirectory, retire_directory
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import link_or_copy
from realm_hf.storage.sealed_json import read_sealed_json

logger = logging.getLogger(__name__)

_ASIDE = "aside"


def set_aside(paths: Sequence[Path], place: Path | None = None) -> list[Path]:
    """Move checkpoints out of the way, and say so.

    Args:
        paths (`Sequence[Path]`): `step-<n>` directories of RUN/checkpoints, complete or not.
        place (`pathlib.Path`, *optional*): The trainer's own directory; see [`Term`].

    Returns:
        Where they are now.
    """
    aside = []
    for path in paths:
        name = f"{path.name}-{_term_or_damaged(path)}"
        target = path.parent / _ASIDE / name
        if target.exists():
            target = target.with_name(f"{name}-{uuid.uuid4().hex[:8]}")
        # First a second name for each file, then away with the first: at no moment is there none, and both are done
        # through the trainer's place.
        with explain_os_errors("set aside", path), StagedDirectory(target, place=place) as staged:
            shutil.copytree(path, staged.path, symlinks=True, copy_function=link_or_copy, dirs_exist_ok=True)
        retire_directory(path, place)
        aside.append(target)
    if aside:
        logger.warning(
            "%s set aside as %s: they belong to a branch of the training that is not followed, or are damaged. They "
            "are kept, but neither pruned nor resumed unless named; remove them when they are of no use.",
            ", ".join(path.name for path in paths),
            ", ".join(str(path) for path in aside),
        )
    return aside


def all_states(root: Path) -> tuple[list[dict[str, Any]], bool]:
    """What all checkpoints hold, those that were set aside among them, and whether that is all: false if one of them
    cannot be read.

    Args:
        root (`pathlib.Path`): The run's checkpoints directory.
    """
    found, complete = [], True
    for file in (*root.glob("step-*/state.json"), *root.glob(f"{_ASIDE}/*/state.json")):
        try:
            found.append(read_sealed_json(file))
        except FileNotFoundError:
            continue  # removed while we looked
        except (OSError, ValueError) as error:
            logger.warning("%s is passed over: %s", file.parent, error)
            complete = False
    return found, complete


def _term_or_damaged(path: Path) -> str:
    try:
        return f"term-{int(read_sealed_json(path / 'state.json').get('term', 0))}"
    except (OSError, ValueError, TypeError):
        return "damaged"
