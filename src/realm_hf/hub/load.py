"""Loading a published retriever: follow a model's pin, check what belongs together, open what was asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from realm_hf.data.passages.build import PassageStore
from realm_hf.data.vocabulary import tokenizer_fingerprint
from realm_hf.hub.download import open_published_index, open_published_passages
from realm_hf.hub.manifest import HubManifest
from realm_hf.hub.reading import HubFiles, open_source
from realm_hf.hub.tokenizer import load_published_tokenizer
from realm_hf.hub.tower import load_tower
from realm_hf.models.fingerprints import state_fingerprint
from realm_hf.models.modeling_embedder import RealmEmbedder
from realm_hf.models.places import DESCRIPTION, PUBLICATION
from realm_hf.models.towers import TowerSource, load_model_tower
from realm_hf.untrusted.checks import HubArtefactError
from realm_hf.untrusted.refusing import refusing

if TYPE_CHECKING:
    from realm_hf.index.base import SearchIndex

__all__ = ["PublishedRetriever", "check_fingerprint", "load_published", "query_tower_record"]

logger = logging.get_logger(__name__)

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


def check_fingerprint(what: str, expected: str | None, found: str | None, *, force: bool) -> None:
    """
    Compare two fingerprints; where one is not known there is nothing to compare.

    Raises:
        HubArtefactError: If they differ and `force` is `False`; with it, they are warned of.
    """
    if expected is None or found is None or expected == found:
        return
    words = (
        f"{what} has fingerprint {found[:16]}, but the index was published with {expected[:16]}: its answers would be "
        "wrong without a word."
    )
    if not force:
        raise HubArtefactError(f"{words} Load the revision that belongs to it, publish again, or pass `force=True`.")
    logger.warning("%s Loaded all the same (`force=True`).", words)


def query_tower_record(embedder: RealmEmbedder) -> dict[str, str]:
    """The fingerprint of a query tower, and the type its weights have with it."""
    dtype = str(embedder.dtype).removeprefix("torch.")
    return {"query_tower": state_fingerprint(embedder.state_dict()), "query_tower_dtype": dtype}


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
    source, found = open_source(name_or_path, [PUBLICATION, DESCRIPTION], revision=revision, **arguments)
    fingerprints: dict[str, str] = {}
    pinned = model = None
    if found == PUBLICATION:
        model = source
        source, fingerprints, pinned = _follow(source, arguments)
    manifest = HubManifest.from_dict(source.read_description(DESCRIPTION), source.words)
    check_fingerprint(f"What lies at {source.words}", pinned, manifest.content, force=force)
    for name in ("passages", "tokenizer", "passage_tower"):
        known = manifest.fingerprints.get(name)
        check_fingerprint(f"{name} of {source.words}", fingerprints.get(name), known, force=force)
    tokenizer = _load_tokenizer(source, manifest, force)
    tower = _open_tower(source, manifest, "embedder", force) if embedder else None
    passages, embeddings = open_published_passages(source, manifest)
    return PublishedRetriever(
        passages=passages,
        embeddings=embeddings,
        index=open_published_index(source, manifest, index, embeddings, mmap),
        tokenizer=tokenizer,
        embedder=tower,
        generation_name=manifest.generation_name,
        fingerprints={**fingerprints, **manifest.fingerprints},
        query_embedder=_query_tower(source, manifest, model, fingerprints.get("query_tower"), force),
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
        raise HubArtefactError(f"{PUBLICATION} of {source.words} is damaged ({error}): publish again.") from error
    retriever, _ = open_source(repo_id, [DESCRIPTION], repo_type="dataset", revision=revision, **arguments)
    return retriever, fingerprints, pinned


def _load_tokenizer(source: HubFiles, manifest: HubManifest, force: bool) -> PreTrainedTokenizerBase | None:
    tokenizer = load_published_tokenizer(source, manifest)
    if tokenizer is not None:
        with refusing(f"The tokenizer of {source.words}"):
            found = tokenizer_fingerprint(tokenizer)
        expected = manifest.fingerprints.get("tokenizer")
        check_fingerprint(f"The tokenizer of {source.words}", expected, found, force=force)
    return tokenizer


def _query_tower(
    source: HubFiles, manifest: HubManifest, model: HubFiles | None, expected: str | None, force: bool
) -> TowerSource:
    """What loads the query tower: from its own files, as the passage tower, or out of the model that was published."""
    for folder in ("query_embedder", "embedder"):
        if "query_tower" in manifest.fingerprints and manifest.below(folder):
            return partial(_open_tower, source, manifest, folder, force)
    return None if model is None else partial(_open_model_tower, model, expected, force)


def _open_model_tower(model: HubFiles, expected: str | None, force: bool) -> RealmEmbedder:
    name = str(model.root) if model.repo_id is None else model.repo_id
    hub = {"token": model.token, "cache_dir": model.cache_dir, "local_files_only": model.local_files_only}
    tower = load_model_tower(name, **({} if model.repo_id is None else {"revision": model.revision, **hub}))
    found = state_fingerprint(tower.state_dict())
    check_fingerprint(f"The query tower of {model.words}", expected, found, force=force)
    return tower


def _open_tower(source: HubFiles, manifest: HubManifest, folder: str, force: bool) -> RealmEmbedder | None:
    """The passage tower (`embedder`) or the query tower (`query_embedder`)."""
    tower = load_tower(source, manifest, folder)
    if tower is None:
        return None
    which = "query" if folder == "query_embedder" else "passage"
    if tower.config.retriever_proj_size != manifest.dimension:
        raise HubArtefactError(
            f"The {which} tower of {source.words} makes embeddings of {tower.config.retriever_proj_size} numbers, the "
            f"published ones have {manifest.dimension}."
        )
    found = state_fingerprint(tower.state_dict())
    expected = manifest.fingerprints.get(f"{which}_tower")
    check_fingerprint(f"The {which} tower of {source.words}", expected, found, force=force)
    return tower
