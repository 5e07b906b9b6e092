"""The BM25 index of a publication on this machine: downloaded, checked array by array, and memory-mapped."""

from __future__ import annotations

from pathlib import Path

from realm_hf.hub.hub_files import HubFiles
from realm_hf.hub.manifest import HubManifest
from realm_hf.hub.own_copies import own_copy
from realm_hf.knowledge.bm25 import BM25_FOLDER, BM25Index
from realm_hf.knowledge.saved_source import SavedSource
from realm_hf.untrusted.checks import HubArtefactError
from realm_hf.untrusted.refusing import refusing

__all__ = ["open_published_source"]


def open_published_source(source: HubFiles, manifest: HubManifest, *, mmap: bool = True) -> SavedSource | None:
    """
    What finds candidates instead of a publication's index; `None` where nothing does.

    Args:
        source ([`HubFiles`]): Where it is.
        manifest ([`HubManifest`]): Its description.
        mmap (`bool`, *optional*, defaults to `True`): Map the BM25 index instead of reading it.

    Raises:
        HubArtefactError: If a file is missing or was changed, or a search in the arrays could go wrong.
    """
    if manifest.candidate_source is None:
        return None

    def checked(folder: Path) -> None:
        with refusing(f"The BM25 index of {source.label}"):
            index = BM25Index.open(folder, verify=True)
            fingerprint = manifest.fingerprints.get("passages") if manifest.store is not None else None
            if (len(index), index.passages_fingerprint) != (manifest.rows, fingerprint):
                raise HubArtefactError(
                    f"The BM25 index of {source.label} is of {len(index)} passages ({index.passages_fingerprint}), "
                    f"not of its {manifest.rows} ({fingerprint}): it is refused."
                )

    folder = own_copy(source, manifest, BM25_FOLDER, checked)
    return SavedSource(manifest.candidate_source, BM25Index.open(folder, mmap=mmap))
