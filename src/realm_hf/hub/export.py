"""A retriever as files for a dataset repository: Parquet, flat arrays, index; written one after the other.

    data/train-00000-of-00002.parquet        title, text, embeddings (float32): the viewer and `load_dataset` read them
    passages/*.bin                           a [`PassageStore`]'s wordpieces and numbers, mapped as they are
    index/<name>.faiss                       one file, or parts `<name>.faiss-00000-of-00002`
    tokenizer/, embedder/                    the tokenizer, and the passage tower where the retriever has it
    query_embedder/                          the query tower, where it is known and not the same
    bm25/                                    the BM25 index, where passages are found by words too
    realm_retriever.json                     the description, see [`HubManifest`]

Wordpieces are published, although they could be made again from the texts: a custom splitter or a title that was cut
is not found again, tokenizing ten million passages of 250 wordpieces takes three hours of a core (measured: 224,000 a
second), and the arrays are about half as large as the texts.
Equal content gives equal bytes, so that a second push of it has nothing to upload.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, List, Value

from realm_hf.data.passages.build import PassageStore
from realm_hf.generations.manifest import FileRecord
from realm_hf.hub.manifest import ARRAYS, COLUMNS, HubManifest, IndexRecord, ShardRecord
from realm_hf.index.base import Embeddings, Saveable, saveable
from realm_hf.index.faiss_index import check_finite
from realm_hf.index.faiss_search import IndexLike, as_search_index
from realm_hf.index.file import index_file_bytes
from realm_hf.knowledge.corpus import Corpus
from realm_hf.knowledge.files import RetrieverFiles
from realm_hf.progress import progress_bar
from realm_hf.storage.files import HashingFile, file_sha256, json_sha256

__all__ = ["ExportSettings", "export_retriever", "hub_features"]

Add = Callable[[str, Path], None]
"""Takes a file over under its name in the repository; it may remove it then."""

_ROWS_A_GROUP = 1000


@dataclass(frozen=True)
class ExportSettings:
    """
    How a retriever becomes files.

    Args:
        shard_bytes (`int`): Most bytes of a Parquet file, before compression.
        part_bytes (`int`): Most bytes of an index file; a larger index is split.
        index_name (`str`): The name of the retriever's own index.
        variants (`Mapping[str, faiss.Index]`): Further indexes over the same embeddings, by name.
        extra (`Mapping[str, Path]`): Further files, by name: tokenizer and passage tower.
        fingerprints (`Mapping[str, str]`): What is known beside the passages': `tokenizer`, `passage_tower`.
    """

    shard_bytes: int = 500_000_000
    part_bytes: int = 20_000_000_000
    index_name: str = "default"
    variants: Mapping[str, IndexLike] = field(default_factory=dict)
    extra: Mapping[str, Path] = field(default_factory=dict)
    fingerprints: Mapping[str, str] = field(default_factory=dict)


def hub_features(dimension: int) -> Features:
    """Columns of the published Parquet files."""
    vector = List(Value("float32"), length=dimension)
    return Features({"title": Value("string"), "text": Value("string"), "embeddings": vector})


def export_retriever(content: RetrieverFiles, staging: Path, settings: ExportSettings, add: Add) -> HubManifest:
    """
    Write a retriever's files, handing on each as it is done, so that the disk need not hold all at once.

    Args:
        content ([`RetrieverFiles`]): What is published.
        staging (`Path`): An empty directory for the files.
        settings ([`ExportSettings`]): How.
        add (`Callable[[str, Path], None]`): Takes each file over.

    Returns:
        [`HubManifest`]: The description, which the caller publishes as the last file.

    Raises:
        ValueError: If there are no embeddings, or an index does not fit them.
    """
    if content.embeddings is None:
        raise ValueError(
            "The retriever was made without embeddings, which are published beside the texts: give it `embeddings`."
        )
    files: dict[str, FileRecord] = {}

    def done(name: str, path: Path) -> None:
        files[name] = FileRecord(path.stat().st_size, file_sha256(path))
        add(name, path)

    rows, dimension = content.embeddings.shape
    shards = _export_rows(content, staging, settings.shard_bytes, done)
    store = None
    if isinstance(content.passages, PassageStore):
        store = {key: value for key, value in content.passages.info.items() if key != "files"}
        _export_arrays(content.passages, staging, done)
        passages_fingerprint = content.passages.fingerprint
    else:
        passages_fingerprint = json_sha256({shard.file: files[shard.file].sha256 for shard in shards})[:16]
    indexes = {}
    for name, given in {settings.index_name: content.index, **settings.variants}.items():
        index = saveable(as_search_index(given))
        if (len(index), index.dimension) != (rows, dimension):
            raise ValueError(
                f"Index {name!r} holds {len(index)} rows of dimension {index.dimension}, the embeddings are "
                f"{[rows, dimension]}: build it from them."
            )
        indexes[name] = _export_index(name, index, staging, settings.part_bytes, done)
    for name, path in settings.extra.items():
        done(name, path)
    return HubManifest(
        rows=rows,
        dimension=dimension,
        dtype=content.embeddings.dtype.name,
        generation_name=content.generation_name,
        fingerprints={**settings.fingerprints, "passages": passages_fingerprint},
        store=store,
        shards=tuple(shards),
        indexes=indexes,
        default_index=settings.index_name,
        files=files,
        candidate_source=None if content.source is None else dict(content.source.settings),
    )


def _export_rows(content: RetrieverFiles, staging: Path, shard_bytes: int, done: Add) -> list[ShardRecord]:
    passages, embeddings = content.passages, content.embeddings
    assert embeddings is not None
    dataset = passages.rows if isinstance(passages, PassageStore) else Corpus(passages).dataset
    columns = [name for name in ("title", "text") if name in dataset.column_names]
    dataset = dataset.select_columns(columns)
    rows, dimension = embeddings.shape
    a_row = dataset.data.nbytes / max(1, len(dataset.data)) + 4 * dimension
    a_shard = max(1, int(shard_bytes / a_row))
    count = -(-rows // a_shard)
    schema = hub_features(dimension).arrow_schema
    shards = []
    with progress_bar(rows, "writing", "passages") as bar:
        for number in range(count):
            name = f"data/train-{number:05d}-of-{count:05d}.parquet"
            path = staging / Path(name).name
            first, last = number * a_shard, min(rows, (number + 1) * a_shard)
            # float32 that was float16 compresses to nearly its size when its bytes are split: the low ones are zero.
            with pq.ParquetWriter(
                path,
                schema,
                compression="zstd",
                use_dictionary=["title"],
                use_byte_stream_split=["embeddings.list.element"],
            ) as writer:
                for table in _tables(dataset, embeddings, first, last, schema):
                    writer.write_table(table, row_group_size=_ROWS_A_GROUP)
                    bar.update(len(table))
            shards.append(ShardRecord(name, last - first))
            done(name, path)
    return shards


def _tables(dataset: Dataset, embeddings: Embeddings, first: int, last: int, schema: pa.Schema) -> Iterator[pa.Table]:
    arrow = dataset.with_format("arrow")
    for start in range(first, last, _ROWS_A_GROUP):
        stop = min(last, start + _ROWS_A_GROUP)
        table = arrow[start:stop]
        vectors = np.ascontiguousarray(embeddings[start:stop], dtype=np.float32)
        check_finite(vectors, start)
        empty = pa.nulls(stop - start, pa.string()).fill_null("")
        strings = [
            table[name].cast(pa.string()).fill_null("") if name in table.column_names else empty
            for name in ("title", "text")
        ]
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.reshape(-1)), vectors.shape[1])
        yield pa.table([*strings, column.cast(schema.field("embeddings").type)], schema=schema)


def _export_arrays(store: PassageStore, staging: Path, done: Add) -> None:
    for name in [f"{array}{end}.bin" for array in ARRAYS for end in ("", "_offsets")]:
        # The store's own file is handed over by a link, so that whoever takes it over may remove it.
        path = staging / name
        path.symlink_to((store.directory / name).absolute())
        done(f"passages/{name}", path)
    numbers = {"document": store.documents, "duplicate_group": store.duplicate_groups}
    for name, dtype in COLUMNS.items():
        path = staging / f"{name}.bin"
        with HashingFile(path) as file:
            file.write(np.ascontiguousarray(numbers[name], dtype=dtype).data)
        done(f"passages/{name}.bin", path)


class _Parts:
    """Cuts what is written to it into files of at most so many bytes."""

    def __init__(self, stem: Path, total: int, limit: int):
        count = -(-total // limit)
        names = [stem.name] if count == 1 else [f"{stem.name}-{n:05d}-of-{count:05d}" for n in range(count)]
        self.paths = [stem.with_name(name) for name in names]
        self.limit, self.sha256, self._number = limit, hashlib.sha256(), 0
        self._file = HashingFile(self.paths[0])

    def write(self, piece: bytes) -> None:
        self.sha256.update(piece)
        view = memoryview(piece)
        while len(view):
            room = self.limit - self._file.bytes
            if not room:
                self._file.close()
                self._number += 1
                self._file = HashingFile(self.paths[self._number])
                room = self.limit
            self._file.write(view[:room])
            view = view[room:]

    def close(self) -> None:
        self._file.close()


def _export_index(name: str, index: Saveable, staging: Path, limit: int, done: Add) -> IndexRecord:
    total = index_file_bytes(index)
    parts = _Parts(staging / f"{name}.faiss", total, limit)
    index.write(parts.write)
    parts.close()
    names = tuple(f"index/{path.name}" for path in parts.paths)
    for part, path in zip(names, parts.paths, strict=True):
        done(part, path)
    return IndexRecord(names, total, parts.sha256.hexdigest(), index.kind)
