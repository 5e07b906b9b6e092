"""A retriever as a dataset repository on the Hub, and whether a model belongs to one that was loaded from there."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from transformers import PreTrainedModel

from realm_hf.data.vocabulary import tokenizer_fingerprint
from realm_hf.hub.belonging import check_fingerprint, query_tower_record
from realm_hf.hub.cards import retriever_card
from realm_hf.hub.commit import HubCommit
from realm_hf.hub.export import ExportSettings, export_retriever
from realm_hf.hub.manifest import HubManifest
from realm_hf.hub.publishable import Publishable
from realm_hf.hub.published_tokenizer import check_tokenizer_files
from realm_hf.knowledge.bm25 import BM25_FOLDER
from realm_hf.models.fingerprints import state_fingerprint
from realm_hf.models.modeling_embedder import RealmEmbedder
from realm_hf.models.places import DESCRIPTION
from realm_hf.models.tower_files import query_tower_of, same_tower
from realm_hf.untrusted.checks import HubArtefactError

__all__ = ["add_retriever", "check_model", "owned_by_retriever", "parse_size", "push_retriever"]


def push_retriever(
    retriever: Publishable,
    push: HubCommit,
    *,
    message: str,
    description: str | None,
    max_shard_size: int | str,
    tags: list[str] | None,
) -> str:
    """
    Publish a retriever as a dataset repository, in one commit.

    Args:
        retriever ([`RealmRetriever`]): What is published.
        push ([`HubCommit`]): The commit, to a dataset repository.
        message (`str`): The commit's first line.
        description (`str`, *optional*): The rest of it.
        max_shard_size (`int` or `str`): Of a Parquet file.
        tags (`list[str]`, *optional*): For the card that is written if the repository has none.

    Returns:
        `str`: The commit's address.

    Raises:
        ValueError: If there is no index, there are no embeddings, or edits; or somebody else pushed meanwhile.
    """
    retriever.files()  # refuses a retriever without an index, or with edits, before anything is made
    settings = ExportSettings(shard_bytes=parse_size(max_shard_size))
    manifest = add_retriever(push, retriever, settings, query_tower=retriever.query_embedder)
    if not push.exists("README.md"):
        push.add("README.md", retriever_card(push.repo_id, manifest, tags).encode())
    push.commit(message, description, owns=owned_by_retriever)
    return push.url


def check_model(
    model: PreTrainedModel, *, dimension: int, fingerprints: Mapping[str, str], force: bool = False
) -> None:
    """
    The work of [`RealmRetriever.check_model`].

    Args:
        model (`PreTrainedModel`): With an `embedder`.
        dimension (`int`): Of the retriever's index.
        fingerprints (`Mapping[str, str]`): The retriever's; empty if it was not loaded from a publication.
        force (`bool`, *optional*, defaults to `False`): Warn only.

    Raises:
        ValueError: If they do not belong together.
    """
    if model.config.retriever_proj_size != dimension:
        raise ValueError(
            f"The model makes embeddings of {model.config.retriever_proj_size} numbers, the index {dimension}: "
            "this retriever is not the model's."
        )
    if "query_tower" not in fingerprints:
        return
    found = query_tower_record(query_tower_of(model))
    if found["query_tower_dtype"] == fingerprints.get("query_tower_dtype"):
        check_fingerprint("The model's query tower", fingerprints["query_tower"], found["query_tower"], force=force)


def add_retriever(
    push: HubCommit,
    retriever: Publishable,
    settings: ExportSettings,
    *,
    tower: RealmEmbedder | None = None,
    query_tower: RealmEmbedder | None = None,
    prefix: str = "",
) -> HubManifest:
    """
    Add all files of a retriever to a push, each removed from this disk as soon as it is uploaded.

    Args:
        push ([`HubCommit`]): The commit that they shall be part of.
        retriever ([`RealmRetriever`]): What is published.
        settings ([`ExportSettings`]): How; tokenizer, tower and their fingerprints are added to it here.
        tower ([`RealmEmbedder`], *optional*): The passage tower; the retriever's by default.
        query_tower ([`RealmEmbedder`], *optional*): The query tower; none where it lies beside them, in a model.
        prefix (`str`, *optional*): `"folder/"` to put them in a folder.

    Returns:
        [`HubManifest`]
    """
    with tempfile.TemporaryDirectory(prefix="realm-publish-") as work:
        extra, fingerprints = {}, dict(settings.fingerprints)
        if retriever.tokenizer is not None:
            retriever.tokenizer.save_pretrained(Path(work, "tokenizer"))
            if retriever.tokenizer.is_fast:
                _check_tokenizer(Path(work, "tokenizer"))
                fingerprints["tokenizer"] = tokenizer_fingerprint(retriever.tokenizer)
        tower = tower if tower is not None else retriever.embedder
        if tower is not None:
            tower.save_pretrained(Path(work, "embedder"))
            fingerprints["passage_tower"] = state_fingerprint(tower.state_dict())
        if query_tower is not None:
            fingerprints |= query_tower_record(query_tower)
            if tower is None or not same_tower(tower, query_tower):
                query_tower.save_pretrained(Path(work, "query_embedder"))
        content = retriever.files()
        if content.source is not None:
            content.source.bm25.save(Path(work, BM25_FOLDER))
        for path in sorted(Path(work).rglob("*")):
            if path.is_file():
                extra[path.relative_to(work).as_posix()] = path
        staging = Path(work, "staging")
        staging.mkdir()
        full = ExportSettings(**{**vars(settings), "extra": {**settings.extra, **extra}, "fingerprints": fingerprints})
        manifest = export_retriever(
            content, staging, full, lambda name, path: push.add(prefix + name, path, is_temporary=True)
        )
        push.add(prefix + DESCRIPTION, manifest.to_json())
        push.keep_small_files()
    return manifest


def _check_tokenizer(folder: Path) -> None:
    try:
        check_tokenizer_files(folder)
    except HubArtefactError as error:
        raise ValueError(f"The tokenizer cannot be published, because nobody could load it: {error}.") from error


def owned_by_retriever(name: str) -> bool:
    """Whether a file of a dataset repository is one that publishing a retriever writes."""
    return name == DESCRIPTION or name.startswith(
        ("data/train-", "passages/", "index/", "tokenizer/", "embedder/", "query_embedder/", f"{BM25_FOLDER}/")
    )


def parse_size(size: int | str) -> int:
    """
    Bytes of `"500MB"`.

    Raises:
        ValueError: If it is no number with a unit.
    """
    if isinstance(size, int):
        return size
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3), ("B", 1)):
        number = size.upper().removesuffix(unit)
        if number != size.upper() and number.replace(".", "", 1).isdigit():
            return max(1, int(float(number) * factor))
    raise ValueError(f"max_shard_size is {size!r}: write a number with a unit, such as '500MB'.")
