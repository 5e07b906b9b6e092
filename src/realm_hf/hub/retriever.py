"""The part of a retriever that goes to the Hub, and says whether a model belongs to it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import yaml
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from realm_hf.data.passages.build import PassageStore
from realm_hf.data.vocabulary import tokenizer_fingerprint
from realm_hf.hub.belonging import check_fingerprint, query_tower_record
from realm_hf.hub.commit import HubCommit
from realm_hf.hub.export import ExportSettings, export_retriever
from realm_hf.hub.manifest import HubManifest
from realm_hf.hub.publishable import Publishable
from realm_hf.hub.published_tokenizer import check_tokenizer_files
from realm_hf.knowledge.files import RetrieverFiles
from realm_hf.models.fingerprints import state_fingerprint
from realm_hf.models.modeling_embedder import RealmEmbedder
from realm_hf.models.places import DESCRIPTION
from realm_hf.models.towers import query_tower_of, same_tower
from realm_hf.untrusted.checks import HubArtefactError

if TYPE_CHECKING:
    from realm_hf.knowledge.knowledge import Knowledge

__all__ = ["HubRetriever", "add_retriever", "owned_by_retriever"]


class HubRetriever:
    """Publishing a retriever, and the check of a loaded one against a model."""

    passages: PassageStore | Dataset
    tokenizer: PreTrainedTokenizerBase | None
    embedder: RealmEmbedder | None
    query_embedder: RealmEmbedder | None
    fingerprints: dict[str, str]

    def _served_index(self) -> Knowledge:
        raise NotImplementedError

    def files(self) -> RetrieverFiles:
        """What is published of the retriever; a `ValueError` without an index, or with edits."""
        raise NotImplementedError

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str | None = None,
        commit_description: str | None = None,
        private: bool | None = None,
        token: bool | str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        max_shard_size: int | str | None = "500MB",
        tags: list[str] | None = None,
    ) -> str:
        """
        Publish passages, embeddings, index, tokenizer and towers as a dataset repository, in one commit.

        The arguments are those of transformers' `push_to_hub`. [`~realm_hf.hub.publish`] also sends the model,
        and writes cards from a run.

        Args:
            repo_id (`str`): `"owner/name"`.
            commit_message (`str`, *optional*, defaults to `"Upload retriever"`): The commit's first line.
            commit_description (`str`, *optional*): The rest of it.
            private (`bool`, *optional*): Visibility of a repository that is made.
            token (`bool` or `str`, *optional*): As for `huggingface_hub`.
            revision (`str`, *optional*): The branch; made if need be.
            create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead.
            max_shard_size (`int` or `str`, *optional*, defaults to `"500MB"`): Of a Parquet file.
            tags (`list[str]`, *optional*): For the card that is written if the repository has none.

        Returns:
            `str`: The commit's address.

        Raises:
            ValueError: If there is no index, or no embeddings; or somebody else pushed meanwhile.
        """
        self.files()  # refuses a retriever without an index, or with edits, before anything is made
        push = HubCommit(repo_id, "dataset", private=private, branch=revision, token=token, create_pr=create_pr)
        shard_bytes = parse_size(max_shard_size or "500MB")
        settings = ExportSettings(shard_bytes=shard_bytes)
        manifest = add_retriever(push, cast("Publishable", self), settings, query_tower=self.query_embedder)
        if not push.exists("README.md"):
            push.add("README.md", plain_card(push.repo_id, manifest, tags).encode())
        push.commit(commit_message or "Upload retriever", commit_description, owns=owned_by_retriever)
        return push.url

    def check_model(self, model: PreTrainedModel, *, force: bool = False) -> None:
        """
        Refuse a model whose query tower is not the one that was published with this retriever.

        A retriever that was not loaded from a publication, and a model whose weights were cast to another type, cannot
        be checked; dimensions always are.

        Args:
            model (`PreTrainedModel`): With an `embedder`, as [`RealmForOpenQA`] and [`RealmForPreTraining`].
            force (`bool`, *optional*, defaults to `False`): Warn only.

        Raises:
            ValueError: If they do not belong together.
        """
        dimension = self._served_index().index.dimension
        if model.config.retriever_proj_size != dimension:
            raise ValueError(
                f"The model makes embeddings of {model.config.retriever_proj_size} numbers, the index {dimension}: "
                "this retriever is not the model's."
            )
        if "query_tower" not in self.fingerprints:
            return
        found = query_tower_record(query_tower_of(model))
        if found["query_tower_dtype"] == self.fingerprints.get("query_tower_dtype"):
            check_fingerprint(
                "The model's query tower", self.fingerprints["query_tower"], found["query_tower"], force=force
            )


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
        for path in sorted(Path(work).rglob("*")):
            if path.is_file():
                extra[path.relative_to(work).as_posix()] = path
        staging = Path(work, "staging")
        staging.mkdir()
        full = ExportSettings(**{**vars(settings), "extra": {**settings.extra, **extra}, "fingerprints": fingerprints})
        manifest = export_retriever(
            retriever.files(), staging, full, lambda name, path: push.add(prefix + name, path, is_temporary=True)
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
        ("data/train-", "passages/", "index/", "tokenizer/", "embedder/", "query_embedder/")
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


def plain_card(repo_id: str, manifest: HubManifest, tags: list[str] | None) -> str:
    """A card that says what lies there and how to load it."""
    metadata: dict[str, Any] = {
        "tags": sorted({"realm_hf", "retrieval", *(tags or [])}),
        "task_categories": ["question-answering"],
        "configs": [{"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}],
    }
    title = repo_id.split("/")[1]
    search = 'retriever.search("a question", k=5)\n' if "query_tower" in manifest.fingerprints else ""
    return f"""---
{yaml.safe_dump(metadata, sort_keys=False)}---

# {title}

{manifest.rows:,} passages with embeddings of {manifest.dimension} numbers and a FAISS index.

```python
from realm_hf import RealmRetriever

retriever = RealmRetriever.from_pretrained("{repo_id}")
{search}```

The rows alone: `load_dataset("{repo_id}")`.
"""
