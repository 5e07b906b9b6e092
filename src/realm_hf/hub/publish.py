"""One publication: passages and index first, then the model that names their commit.

Readers come by way of the model's repository, so its commit is the moment at which all changes. What an interrupted
publication left behind is either unseen (uploaded objects), or seen by nobody who follows a model (the new commit of
the passages). The passages name the model in turn by a last small commit, which changes nothing that the model pins.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from huggingface_hub import ModelCard
from transformers import PreTrainedModel
from transformers.utils import logging

from realm_hf.hub.belonging import check_belonging, query_tower_record
from realm_hf.hub.cards import CardFacts, dataset_card, model_card
from realm_hf.hub.commit import HubCommit
from realm_hf.hub.export import ExportSettings
from realm_hf.hub.manifest import HubManifest
from realm_hf.hub.retriever import add_retriever, owned_by_retriever, parse_size
from realm_hf.models.places import PUBLICATION
from realm_hf.models.tower_files import query_tower_of
from realm_hf.runs.records import RunRecord, read_run

if TYPE_CHECKING:
    from realm_hf.hub.publishable import Publishable
    from realm_hf.index.faiss_search import IndexLike

__all__ = ["Publication", "publish"]

logger = logging.get_logger(__name__)

MODEL_PIN = "realm_model.json"
"""In the passages' repository: the model's repository and commit."""

FOLDER = "retriever"
"""Of the retriever in a model's repository, where there is only one."""

_MODEL_FILES = ("config.json", "generation_config.json", "tokenizer", "special_tokens_map.json", "vocab.txt", "model")
_PROBE_QUERIES = 256


@dataclass(frozen=True)
class Publication:
    """
    What was published.

    Args:
        repo_id (`str`): The model's repository.
        commit (`str`): Its commit.
        dataset_repo_id (`str`, *optional*): The passages' repository; `None` if they lie with the model.
        dataset_commit (`str`, *optional*): The commit that the model pins.
        tag (`str`, *optional*): The tag that names both.
    """

    repo_id: str
    commit: str
    dataset_repo_id: str | None
    dataset_commit: str | None
    tag: str | None


