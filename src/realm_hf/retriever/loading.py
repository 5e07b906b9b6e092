"""Where a retriever comes from: a run, a saved retriever, a publication, a checkpoint of transformers 4."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from realm_hf.data.passages.build import PassageStore
from realm_hf.generations.manifest import MANIFEST_FILE
from realm_hf.hub.ownership import is_own_retriever, is_own_run
from realm_hf.knowledge.files import RetrieverFiles, load_retriever_files
from realm_hf.legacy.retriever import load_published_or_old
from realm_hf.models.places import MODEL_FOLDER, TOKENIZER_FOLDER
from realm_hf.models.tower_files import TowerSource
from realm_hf.retriever.saved_sources import opened_source
from realm_hf.runs.retriever_files import open_run_index

if TYPE_CHECKING:
    from realm_hf.index.base import Embeddings, SearchIndex
    from realm_hf.retriever.candidates import CandidateSource

__all__ = ["RetrieverParts", "find_retriever"]


@dataclass(frozen=True)
class RetrieverParts:
    """
    What a retriever is made of; the fields are its arguments.

    Args:
        passages ([`PassageStore`] or `Dataset`): N passages.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Theirs.
        index ([`SearchIndex`], *optional*): Over their embeddings.
        embeddings (`np.ndarray` of shape `[N, D]`, *optional*): What the index was built from.
        generation_name (`str`, *optional*): The generation it was.
        embedder ([`TowerSource`], *optional*): The passage tower.
        query_embedder ([`TowerSource`], *optional*): The query tower.
        candidate_source ([`CandidateSource`], *optional*): Finds candidates instead of the index.
        fingerprints (`dict[str, str]`): Of a publication: what belongs together.
    """

    passages: PassageStore | Dataset
    tokenizer: PreTrainedTokenizerBase | None
    index: SearchIndex | None
    embeddings: Embeddings | None
    generation_name: str | None
    embedder: TowerSource
    query_embedder: TowerSource
    candidate_source: CandidateSource | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)


def find_retriever(
    place: str | Path,
    *,
    revision: str | None,
    index: bool | str,
    mmap: bool,
    verify: Literal["sizes", "sha256"],
    **hub: Any,
) -> RetrieverParts:
    """
    The work of [`RealmRetriever.from_pretrained`], whose arguments these are.

    A run stands for the retriever that it left in its `model` folder, which belongs to the model there; for its newest
    generation as long as it has left none. A generation that it has kept can be named by its directory.
    """
    folder = Path(place)
    if is_own_run(folder) and is_own_retriever(folder / MODEL_FOLDER):
        folder = folder / MODEL_FOLDER
    if is_own_retriever(folder):
        return _with_tokenizer(load_retriever_files(folder, mmap=mmap, verify=verify), folder)
    run = folder.parent if folder.name == MODEL_FOLDER and folder.is_dir() else folder
    if is_own_run(run):
        return _with_tokenizer(open_run_index(run, mmap=mmap, verify=verify), run / TOKENIZER_FOLDER)
    run = folder.parent.parent
    if (folder / MANIFEST_FILE).is_file() and is_own_run(run):
        return _with_tokenizer(open_run_index(run, folder.name, mmap=mmap, verify=verify), run / TOKENIZER_FOLDER)
    found = load_published_or_old(place, revision=revision, index=index, mmap=mmap, **hub)
    return RetrieverParts(
        found.passages,
        found.tokenizer,
        found.index,
        None if found.index is None else found.embeddings,
        found.generation_name,
        found.embedder,
        found.query_embedder,
        opened_source(found.source),
        found.fingerprints,
    )


def _with_tokenizer(files: RetrieverFiles, folder: Path) -> RetrieverParts:
    return RetrieverParts(
        files.passages,
        AutoTokenizer.from_pretrained(folder) if (folder / "tokenizer_config.json").exists() else None,
        files.index,
        files.embeddings,
        files.generation_name,
        files.embedder,
        files.query_embedder,
        opened_source(files.source),
    )
