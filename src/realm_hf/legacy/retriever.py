"""A retriever from an old checkpoint as it is: records copied once into a memory-mapped table, embeddings mapped."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter
from transformers.utils import logging

from realm_hf.hub.load import PublishedRetriever, load_published
from realm_hf.index.faiss_index import build_index
from realm_hf.index.faiss_search import FaissIndex
from realm_hf.knowledge.files import MANIFEST
from realm_hf.legacy.block_records import BLOCK_RECORDS_FILE, BlockRecords, BlockRecordsError
from realm_hf.legacy.checkpoint import find_block_embeddings, old_checkpoint_folder
from realm_hf.models.places import DESCRIPTION, PUBLICATION, what_is
from realm_hf.models.tokenization_realm import RealmTokenizer
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import replacement
from realm_hf.untrusted.checks import check_room

__all__ = ["check_counts", "load_old_retriever", "load_published_or_old", "records_as_dataset"]

logger = logging.get_logger(__name__)

_FEATURES = Features({"title": Value("large_string"), "text": Value("large_string")})
_LARGE_INDEX = 2 << 30


def load_published_or_old(
    name_or_path: str | Path, *, revision: str | None = None, index: bool | str = True, **arguments: Any
) -> PublishedRetriever:
    """
    A published retriever, or one in the layout of transformers 4.57.6 and before; arguments as for [`load_published`].

    Raises:
        FileNotFoundError: If there is neither.
    """
    hub = {name: arguments[name] for name in ("token", "cache_dir", "local_files_only") if name in arguments}
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        is_published = any((folder / name).is_file() for name in (PUBLICATION, DESCRIPTION))
        if not is_published and (folder / BLOCK_RECORDS_FILE).exists():
            return load_old_retriever(folder, index=index, cache_dir=hub.get("cache_dir"))
        if not is_published:
            raise FileNotFoundError(
                f"{folder} holds no retriever, it is {what_is(folder)}: {MANIFEST} is missing (an interrupted "
                f"`save_pretrained` leaves none), and so are a publication's {DESCRIPTION} and the old "
                f"{BLOCK_RECORDS_FILE}. Save one with `RealmRetriever.save_pretrained`, or name a run directory."
            )
    try:
        return load_published(name_or_path, revision=revision, index=index, **arguments)
    except FileNotFoundError:
        old = None if folder.is_dir() else old_checkpoint_folder(name_or_path, revision=revision, **hub)
        if old is None:
            raise
        return load_old_retriever(old, index=index, cache_dir=hub.get("cache_dir"))


def load_old_retriever(
    folder: str | Path,
    *,
    index: bool | str = True,
    cache_dir: str | Path | None = None,
    errors: Literal["strict", "replace"] = "strict",
) -> PublishedRetriever:
    """
    Load the retriever of an old checkpoint, without unpickling anything.

    The first time, the records are copied into a memory-mapped table in the cache, at some hundred thousand a second.
    The exact index is built in memory each time: for the published corpus that is 6.8 GB, which `realm-hf convert`
    saves.

    Args:
        folder (`str` or `Path`): With `block_records.npy`, the tokenizer, and the weights of `RealmForOpenQA`.
        index (`bool` or `str`, *optional*, defaults to `True`): `True` or `"exact"` for an exact index, `False` for
            none. Without `block_emb` in the weights there is none either.
        cache_dir (`str` or `Path`, *optional*): Where the table goes; the cache of `datasets` by default.
        errors (`str`, *optional*, defaults to `"strict"`): See [`BlockRecords.columns`].

    Returns:
        [`PublishedRetriever`]: Embeddings memory-mapped.

    Raises:
        BlockRecordsError: If the records are damaged, or anything but texts.
        CheckpointRefusedError: If the weights are damaged, or anything but tensors.
        ValueError: If records and embeddings differ in number, or a variant of the index is asked for.
    """
    folder = Path(folder)
    if index not in (True, False, "exact"):
        raise ValueError(f"index={index!r}: an old checkpoint has no variants; use True, False or `realm-hf convert`.")
    records, stored = BlockRecords(folder / BLOCK_RECORDS_FILE), find_block_embeddings(folder)
    if stored is not None:
        check_counts(records, stored.shape)
    passages = records_as_dataset(records, cache_dir, errors)
    embeddings = np.empty((0, 0), np.float32) if stored is None else stored.map()
    built = None
    if stored is not None and index:
        if embeddings.nbytes > _LARGE_INDEX:
            logger.warning(
                "%s: building an exact index of %.1f GB in memory; `realm-hf convert` writes one that is mapped.",
                folder,
                embeddings.nbytes / 1e9,
            )
        built = FaissIndex(build_index(embeddings))
    has_tokenizer = any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json"))
    return PublishedRetriever(
        passages=passages,
        embeddings=embeddings,
        index=built,
        tokenizer=RealmTokenizer.from_pretrained(folder) if has_tokenizer else None,
        embedder=None,
        generation_name=None,
    )


def check_counts(records: BlockRecords, shape: tuple[int, ...]) -> None:
    """Raise a `ValueError` unless there is one embedding for each record."""
    if len(records) != shape[0]:
        raise ValueError(
            f"{records.path} has {len(records)} records, but the weights beside it have {shape[0]} embeddings: they "
            "do not belong together; take both from one checkpoint."
        )


def records_as_dataset(
    records: BlockRecords, cache_dir: str | Path | None = None, errors: Literal["strict", "replace"] = "strict"
) -> Dataset:
    """
    Block records as a memory-mapped dataset with columns `title` (empty: the old layout has none) and `text`.

    Args:
        records ([`BlockRecords`]): The records.
        cache_dir (`str` or `Path`, *optional*): Where the table goes, under a name made of the file's place, size and
            time; the cache of `datasets` by default.
        errors (`str`, *optional*, defaults to `"strict"`): See [`BlockRecords.columns`].

    Raises:
        BlockRecordsError: If the records are damaged; the table is not kept then.
        OSError: If the disk is full, in words.
    """
    if not len(records):
        raise BlockRecordsError(f"{records.path} holds no records: a retriever needs at least one.")
    place, status = records.path.resolve(), records.path.stat()
    key = f"{place}:{status.st_size}:{status.st_mtime_ns}:{errors}"
    folder = Path(cache_dir) if cache_dir is not None else Path(datasets.config.HF_DATASETS_CACHE)
    table = folder / "realm_hf" / f"block_records-{hashlib.sha256(key.encode()).hexdigest()[:16]}.arrow"
    if not table.is_file():
        table.parent.mkdir(parents=True, exist_ok=True)
        check_room(table.parent, status.st_size, f"the memory-mapped copy of {records.path}")
        logger.info("Copying %d records of %s into %s.", len(records), records.path, table)
        with (
            explain_os_errors("write the records into", table),
            replacement(table) as temporary,
            ArrowWriter(path=str(temporary), features=_FEATURES) as writer,
        ):
            for column in records.columns(errors):
                writer.write_table(
                    pa.table({"title": pa.repeat(pa.scalar("", pa.large_string()), len(column)), "text": column})
                )
            writer.finalize()
    return Dataset.from_file(str(table))
