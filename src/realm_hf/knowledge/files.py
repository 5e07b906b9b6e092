"""A retriever as a directory: passages, embeddings, index, and a manifest that is written last.

    retriever.json                   format, shapes, generation, size and SHA-256 of each file below
    passages/ or passages.parquet    a [`PassageStore`], or the rows of any other dataset
    embeddings.npy, index.faiss      as in a generation, which may have no index.faiss
    embedder/                        the passage tower, if the retriever had it
    query_embedder/                  the query tower, if it is neither that one nor a model's that lies beside
    bm25/                            the BM25 index, if passages are found by words too; the manifest says how

The directory may hold other files, such as a model's. Every file is written beside its place and renamed, so that an
earlier version that is mapped, perhaps by the retriever that is being saved, stays intact; a directory whose saving
was interrupted has no manifest and is refused.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from datasets import Dataset

from realm_hf.data.passages.build import PassageStore
from realm_hf.generations.files import check_hash, write_array
from realm_hf.generations.manifest import EMBEDDINGS_FILE, INDEX_FILE, FileRecord
from realm_hf.index.base import Embeddings, SearchIndex, saveable
from realm_hf.index.exact import ExactIndex
from realm_hf.index.faiss_search import open_search_index
from realm_hf.knowledge.bm25 import BM25_FOLDER, BM25Index
from realm_hf.knowledge.compaction import CompactedFiles, EditedStore
from realm_hf.knowledge.corpus import Corpus
from realm_hf.knowledge.saved_source import SavedSource, checked_settings
from realm_hf.models.places import DESCRIPTION, PUBLICATION, what_is
from realm_hf.models.tower_files import TowerSource, has_query_tower, load_model_tower, same_tower
from realm_hf.storage.directories import StagedDirectory
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import (
    HashingFile,
    describe_files,
    file_sha256,
    link_or_copy,
    read_json,
    replacement,
    write_json,
)
from realm_hf.untrusted.checks import check_name

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from realm_hf.generations.store import Generation
    from realm_hf.models.modeling_embedder import RealmEmbedder

__all__ = [
    "RetrieverFiles",
    "link_retriever_files",
    "load_retriever_files",
    "save_retriever_files",
    "write_manifest",
]

MANIFEST = "retriever.json"
FORMAT_VERSION = 1
_STORE, _PARQUET, _EMBEDDER, _QUERY_EMBEDDER = "passages", "passages.parquet", "embedder", "query_embedder"


@dataclass(frozen=True)
class RetrieverFiles:
    """
    What a saved retriever consists of.

    Args:
        passages ([`PassageStore`] or `Dataset`): N passages.
        index ([`SearchIndex`]): Over their embeddings.
        embeddings (`np.ndarray` of shape `[N, D]`, *optional*): What the index was built from.
        generation_name (`str`, *optional*): The generation it was.
        embedder ([`TowerSource`], *optional*): The passage tower, or where it lies.
        query_embedder ([`TowerSource`], *optional*): The query tower, likewise.
        source ([`SavedSource`], *optional*): What finds candidates instead of the index.
    """

    passages: PassageStore | Dataset
    index: SearchIndex
    embeddings: Embeddings | None
    generation_name: str | None
    embedder: TowerSource = None
    query_embedder: TowerSource = None
    source: SavedSource | None = None


def save_retriever_files(
    folder: Path,
    content: RetrieverFiles | CompactedFiles,
    embedder: RealmEmbedder | None = None,
    query_embedder: RealmEmbedder | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> None:
    """
    Write a retriever's files into `folder`.

    Args:
        folder (`Path`): Made if need be. An earlier retriever in it is replaced.
        content ([`RetrieverFiles`] or [`CompactedFiles`]): What to write.
        embedder ([`RealmEmbedder`], *optional*): The passage tower.
        query_embedder ([`RealmEmbedder`], *optional*): The query tower.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): Needed where the words of an edited dataset are indexed.

    Raises:
        OSError: If the disk is full or read-only, in words.
        ValueError: If a publication lies in the directory, or the index is of a kind that cannot be saved.
    """
    if published := [name for name in (DESCRIPTION, PUBLICATION) if (folder / name).exists()]:
        raise ValueError(
            f"{folder} holds {published[0]}, so that a publication would be loaded from it and not what is saved: "
            "choose another directory."
        )
    index = saveable(content.index)
    with explain_os_errors("save the retriever into", folder):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / MANIFEST).unlink(missing_ok=True)
        files = _save_passages(folder, content.passages)
        if content.embeddings is not None:
            with replacement(folder / EMBEDDINGS_FILE) as temporary, HashingFile(temporary) as file:
                write_array(content.embeddings, file.write)
            files[EMBEDDINGS_FILE] = FileRecord(file.bytes, file.sha256)
        with replacement(folder / INDEX_FILE) as temporary, HashingFile(temporary) as file:
            index.write(file.write)
        files[INDEX_FILE] = FileRecord(file.bytes, file.sha256)
        files |= _save_tower(folder / _EMBEDDER, embedder)
        place = _query_place(folder, embedder, query_embedder)
        files |= _save_tower(folder / _QUERY_EMBEDDER, query_embedder if place == _QUERY_EMBEDDER else None)
        files |= _save_words(folder, content, tokenizer)
        rows, dimension = len(index), index.dimension
        write_manifest(
            folder,
            files,
            rows=rows,
            dimension=dimension,
            generation_name=content.generation_name,
            query_embedder=place,
            source=content.source,
        )


def link_retriever_files(
    folder: Path, passages: PassageStore, generation: Generation, embedder: RealmEmbedder | None
) -> None:
    """
    Make a retriever of a generation, beside the model whose tower embeds its queries, without copying it.

    Passages, embeddings and index get second names where the file system allows: they never change, and stay when the
    generation is collected.

    Args:
        folder (`Path`): A directory without a retriever; a model is, or will be, saved into it.
        passages ([`PassageStore`]): Those of the generation.
        generation ([`Generation`]): Open.
        embedder ([`RealmEmbedder`], *optional*): The passage tower that it was built by.

    Raises:
        OSError: If the disk is full or read-only, in words.
    """
    info = generation.info
    with explain_os_errors("save the retriever into", folder):
        folder.mkdir(parents=True, exist_ok=True)
        # Hashed when they were written: nothing is read again.
        files = {f"{_STORE}/{name}": FileRecord(**record) for name, record in passages.info["files"].items()}
        described = passages.directory / "passages.json"
        files[f"{_STORE}/{described.name}"] = FileRecord(described.stat().st_size, file_sha256(described))
        for name, record in info.files.items():
            link_or_copy(generation.path / name, folder / name)
            files[name] = record
        shutil.copytree(passages.directory, folder / _STORE, copy_function=link_or_copy, dirs_exist_ok=True)
        files |= _save_tower(folder / _EMBEDDER, embedder)
        write_manifest(folder, files, rows=info.rows, dimension=info.dimension, generation_name=info.name)


def write_manifest(
    folder: Path,
    files: Mapping[str, FileRecord],
    *,
    rows: int,
    dimension: int,
    generation_name: str | None,
    query_embedder: str | None = None,
    source: SavedSource | None = None,
) -> None:
    """
    Write the manifest, which makes a retriever of the files that lie in `folder` already. `query_embedder` names the
    folder of the query tower; without it that is the tower of a model beside the retriever, if there is one. `source`
    is what finds candidates instead of the index.
    """
    manifest = {
        "format_version": FORMAT_VERSION,
        "rows": rows,
        "dimension": dimension,
        "generation_name": generation_name,
        "query_embedder": query_embedder,
        **({} if source is None else {"candidate_source": dict(source.settings)}),
        "files": {name: asdict(record) for name, record in files.items()},
    }
    write_json(folder / MANIFEST, manifest)


def load_retriever_files(
    folder: Path, *, mmap: bool = True, verify: Literal["sizes", "sha256"] = "sizes"
) -> RetrieverFiles:
    """
    Read what [`save_retriever_files`] wrote.

    Args:
        folder (`Path`): The directory.
        mmap (`bool`, *optional*, defaults to `True`): Map embeddings and index instead of reading them.
        verify (`str`, *optional*, defaults to `"sizes"`): `"sizes"`, or `"sha256"` to hash every file.

    Raises:
        FileNotFoundError: If there is no retriever in `folder`.
        ValueError: If a file is missing or cut.
        CorruptGenerationError: If a file was changed (found with `"sha256"` only).
        IndexFileError: If the index file is damaged or does not fit the manifest.
    """
    path = folder / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} holds no saved retriever, it is {what_is(folder)}: {MANIFEST} is missing (an interrupted "
            "`save_pretrained` leaves none). Save one with `RealmRetriever.save_pretrained`."
        )
    manifest = read_json(path)
    records = _checked_records(manifest, path)
    for name, record in records.items():
        size = (folder / name).stat().st_size if (folder / name).is_file() else None
        if size != record.bytes:
            found = "is missing" if size is None else f"has {size} bytes"
            raise ValueError(
                f"{folder / name} {found}, {MANIFEST} says {record.bytes} bytes: save the retriever again."
            )
        if verify == "sha256":
            check_hash(folder / name, file_sha256(folder / name), record)
    passages = (
        Dataset.from_parquet(str(folder / _PARQUET)) if _PARQUET in records else PassageStore.load(folder / _STORE)
    )
    embeddings = None
    if EMBEDDINGS_FILE in records:
        embeddings = np.load(folder / EMBEDDINGS_FILE, mmap_mode="r" if mmap else None, allow_pickle=False)
    rows, dimension = manifest["rows"], manifest["dimension"]
    if embeddings is not None and INDEX_FILE not in records:
        index: SearchIndex = ExactIndex(embeddings)
    else:
        index = open_search_index(folder / INDEX_FILE, mmap=mmap, rows=rows, dimension=dimension)
    towers = {name: folder / name for name in (_EMBEDDER, _QUERY_EMBEDDER) if f"{name}/config.json" in records}
    beside: Path | None = folder if has_query_tower(folder) else None
    query = towers.get(str(manifest.get("query_embedder")), beside)
    name = manifest["generation_name"]
    source = None
    if "candidate_source" in manifest:
        source = SavedSource(
            checked_settings(manifest["candidate_source"]), BM25Index.open(folder / BM25_FOLDER, mmap=mmap)
        )
    return RetrieverFiles(passages, index, embeddings, name, towers.get(_EMBEDDER), query, source)


def _query_place(folder: Path, embedder: RealmEmbedder | None, query_embedder: RealmEmbedder | None) -> str | None:
    """The folder of the query tower; `None` where there is none, or a model that has it lies beside the retriever."""
    if query_embedder is None:
        return None
    if embedder is not None and same_tower(embedder, query_embedder):
        return _EMBEDDER
    if has_query_tower(folder) and same_tower(load_model_tower(folder), query_embedder):
        return None
    return _QUERY_EMBEDDER


def _checked_records(manifest: dict[str, Any], path: Path) -> dict[str, FileRecord]:
    """The files that a manifest lists; a `ValueError` if it is none."""
    if manifest.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {manifest.get('format_version')}; this version reads {FORMAT_VERSION}."
        )
    try:
        if type(manifest["rows"]) is not int or type(manifest["dimension"]) is not int:
            raise TypeError("rows and dimension are no numbers")
        if not isinstance(manifest["generation_name"], str | None):
            raise TypeError("generation_name is no text")
        return {check_name(name): FileRecord(**record) for name, record in manifest["files"].items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({type(error).__name__}: {error}): save the retriever again.") from error


def _save_tower(target: Path, tower: RealmEmbedder | None) -> dict[str, FileRecord]:
    if tower is None:
        shutil.rmtree(target, ignore_errors=True)  # an earlier retriever's
        return {}
    with StagedDirectory(target, replace=True) as staged:
        tower.save_pretrained(staged.path)
    return _records(target, target.parent)


def _save_words(
    folder: Path, content: RetrieverFiles | CompactedFiles, tokenizer: PreTrainedTokenizerBase | None
) -> dict[str, FileRecord]:
    """The BM25 index of the passages as they lie in `folder`: edits are worked in, and rows numbered anew."""
    target = folder / BM25_FOLDER
    if content.source is None:
        shutil.rmtree(target, ignore_errors=True)  # an earlier retriever's
        return {}
    words = content.source.bm25
    if isinstance(content, CompactedFiles):
        passages = content.passages
        words = words.rebuilt(passages if isinstance(passages, Dataset) else PassageStore(folder / _STORE), tokenizer)
    words.save(target)
    return _records(target, folder)


def _records(target: Path, folder: Path) -> dict[str, FileRecord]:
    return {name: FileRecord(**record) for name, record in describe_files(target, folder).items()}


def _save_passages(folder: Path, passages: PassageStore | EditedStore | Dataset) -> dict[str, FileRecord]:
    if isinstance(passages, Dataset):
        with replacement(folder / _PARQUET) as temporary:
            Corpus(passages).dataset.to_parquet(str(temporary))
        return {_PARQUET: FileRecord((folder / _PARQUET).stat().st_size, file_sha256(folder / _PARQUET))}
    target = folder / _STORE
    if isinstance(passages, EditedStore):
        with StagedDirectory(target, replace=True) as staged:  # read until now, if it is this retriever's own
            passages.write(staged.path)
        return _records(target, folder)
    if target.exists() and not target.samefile(passages.directory):
        shutil.rmtree(target)  # whoever mapped its files keeps them
    if not target.exists():
        with StagedDirectory(target) as staged:
            shutil.copytree(passages.directory, staged.path, dirs_exist_ok=True)
    return _records(target, folder)
