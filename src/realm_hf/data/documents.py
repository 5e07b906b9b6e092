"""Any source of text -> a `datasets.Dataset` of documents, with errors that say what to do."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, TypeAlias, overload

import pyarrow as pa
from datasets import (
    Dataset,
    DatasetDict,
    Features,
    IterableDataset,
    Value,
    get_dataset_split_names,
    load_dataset,
    load_dataset_builder,
    load_from_disk,
)
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.utils import logging

from realm_hf.data.json_depth import check_json
from realm_hf.data.json_lines import check_lines
from realm_hf.data.streams import DocumentStream, Rows
from realm_hf.storage.files import json_sha256

_BUILDERS = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv", ".tsv": "csv", ".arrow": "arrow"}

Documents: TypeAlias = Dataset | Rows
"""What corpora are made of: a `Dataset`, a streaming one, or rows."""


@overload
def load_documents(
    source: str | Path,
    split: str = "train",
    *,
    name: str | None = None,
    revision: str | None = None,
    streaming: Literal[False] = False,
) -> Dataset: ...


@overload
def load_documents(
    source: str | Path,
    split: str = "train",
    *,
    name: str | None = None,
    revision: str | None = None,
    streaming: bool,
) -> Dataset | IterableDataset: ...


def load_documents(
    source: str | Path,
    split: str = "train",
    *,
    name: str | None = None,
    revision: str | None = None,
    streaming: bool = False,
) -> Dataset | IterableDataset:
    """
    Load documents from the Hub, a file, or a directory.

    Args:
        source (`str` or `Path`): One of
            - a file: `.parquet`, `.jsonl`, `.json`, `.csv`, `.tsv`, `.arrow`, or `.txt` (one document, titled by its
            name);
            - a directory: written by `Dataset.save_to_disk`, or holding files of one of these kinds (searched with
              sub-directories; `.txt` files become one document each);
            - anything else: the id of a dataset on the Hub.
        split (`str`, *optional*, defaults to `"train"`): Split of a Hub dataset or of a saved `DatasetDict`;
            `datasets`' slicing such as `"train[:1%]"` works for the Hub.
        name (`str`, *optional*): Configuration of a Hub dataset, such as `"20231101.en"`.
        revision (`str`, *optional*): Branch, tag or commit of a Hub dataset.
        streaming (`bool`, *optional*, defaults to `False`): Read the documents when they are needed, as `datasets`
            does, instead of downloading and converting all of them first. What `Dataset.save_to_disk` has written is
            read where it lies, streaming or not.

    Returns:
        `Dataset`, or an `IterableDataset` with `streaming`: One document a row, with the source's own columns.

    Raises:
        FileNotFoundError: If a path does not exist, or a directory has no file of a known kind.
        ValueError: If the kind of a file is not known, kinds are mixed, a file is empty or damaged, or the Hub has no
            such dataset or split.
    """
    path = Path(source).expanduser()
    if path.is_file():
        return _load_files([path], path.suffix.lower(), streaming)
    if path.is_dir():
        return _load_directory(path, split, streaming)
    text = str(source)
    if text.startswith((".", "/", "~")) or text.count("/") > 1 or path.suffix.lower() in {*_BUILDERS, ".txt"}:
        raise FileNotFoundError(f"there is no file or directory {path.absolute()}: check the path of the documents")
    try:
        if streaming:
            return _stream(text, split, name=name, revision=revision)
        return load_dataset(text, name, split=split, revision=revision)
    except DatasetNotFoundError as error:
        raise ValueError(
            f"{text!r} is neither a file, nor a directory, nor a dataset that can be read on the Hub: check the "
            "spelling, log in with `hf auth login` if it is gated, or give a path"
        ) from error
    except ValueError as error:
        if "Unknown split" not in str(error) and "Bad split" not in str(error):
            raise
        splits = get_dataset_split_names(text, name, revision=revision)
        raise ValueError(f"dataset {text!r} has no split {split!r}; it has {', '.join(splits)}") from error


def readable_documents(documents: Documents, columns: list[str]) -> Dataset | DocumentStream:
    """
    Documents that have these columns, as a whole or as a stream.

    Raises:
        TypeError: They are something else, such as a `DatasetDict`, or an iterator, which can be read only once.
        ValueError: There is none, a column is missing, or a column holds no texts.
    """
    if isinstance(documents, Iterable) and not isinstance(documents, Dataset | Mapping | str):
        return DocumentStream(documents, columns)
    check_documents(documents, columns)
    return documents


def check_documents(documents: Any, columns: list[str]) -> None:
    """
    Raise if `documents` is not a non-empty `Dataset` with these columns.

    Raises:
        TypeError: If it is something else, such as a `DatasetDict`.
        ValueError: If it has no rows, lacks a column, or a column holds no texts.
    """
    if not isinstance(documents, Dataset):
        hint = "choose one of its splits" if isinstance(documents, dict) else "load it with `load_documents`"
        raise TypeError(f"documents must be a datasets.Dataset, not {type(documents).__name__}: {hint}")
    missing = [column for column in columns if column not in documents.column_names]
    if missing:
        raise ValueError(
            f"the documents have no column {', '.join(map(repr, missing))}; they have {documents.column_names}: "
            "name the right ones with title_column (None for no title) and text_column"
        )
    for column in columns:
        kind = documents.features[column]
        if getattr(kind, "dtype", None) not in ("string", "large_string", "null"):
            raise ValueError(
                f"column {column!r} of the documents holds {kind}, not texts: name the right one with title_column "
                "(None for no title) and text_column, or cast it"
            )
    if not len(documents):
        raise ValueError("the corpus is empty (0 documents): check the source and the split")


def _load_directory(path: Path, split: str, streaming: bool) -> Dataset | IterableDataset:
    if (path / "state.json").is_file() or (path / "dataset_dict.json").is_file():
        loaded = load_from_disk(str(path))
        if not isinstance(loaded, DatasetDict):
            return loaded
        if split not in loaded:
            raise ValueError(f"{path} has no split {split!r}; it has {', '.join(loaded)}")
        return loaded[split]
    known = {*_BUILDERS, ".txt"}
    files = sorted(
        file
        for file in path.rglob("*")
        if file.suffix.lower() in known and not any(part.startswith(".") for part in file.relative_to(path).parts)
    )
    if not files:
        raise FileNotFoundError(f"{path} holds no documents: none of {', '.join(sorted(known))} was found in it")
    suffixes = {file.suffix.lower() for file in files}
    if len(suffixes) > 1:
        raise ValueError(f"{path} mixes {', '.join(sorted(suffixes))}: keep one kind of file, or name a single file")
    return _load_files(files, suffixes.pop(), streaming)


def _load_files(files: list[Path], suffix: str, streaming: bool) -> Dataset | IterableDataset:
    if suffix == ".txt":
        # Size and time are part of the arguments, so that `datasets` does not serve a cached copy of a changed file.
        versions = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        features = Features({"title": Value("large_string"), "text": Value("large_string")})
        if streaming:
            texts = IterableDataset.from_generator(_read_texts, features=features, gen_kwargs={"versions": versions})
            return _named(texts, "text files", versions)
        return Dataset.from_generator(_ReadTexts(), features=features, gen_kwargs={"versions": versions})
    if suffix not in _BUILDERS:
        known = ", ".join(sorted({*_BUILDERS, ".txt"}))
        raise ValueError(f"{files[0]} has the unknown ending {suffix!r}: documents are read from {known}")
    if not any(file.stat().st_size for file in files):
        raise ValueError(f"{files[0]} is empty: it holds no documents")
    if suffix in (".jsonl", ".json"):
        for file in files:
            check_json(file)
    options: dict[str, Any] = {"delimiter": "\t"} if suffix == ".tsv" else {}
    try:
        with _quiet_datasets():
            options["data_files"] = [str(file) for file in files]
            if streaming:
                return _stream(_BUILDERS[suffix], "train", **options)
            return load_dataset(_BUILDERS[suffix], split="train", **options)
    except (DatasetGenerationError, StopIteration, pa.ArrowInvalid) as error:
        if suffix in (".jsonl", ".json"):
            for file in files:
                check_lines(file)
        reason = error.__cause__ or error
        raise ValueError(
            f"{', '.join(map(str, files[:3]))}{' ...' if len(files) > 3 else ''} could not be read as {suffix} "
            f"({type(reason).__name__}: {reason}): check the file"
        ) from error


def _stream(source: str, split: str, **options: Any) -> IterableDataset:
    builder = load_dataset_builder(source, **options)
    return _named(builder.as_streaming_dataset(split=split), source, [builder.config_id, builder.hash])


def _named(documents: IterableDataset, source: str, version: Any) -> IterableDataset:
    """With a note of what exactly is read, by which a preparation that goes on knows its parts again."""
    documents.info.download_checksums = {source: {"num_bytes": None, "checksum": json_sha256(version)}}
    return documents


@contextmanager
def _quiet_datasets() -> Iterator[None]:
    """What `datasets` cannot read it logs as well as raises: the exception becomes one line, which names the file."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(before)


class _ReadTexts:
    """Generator of the documents in text files.

    `datasets` names its copy, and by it all that is made of it, after the pickle of the generator. A function's would
    hold its module's name, which must be free to change; this one's is a constant.
    """

    # Raise it with every change after which a file gives another document.
    VERSION = "realm-hf text files, version 1"

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        return str, (self.VERSION,)

    def __call__(self, versions: list[tuple[str, int, int]]) -> Iterator[dict[str, str]]:
        return _read_texts(versions)


def _read_texts(versions: list[tuple[str, int, int]]) -> Iterator[dict[str, str]]:
    for name, _, _ in versions:
        yield {"title": Path(name).stem.replace("_", " "), "text": Path(name).read_text(encoding="utf-8")}
