"""Whose files lie in a directory: this user's own, or a stranger's?

What a stranger publishes does not decide how far it is believed. A directory is one's own if `save_pretrained` wrote
it and nobody published it: where a publication's description lies, or where `huggingface_hub` put the files, a
`retriever.json` opens nothing.
"""

from __future__ import annotations

import re
from pathlib import Path

from ..hub_files import HubArtefactError
from .hub_manifest import DESCRIPTION, PUBLICATION
from .retriever_files import MANIFEST

__all__ = ["is_own_retriever"]

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
    if not (folder / MANIFEST).is_file() or any((folder / name).is_file() for name in (DESCRIPTION, PUBLICATION)):
        return False
    if _was_downloaded(folder):
        raise HubArtefactError(
            f"{folder / MANIFEST} was downloaded: a saved retriever is opened only where it was saved, because its "
            "files are believed. Load a publication (`RealmRetriever.push_to_hub`), or copy the directory from your "
            "own machine without the Hub."
        )
    return True


def _was_downloaded(folder: Path) -> bool:
    """Whether a directory is one of the Hub's cache, or `huggingface_hub` noted where its manifest came from."""
    here = folder.expanduser().absolute()
    if any(_SNAPSHOTS.search(place.as_posix()) for place in (here, here.resolve())):
        return True
    notes = (
        (parent / ".cache/huggingface/download" / (here / MANIFEST).relative_to(parent)).with_suffix(".json.metadata")
        for parent in (here, *here.parents)
    )
    return any(note.is_file() for note in notes)
