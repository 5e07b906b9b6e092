"""What checkpoints name: generations and snapshots that collection keeps for whoever resumes from them."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from realm_hf.storage.sealed_json import read_sealed_json

logger = logging.getLogger(__name__)


def names_in_checkpoints(checkpoints: Path, stores: Sequence[Path]) -> set[str]:
    """
    The generations and snapshots that some `state.json` names, in the fields "generation", "snapshot" and
    "best.generation", which are those of all versions.

    A checkpoint whose `state.json` cannot be read neither ends collection nor loses what it may name: all that is
    there of its step and earlier ones counts as named by it, for it can name nothing later. (A second file of names
    beside it was rejected: it can be damaged as well.)

    Args:
        checkpoints (`Path`): RUN/checkpoints.
        stores (`Sequence[Path]`): The directories of what they name.
    """
    names: set[str] = set()
    for state in checkpoints.glob("*/state.json"):
        try:
            names.update(_names_in(read_sealed_json(state)))
        except FileNotFoundError:
            continue  # the checkpoint was removed while we looked
        except (OSError, ValueError, RecursionError) as error:
            kept = _up_to(_step_in(state.parent.name), stores)
            logger.warning(
                "%s Until %s is removed, all generations and snapshots up to its step are kept (%d).",
                error,
                state.parent,
                len(kept),
            )
            names.update(kept)
    return names


def _names_in(state: Mapping[str, Any]) -> Iterator[str]:
    """The names in one `state.json`: of what is served, and of the index that the best weights searched."""
    best = state.get("best")
    fields = [
        state.get("generation"),
        state.get("snapshot"),
        best.get("generation") if isinstance(best, dict) else None,
    ]
    yield from (name for name in fields if isinstance(name, str))


def _up_to(step: int | None, stores: Sequence[Path]) -> set[str]:
    """What the stores hold of steps up to `step`; all of it where that is `None`."""
    present = [path.name for store in stores for path in store.glob("step-*")]
    return {name for name in present if step is None or (_step_in(name) or 0) <= step}


def _step_in(name: str) -> int | None:
    found = re.search(r"step-(\d+)", name)
    return int(found[1]) if found is not None else None
