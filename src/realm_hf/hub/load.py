"""Loading a published retriever: follow a model's pin, check what belongs together, open what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from realm_hf.data.passages.build import PassageStore
from realm_hf.hub.belonging import check_fingerprint
from realm_hf.hub.hub_files import HubFiles, find_hub_files
from realm_hf.hub.manifest import HubManifest
from realm_hf.hub.published_index import open_published_index
from realm_hf.hub.published_passages import open_published_passages
from realm_hf.hub.published_tokenizer import load_published_tokenizer
from realm_hf.hub.published_tower import load_published_tower, query_tower_source
from realm_hf.hub.published_words import open_published_source
from realm_hf.models.modeling_embedder import RealmEmbedder
from realm_hf.models.places import DESCRIPTION, PUBLICATION
from realm_hf.models.tower_files import TowerSource
from realm_hf.untrusted.checks import HubArtefactError

if TYPE_CHECKING:
    from realm_hf.index.base import SearchIndex
    from realm_hf.knowledge.saved_source import SavedSource

__all__ = ["PublishedRetriever", "load_published"]

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class PublishedRetriever:
    """
    What was loaded.

    Args:
        passages ([`PassageStore`] or `Dataset`): N passages.
        embeddings (`np.ndarray` of shape `[N, D]`): Memory-mapped.
        index ([`SearchIndex`], *optional*): Memory-mapped; `None` if none was asked for.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): The passages'.
        embedder ([`RealmEmbedder`], *optional*): The passage tower.
        query_embedder ([`TowerSource`], *optional*): The query tower, downloaded and checked when it is first needed.
        source ([`SavedSource`], *optional*): What finds candidates instead of the index; none without an index.
        generation_name (`str`, *optional*): The generation that was published.
        fingerprints (`dict[str, str]`): What belongs together.
    """

    passages: PassageStore | Dataset
    embeddings: np.ndarray
    index: SearchIndex | None
    tokenizer: PreTrainedTokenizerBase | None
    embedder: RealmEmbedder | None
    generation_name: str | None
    fingerprints: dict[str, str] = field(default_factory=dict)
    query_embedder: TowerSource = None
    source: SavedSource | None = None


def load_published(
    name_or_path: str | Path,
    *,
    revision: str | None = None,
    index: bool | str = True,
    embedder: bool = True,
    force: bool = False,
    mmap: bool = True,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> PublishedRetriever:
    """
    Load a retriever from a model's repository, a dataset's, or a directory that holds either.

    Args:
        name_or_path (`str` or `Path`): The place.
        revision (`str`, *optional*): A branch, tag or commit of it.
        index (`bool` or `str`, *optional*, defaults to `True`): See [`open_published_index`].
        embedder (`bool`, *optional*, defaults to `True`): Also load the passage tower, if it was published.
        force (`bool`, *optional*, defaults to `False`): Warn of parts that do not belong together instead of refusing.
        mmap (`bool`, *optional*, defaults to `True`): Map the index instead of reading it.
        token (`str` or `bool`, *optional*): As for `huggingface_hub`.
        cache_dir (`str` or `Path`, *optional*): As for `huggingface_hub`; the memory-mapped copy lies there too.
        local_files_only (`bool`, *optional*, defaults to `False`): As for `huggingface_hub`.

    Raises:
        FileNotFoundError: If nothing was published there.
        HubArtefactError: If what was published is damaged, does not belong together, or is not what it says.
    """
    arguments: dict[str, Any] = {"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only}
    source, found = find_hub_files(name_or_path, [PUBLICATION, DESCRIPTION], revision=revision, **arguments)
    fingerprints: dict[str, str] = {}
    pinned = model = None
    if found == PUBLICATION:
        model = source
        source, fingerprints, pinned = _follow(source, arguments)
    manifest = HubManifest.from_dict(source.read_description(DESCRIPTION), source.label)
    check_fingerprint(f"What lies at {source.label}", pinned, manifest.content, force=force)
    for name in ("passages", "tokenizer", "passage_tower"):
        known = manifest.fingerprints.get(name)
        check_fingerprint(f"{name} of {source.label}", fingerprints.get(name), known, force=force)
    tokenizer = load_published_tokenizer(source, manifest, force=force)
    tower = load_published_tower(source, manifest, "embedder", force=force) if embedder else None
    passages, embeddings = open_published_passages(source, manifest)
    return PublishedRetriever(
        passages=passages,
        embeddings=embeddings,
        index=open_published_index(source, manifest, index, embeddings, mmap),
        tokenizer=tokenizer,
        embedder=tower,
        generation_name=manifest.generation_name,
        fingerprints={**fingerprints, **manifest.fingerprints},
        source=None if index is False else open_published_source(source, manifest, mmap=mmap),
        query_embedder=query_tower_source(source, manifest, model, fingerprints.get("query_tower"), force=force),
    )


def _follow(source: HubFiles, arguments: Mapping[str, Any]) -> tuple[HubFiles, dict[str, str], str]:
    """From a model's repository to its retriever, and what the model says of it."""
    content = source.read_description(PUBLICATION)
    try:
        if content["format_version"] != _FORMAT_VERSION:
            raise ValueError(f"format_version is {content['format_version']!r}, this version reads {_FORMAT_VERSION}")
        pin = content["retriever"]
        fingerprints = {str(name): str(value) for name, value in content["fingerprints"].items()}
        pinned = str(pin["content"])
        if pin["folder"] is not None:
            return source.below(pin["folder"]), fingerprints, pinned
        repo_id, revision = pin["repo_id"], pin["revision"]
        if not isinstance(repo_id, str) or not isinstance(revision, str) or repo_id.startswith((".", "/", "~")):
            raise TypeError(f"{repo_id!r} at {revision!r} is no commit of a repository")
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise HubArtefactError(f"{PUBLICATION} of {source.label} is damaged ({error}): publish again.") from error
    retriever, _ = find_hub_files(repo_id, [DESCRIPTION], repo_type="dataset", revision=revision, **arguments)
    return retriever, fingerprints, pinned