def publish(
    model: PreTrainedModel,
    retriever: Publishable,
    repo_id: str,
    *,
    dataset_repo_id: str | None = None,
    run: str | Path | RunRecord | None = None,
    facts: CardFacts | None = None,
    indexes: Mapping[str, IndexLike] | None = None,
    private: bool | None = None,
    revision: str | None = None,
    tag: str | None = None,
    parent_commit: str | None = None,
    commit_message: str = "Publish model and retriever",
    token: str | bool | None = None,
    max_shard_size: int | str = "500MB",
    max_index_size: int | str = "20GB",
    force: bool = False,
) -> Publication:
    """
    Publish a model with its tokenizer, passages, embeddings, index and cards.

    It can be repeated: what is there already is not uploaded again, and if nothing changed no commit is made.

    Args:
        model (`PreTrainedModel`): [`RealmForOpenQA`] or [`RealmForPreTraining`].
        retriever ([`RealmRetriever`]): With embeddings, index and tokenizer, and with its passage tower as `embedder`
            if that is not the model's.
        repo_id (`str`): `"owner/name"` of the model's repository.
        dataset_repo_id (`str`, *optional*): Of the passages'; without it all lies in the model's repository.
        run (`str`, `Path` or [`RunRecord`], *optional*): The training run that the model's card tells of.
        facts ([`CardFacts`], *optional*): What else the cards say.
        indexes (`Mapping[str, faiss.Index]`, *optional*): Further indexes over the same embeddings, by name.
        private (`bool`, *optional*): Visibility of repositories that are made.
        revision (`str`, *optional*): The branch in both, made if need be; `main` by default.
        tag (`str`, *optional*): A new tag in both.
        parent_commit (`str`, *optional*): Refuse if the model's branch does not stand there.
        commit_message (`str`, *optional*): The first line of both commits.
        token (`str` or `bool`, *optional*): As for `huggingface_hub`.
        max_shard_size (`int` or `str`, *optional*, defaults to `"500MB"`): Of a Parquet file.
        max_index_size (`int` or `str`, *optional*, defaults to `"20GB"`): Of a file of the index; a larger is split.
        force (`bool`, *optional*, defaults to `False`): Publish parts that do not belong together, with a warning.

    Returns:
        [`Publication`]

    Raises:
        HubArtefactError: If model, tokenizer, passages and index do not belong together.
        ValueError: If the tag is taken, the branch has moved, or the retriever has no index or embeddings.
        HfHubHTTPError: If the Hub refuses, e.g. the token.

    Example:
    ```python
    >>> publish(model, retriever, "me/realm", dataset_repo_id="me/realm-passages", run="runs/qa", tag="v1")
    ```
    """
    facts = facts or CardFacts()
    recorded = read_run(run) if isinstance(run, str | Path) else run
    retriever.files()  # refuses a retriever without an index, or with edits, before anything is made
    tower = check_belonging(model, retriever, force=force)
    settings = ExportSettings(
        shard_bytes=parse_size(max_shard_size),
        part_bytes=parse_size(max_index_size),
        variants=indexes or {},
    )
    common: dict[str, Any] = {"private": private, "branch": revision, "token": token}
    push = HubCommit(repo_id, "model", parent_commit=parent_commit, **common)
    if tag is not None and tag in push.tags():
        raise ValueError(f"{push.repo_id} has a tag {tag!r} already: choose another, or delete it there.")
    if dataset_repo_id is None:
        data = None
        manifest = add_retriever(push, retriever, settings, tower=tower, prefix=f"{FOLDER}/")
        pin = {"folder": FOLDER, "repo_id": None, "revision": None}
        place = "in the folder `retriever/` of this repository"
    else:
        data = HubCommit(dataset_repo_id, "dataset", **common)
        # The passages' own name is enough to search them; in one repository the model lies beside them.
        manifest = add_retriever(data, retriever, settings, tower=tower, query_tower=query_tower_of(model))
        data.add("README.md", str(dataset_card(data.repo_id, push.repo_id, manifest, facts)).encode())
        committed = data.commit(commit_message, owns=owned_by_retriever)
        pinned = _pinned_already(push, manifest, data.repo_id) or committed
        pin = {"folder": None, "repo_id": data.repo_id, "revision": pinned}
        facts = replace(facts, datasets=[*facts.datasets, data.repo_id])
        place = f"[{data.repo_id}](https://huggingface.co/datasets/{data.repo_id}) at commit `{pinned[:12]}`"
    card = model_card(
        push.repo_id,
        model,
        manifest,
        facts,
        recorded,
        retriever_place=place,
        recall_against_exact=_recall(retriever),
        is_one_repository=data is None,
    )
    _add_model(push, model, retriever, manifest, pin, card)
    commit = push.commit(commit_message, owns=_owned_by_model)
    if data is not None:
        data = HubCommit(data.repo_id, "dataset", **common)
        data.add(MODEL_PIN, _json({"repo_id": push.repo_id, "revision": commit}))
        named = data.commit(f"Name the model: {push.repo_id} at {commit[:12]}", owns=lambda _: False)
        if tag is not None:
            data.tag(tag, named)
    if tag is not None:
        push.tag(tag, commit)
    return Publication(push.repo_id, commit, None if data is None else data.repo_id, pin["revision"], tag)


def _recall(retriever: Publishable) -> float | None:
    """Against exact search, with rows drawn from the passages themselves as queries."""
    embeddings = retriever.embeddings
    assert embeddings is not None
    rows = np.random.default_rng(0).choice(len(embeddings), min(_PROBE_QUERIES, len(embeddings)), replace=False)
    return retriever.recall_against_exact(np.asarray(embeddings[np.sort(rows)], dtype=np.float32), 10)


def _pinned_already(push: HubCommit, manifest: HubManifest, dataset_repo_id: str) -> str | None:
    """The commit that the model pins now, if what lies there is what is published again."""
    content = push.read_json(PUBLICATION)
    pin = content.get("retriever") if content else None
    if isinstance(pin, dict) and (pin.get("repo_id"), pin.get("content")) == (dataset_repo_id, manifest.content):
        return pin.get("revision")
    return None


def _add_model(
    push: HubCommit,
    model: PreTrainedModel,
    retriever: Publishable,
    manifest: HubManifest,
    pin: dict[str, Any],
    card: ModelCard,
) -> None:
    fingerprints = {**manifest.fingerprints, **query_tower_record(query_tower_of(model))}
    push.add(
        PUBLICATION,
        _json(
            {
                "format_version": 1,
                "retriever": {**pin, "content": manifest.content},
                "fingerprints": fingerprints,
            }
        ),
    )
    push.add("README.md", str(card).encode())
    with tempfile.TemporaryDirectory(prefix="realm-publish-") as work:
        model.save_pretrained(work)
        if retriever.tokenizer is not None:
            retriever.tokenizer.save_pretrained(work)
        for path in sorted(Path(work).rglob("*")):
            if path.is_file() and path.name != "README.md":
                push.add(path.relative_to(work).as_posix(), path, is_temporary=True)
        push.keep_small_files()


def _owned_by_model(name: str) -> bool:
    return name == PUBLICATION or name.startswith((f"{FOLDER}/", *_MODEL_FILES))


def _json(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, indent=2).encode() + b"\n"
