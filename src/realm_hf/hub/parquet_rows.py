"""The rows of a publication's Parquet files, in pieces of bounded size, none of them believed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from realm_hf.hub.export import hub_features
from realm_hf.hub.manifest import ShardRecord
from realm_hf.hub.parquet_pages import LARGEST_GROUP, read_pages, refuse_explosion
from realm_hf.untrusted.checks import HubArtefactError, human_bytes

__all__ = ["LONGEST_TEXT", "published_rows"]

LONGEST_TEXT = 16 << 20
"""Bytes of a title or a passage; one of 288 wordpieces has about 1.5 kB."""
_PIECE = 64 << 20  # bytes of the rows that are in memory at once, with texts written out
_MOST_ROWS = 1000
_TEXTS = ("title", "text")


def published_rows(shard: ShardRecord, path: Path, dimension: int) -> Iterator[pa.Table]:
    """
    The rows of one Parquet file, after its headers were compared with the description.

    Memory holds the pages of a row group (at most 1 GiB) and 64 MiB of rows beside them, or one row if it is larger.
    All rows together have at most 64 MiB, and 64 times the file's bytes beside them.

    Args:
        shard ([`ShardRecord`]): What the description says of it.
        path (`Path`): The file.
        dimension (`int`): Numbers of an embedding.

    Yields:
        `pa.Table`: The next rows: `title` and `text` as large strings, `embeddings`.

    Raises:
        HubArtefactError: If the file has other columns or rows, or would explode.
        pa.ArrowException: If it is damaged.
    """
    size = path.stat().st_size
    with pq.ParquetFile(path) as file:
        dictionaries = _checked(file, shard, path, dimension)
    found = decoded = 0
    # What is a place in a dictionary stays one, until it is known how much text that would be.
    with pq.ParquetFile(path, read_dictionary=dictionaries) as file:
        rows = max(1, min(_MOST_ROWS, _PIECE // (4 * dimension)))
        for group in range(file.num_row_groups):
            for batch in file.iter_batches(rows, row_groups=[group]):
                sizes = _row_bytes(batch, shard.file) + 4 * dimension
                found += len(batch)
                decoded += int(sizes.sum())
                refuse_explosion(decoded, size, shard.file)
                table = pa.Table.from_batches([batch])
                for start, stop in _pieces(sizes):
                    yield _plain(table.slice(start, stop - start))
    if found != shard.rows:
        raise HubArtefactError(f"{shard.file} holds {found} rows, the description says {shard.rows}.")


def _checked(file: pq.ParquetFile, shard: ShardRecord, path: Path, dimension: int) -> list[str]:
    """Which text columns have dictionaries, if footer and page headers fit the description."""
    expected = hub_features(dimension).arrow_schema
    if not file.schema_arrow.equals(expected):
        raise HubArtefactError(
            f"{shard.file} has columns {file.schema_arrow.names} of types {file.schema_arrow.types}, expected are "
            f"title, text and embeddings of dimension {dimension}."
        )
    if file.metadata.num_rows != shard.rows:
        raise HubArtefactError(f"{shard.file} has {file.metadata.num_rows} rows, the description says {shard.rows}.")
    size, decoded = path.stat().st_size, 4 * dimension * shard.rows
    dictionaries = set()
    with path.open("rb") as content:
        for number in range(file.num_row_groups):
            group = file.metadata.row_group(number)
            if group.num_columns != len(expected):
                raise HubArtefactError(f"{shard.file} has a row group of {group.num_columns} columns: it is damaged.")
            columns = [read_pages(content, size, group.column(place), shard.file) for place in range(len(expected))]
            if columns[2].values != group.num_rows * dimension:
                raise HubArtefactError(
                    f"The rows of {shard.file} lack embeddings of {dimension} numbers: {columns[2].values} numbers "
                    f"are in {group.num_rows} rows."
                )
            if any(column.values != group.num_rows for column in columns[:2]):
                raise HubArtefactError(f"{shard.file} has another number of texts than of rows: it is damaged.")
            held = sum(column.bytes for column in columns)
            if held > LARGEST_GROUP:
                raise HubArtefactError(f"{shard.file} has a row group of more than {human_bytes(LARGEST_GROUP)}.")
            decoded += held
            refuse_explosion(decoded, size, shard.file)
            dictionaries |= {name for name, column in zip(_TEXTS, columns, strict=False) if column.has_dictionary}
    return sorted(dictionaries)


def _row_bytes(batch: pa.RecordBatch, where: str) -> np.ndarray:
    """Bytes of each row's title and text, int64, without writing out what is in a dictionary."""
    total = np.zeros(len(batch), np.int64)
    for name in _TEXTS:
        column = batch[name]
        if isinstance(column, pa.DictionaryArray):
            lengths = pc.binary_length(column.dictionary).take(column.indices)
        else:
            lengths = pc.binary_length(column)
        counted = lengths.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)
        if len(counted) and counted.max() > LONGEST_TEXT:
            raise HubArtefactError(
                f"{where} has a {name} of {human_bytes(counted.max())}; at most {human_bytes(LONGEST_TEXT)} are read."
            )
        total += counted
    return total


def _pieces(sizes: np.ndarray) -> Iterator[tuple[int, int]]:
    """Ranges of rows of at most `_PIECE` bytes, or of one row."""
    ends = np.cumsum(sizes)
    start = 0
    while start < len(sizes):
        before = ends[start - 1] if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + _PIECE, side="right")))
        yield start, stop
        start = stop


def _plain(table: pa.Table) -> pa.Table:
    texts = [table[name].cast(pa.large_string()).fill_null("") for name in _TEXTS]
    return pa.table([*texts, table["embeddings"]], names=[*_TEXTS, "embeddings"])
