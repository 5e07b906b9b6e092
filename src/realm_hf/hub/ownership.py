"""Whose files lie in a directory: this user's own, or a stranger's?

What a stranger publishes does not decide how far it is believed. A directory is one's own if `save_pretrained` wrote
it and nobody published it: where a publication's description lies, or where `huggingface_hub` put the files, a
`retriever.json` opens nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

from realm_hf.knowledge.files import MANIFEST
from realm_hf.models.places import DESCRIPTION, PUBLICATION, RUN_FILE
from realm_hf.untrusted.checks import HubArtefactError

__all__ = ["is_own_retriever", "is_own_run"]

_SNAPSHOTS = re.compile(r"/(models|datasets)--[^/]+/snapshots/")


def is_own_retriever(folder: Path) -> bool:
    """
    Whether a directory holds a retriever that was saved here, whose Arrow files and index are opened as they are.

    Args:
        folder (`Path`): The directory, or anything else.

    Returns:
        `bool`: `False` for a publication, also where a `retriever.json` was put into it.

    Raises:
        HubArtefactError: If its `retriever.json` was downloaded, without the publication that it came with.
    """
    return _is_own(folder, MANIFEST, "a saved retriever")


def is_own_run(folder: Path) -> bool:
    """
    Whether a directory is a training run of this user's, whose generations are opened as they are; like
    [`is_own_retriever`].
    """
    return _is_own(folder, RUN_FILE, "a run")


def _is_own(folder: Path, name: str, what: str) -> bool:
    if not (folder / name).is_file() or any((folder / other).is_file() for other in (DESCRIPTION, PUBLICATION)):
        return False
    if _was_downloaded(folder, name):
        raise HubArtefactError(
            f"{folder / name} was downloaded: {what} is opened only where it was saved, because its files are "
            "believed. Load a publication (`RealmRetriever.push_to_hub`), or copy the directory from your own machine "
            "without the Hub."
        )
    return True


def _was_downloaded(folder: Path, name: str) -> bool:
    """Whether a directory is one of the Hub's cache, or `huggingface_hub` noted where its `name` came from."""
    here = folder.expanduser().absolute()
    if any(_SNAPSHOTS.search(place.as_posix()) for place in (here, here.resolve())):
        return True
    notes = (
        (parent / ".cache/huggingface/download" / (here / name).relative_to(parent)).with_suffix(".json.metadata")
        for parent in (here, *here.parents)
    )
    return any(note.is_file() for note in notes)
