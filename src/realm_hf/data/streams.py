"""Documents that are read as they come, in ranges: for a corpus that shall not be copied before it is prepared.

Of a stream one range is in memory, and nothing is written before it is packed or tagged. Each process that works on it
reads the stream for itself and passes over the ranges that others have. Where all that the stream is made of can be
taken up again exactly, the state behind each range is kept, so that whoever comes later skips whole files unread.

A first pass that counts the documents was rejected, because it would fetch everything twice.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, TypeAlias

import pyarrow as pa
from datasets import Dataset, Features, IterableDataset, Value

from realm_hf.storage.files import json_sha256, read_json, write_json

__all__ = ["DocumentStream", "Rows"]

Rows: TypeAlias = IterableDataset | Iterable[Mapping[str, Any]]
"""A streaming dataset, or rows that can be iterated over again and again, such as a list of dictionaries."""

_HEAD = 64
"""Documents by which a stream is known again, beside what `datasets` says of it."""
_EXACT = frozenset(
    {
        "ArrowExamplesIterable",
        "ExamplesIterable",
        "RebatchedArrowExamplesIterable",
        "SelectColumnsIterable",
        "SkipExamplesIterable",
        "TakeExamplesIterable",
    }
)
"""What a streaming dataset may be made of to go on exactly where its state was taken: a shuffling buffer does not."""


class DocumentStream:
    """
    A stream of documents that is read in pieces, by any number of processes.

    Args:
        rows (`IterableDataset` or iterable of mappings): The documents.
        columns (sequence of `str`): The columns that are needed.

    Raises:
        TypeError: `rows` can be read only once, or does not hold rows.
        ValueError: There are no rows, or they lack a column, or a column does not hold texts.
    """

    def __init__(self, rows: Rows, columns: Sequence[str]):
        if isinstance(rows, Iterator):
            raise TypeError(
                f"documents are a {type(rows).__name__}, which can be read only once: give a "
                "`datasets.IterableDataset.from_generator(function)`"
            )
        self.columns = list(columns)
        if isinstance(rows, IterableDataset):
            rows = rows.with_format(None)
            if set(self.columns) <= set(rows.column_names or []):
                rows = rows.select_columns(self.columns)
        self.rows = rows
        self.position = 0
        """Documents before the place where this process is."""
        self._reader: Iterator[Mapping[str, Any]] | None = None
        head = list(islice(iter(rows), _HEAD))
        if not head:
            raise ValueError("the corpus is empty (0 documents): check the source and the split")
        if not isinstance(head[0], Mapping):
            raise TypeError(f"documents must be rows with columns (mappings), not {type(head[0]).__name__}")
        self.fingerprint = self._fingerprint_of(self._dataset(head, 0))

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "position": 0}  # each process reads for itself

    def read(self, first: int, count: int, states: Path) -> Dataset:
        """
        Some documents: fewer where the stream ends, and none behind its end.

        Args:
            first (`int`): Number of the first.
            count (`int`): How many.
            states (`Path`): Where the state of the stream is kept behind what somebody has read.
        """
        reader = self._reader_before(first, states)
        while self.position < first and next(reader, None) is not None:
            self.position += 1
        rows = list(islice(reader, count))
        self.position += len(rows)
        if len(rows) == count and isinstance(self.rows, IterableDataset):
            state = self.rows.state_dict()
            if _types(state) <= _EXACT:
                states.mkdir(exist_ok=True)
                write_json(states / f"{self.position}.json", state, durable=False)
        return self._dataset(rows, first)

    def _reader_before(self, first: int, states: Path) -> Iterator[Mapping[str, Any]]:
        """The reader of this process, or a new one from a place that is nearer to the document."""
        known = max((int(path.stem) for path in states.glob("*.json") if int(path.stem) <= first), default=0)
        if self._reader is None or self.position > first or self.position < known:
            if isinstance(self.rows, IterableDataset):
                self.rows.load_state_dict(read_json(states / f"{known}.json") if known else None)
            self._reader, self.position = iter(self.rows), known
        return self._reader

    def _dataset(self, rows: Sequence[Mapping[str, Any]], first: int) -> Dataset:
        texts = {column: self._texts(rows, column, first) for column in self.columns}
        return Dataset.from_dict(texts, Features({column: Value("large_string") for column in self.columns}))

    def _texts(self, rows: Sequence[Mapping[str, Any]], column: str, first: int) -> pa.Array:
        for number, row in enumerate(rows, first):
            if column not in row:
                raise ValueError(
                    f"document {number} has no column {column!r}; it has {list(row)}: name the right ones with "
                    "title_column (None for no title) and text_column"
                )
        try:
            return pa.array([row[column] for row in rows], pa.large_string())
        except (pa.ArrowTypeError, pa.ArrowInvalid) as error:
            raise ValueError(
                f"column {column!r} of the documents {first} to {first + len(rows) - 1} does not hold texts only "
                f"({error}): name the right one with title_column (None for no title) and text_column, or cast it"
            ) from error

    def _fingerprint_of(self, head: Dataset) -> str:
        """The same in every process: of what `datasets` knows of the source, and of the first documents."""
        text = hashlib.sha256(json.dumps(head.to_dict()).encode()).hexdigest()
        source: list[Any] = []
        if isinstance(self.rows, IterableDataset):
            info = self.rows.info
            source = [info.dataset_name, info.config_name, str(info.version), info.download_checksums]
        return json_sha256({"source": source, "columns": self.columns, "head": text})[:16]


def _types(state: Any) -> set[str]:
    """The kinds of all parts of a state of `datasets`."""
    if isinstance(state, Mapping):
        own = {state["type"]} if "type" in state else set()
        return own.union(*(_types(value) for value in state.values()))
    return set().union(*(_types(value) for value in state)) if isinstance(state, list) else set()
