"""The index of a publication on this machine: downloaded, joined, tried in a child process, and memory-mapped."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from realm_hf.hub.hub_files import HubFiles
from realm_hf.hub.manifest import HubManifest, IndexRecord
from realm_hf.hub.own_copies import COMPLETE, check_hash, place_of, take, write_once
from realm_hf.index.base import IndexFileError
from realm_hf.index.faiss_index import build_index
from realm_hf.index.faiss_search import as_search_index, open_search_index
from realm_hf.index.probe import probe_index
from realm_hf.storage.files import HashingFile, write_json
from realm_hf.untrusted.checks import HubArtefactError, check_room

if TYPE_CHECKING:
    from realm_hf.index.base import SearchIndex

__all__ = ["open_published_index"]


def open_published_index(
    source: HubFiles, manifest: HubManifest, choice: bool | str, embeddings: np.ndarray, mmap: bool = True
) -> SearchIndex | None:
    """
    The index of a publication.

    Args:
        source ([`HubFiles`]): Where it is.
        manifest ([`HubManifest`]): Its description.
        choice (`bool` or `str`): `True` for the default one, the name of a variant, `"exact"` for a "Flat" index that
            is built here from the embeddings, `False` for none. Nothing else is downloaded.
        embeddings (`np.ndarray` of shape `[N, D]`): For `"exact"`.
        mmap (`bool`, *optional*, defaults to `True`): Map it instead of reading it.

    Raises:
        HubArtefactError: If it was changed, does not fit, or is of a kind that is not loaded from strangers.
        ValueError: If there is no such variant.
    """
    if choice is False:
        return None
    if choice == "exact":
        return as_search_index(build_index(embeddings))
    name = manifest.default_index if choice is True else choice
    if name not in manifest.indexes:
        raise ValueError(
            f"{source.label} has no index {name!r}: choose among {sorted(manifest.indexes)}, 'exact' (built here), or "
            "False (none)."
        )
    record = manifest.indexes[name]
    place = place_of(source, f"index-{record.sha256[:40]}")
    path = place / "index.faiss"
    if not (place / COMPLETE).exists():
        parts = source.fetch(record.parts, manifest.sizes())

        def write(work: Path) -> None:
            _join(source, list(parts.values()), work / "index.faiss", record)
            probe_index(work / "index.faiss", rows=manifest.rows, dimension=manifest.dimension)
            write_json(work / COMPLETE, {"sha256": record.sha256}, durable=False)

        write_once(place, "write the index into", write)
    try:
        return open_search_index(path, mmap=mmap, rows=manifest.rows, dimension=manifest.dimension)
    except IndexFileError as error:
        raise HubArtefactError(f"The index of {source.label} is refused: {error}") from error


def _join(source: HubFiles, parts: list[Path], target: Path, record: IndexRecord) -> None:
    if len(parts) == 1:
        take(source, parts[0], target)
    else:
        check_room(target.parent, record.bytes, "the joined index")
        with HashingFile(target) as file:
            for part in parts:
                with part.open("rb") as reader:
                    while piece := reader.read(4 << 20):
                        file.write(piece)
    check_hash(target, record.sha256, parts[0])
