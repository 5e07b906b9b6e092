"""The sentence store: sentences with salient spans on disk, read by row, with views for training and held-out ones."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, overload

import numpy as np
from datasets import Dataset, load_from_disk

from realm_hf.data.flat_arrays import map_flat
from realm_hf.storage.files import check_files, read_description

FORMAT_VERSION = 2
"""Of the fingerprint of what was built in several ranges; the files are those of format 1."""
_ROW_NUMBERS = np.dtype(np.int64)
_VIEWS = {"train": "train_rows.bin", "heldout": "heldout_rows.bin"}


@dataclass(frozen=True)
class Sentence:
    """
    One sentence with its salient spans.

    Args:
        text (`str`): As it stands in its document.
        input_ids (`np.ndarray` of shape `[T]`, int64): Its wordpieces, without special tokens, not cut to Lq.
        spans (`np.ndarray` of shape `[S, 2]`, int64): Salient spans in wordpieces, end exclusive, in order, S > 0.
        labels (`tuple[str, ...]`): The tagger's label of each span.
        document (`int`): Row of its document.
    """

    text: str
    input_ids: np.ndarray
    spans: np.ndarray
    labels: tuple[str, ...]
    document: int


class SentenceStore(Sequence[Sentence]):
    """
    Sentences with salient spans, read from disk as they are asked for. Make one with [`build_sentences`].

    Args:
        directory (`str` or `Path`): A directory that [`build_sentences`] wrote.
        indices (`np.ndarray`, *optional*): Rows that this view shows; all by default.

    Attributes:
        fingerprint (`str`): Name of the content: wordpieces, spans, split and tokenizer.
        tokenizer_fingerprint (`str`): See [`~realm_hf.data.tokenizer_fingerprint`].
        max_query_length (`int`): Lq that sentences without a maskable span were skipped for.
        statistics (`dict[str, int]`): Counts of the build, skips by reason included.
        rows (`Dataset`): All rows, whatever the view.
    """

    def __init__(self, directory: str | Path, indices: np.ndarray | None = None) -> None:
        self.directory = Path(directory)
        self.info = read_description(
            self.directory / "sentences.json",
            FORMAT_VERSION,
            "sentences",
            "build them with `build_sentences`",
            oldest=1,
        )
        self.fingerprint: str = self.info["fingerprint"]
        self.tokenizer_fingerprint: str = self.info["tokenizer_fingerprint"]
        self.max_query_length: int = self.info["max_query_length"]
        self.statistics: dict[str, int] = self.info["statistics"]
        self._indices = None if indices is None else np.asarray(indices, np.int64)
        self._side: str | None = None

    @classmethod
    def load(cls, directory: str | Path, verify: bool = False) -> "SentenceStore":
        """
        Open a store; with `verify`, compare the sha256 of all files first.

        Raises:
            FileNotFoundError: If there is no store.
            ValueError: If files are missing, cut, or (with `verify`) changed.
        """
        store = cls(directory)
        if verify:
            check_files(store.directory, store.info["files"], verify=True)
        return store

    def __reduce__(self) -> tuple[Callable[..., "SentenceStore"], tuple[Any, ...]]:
        if self._side is not None:
            return _open_view, (type(self), self.directory, self._side)
        return type(self), (self.directory, self._indices)

    @property
    def indices(self) -> np.ndarray:
        """Rows of this view, int64."""
        return np.arange(self.info["count"]) if self._indices is None else self._indices

    @cached_property
    def rows(self) -> Dataset:
        """All rows as a memory-mapped `datasets.Dataset`."""
        return load_from_disk(str(self.directory / "rows"))

    @cached_property
    def train(self) -> "SentenceStore":
        """The sentences of this view whose documents are not held out."""
        return self._view("train")

    @cached_property
    def heldout(self) -> "SentenceStore":
        """The sentences of this view whose documents are held out, for loss and retrieval utility."""
        return self._view("heldout")

    def select(self, indices: np.ndarray) -> "SentenceStore":
        """A view of some sentences of this view."""
        return type(self)(self.directory, self.indices[indices])

    def row_of(self, index: int) -> int:
        """The row of the store that is at a position of this view."""
        return int(index) % len(self) if self._indices is None else int(self._indices[index])

    def __len__(self) -> int:
        return int(self.info["count"]) if self._indices is None else len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Sentence: ...

    @overload
    def __getitem__(self, index: slice) -> "SentenceStore": ...

    def __getitem__(self, index: int | slice) -> "Sentence | SentenceStore":
        """The sentence at a position of this view, or a view for a slice."""
        if isinstance(index, slice):
            return self.select(np.arange(len(self))[index])
        if not -len(self) <= index < len(self):
            raise IndexError(f"sentence {index} is out of range for {len(self)} sentences")
        row = self.rows[self.row_of(index)]
        return Sentence(
            text=row["text"],
            input_ids=np.array(row["input_ids"], np.int64),
            spans=np.array([row["span_starts"], row["span_ends"]], np.int64).T.reshape(-1, 2),
            labels=tuple(row["span_labels"]),
            document=row["document"],
        )

    def _view(self, side: str) -> "SentenceStore":
        if self._indices is None and _VIEWS[side] in self.info["files"]:
            return _open_view(type(self), self.directory, side)
        # A view of a view, or a store from before the numbers were files.
        flags = self.rows.data.column("heldout").to_numpy()[self.indices]
        return self.select(np.flatnonzero(flags == (side == "heldout")))


def _open_view(kind: type[SentenceStore], directory: Path, side: str) -> SentenceStore:
    """A view whose row numbers are mapped; it pickles as its name."""
    view = kind(directory, map_flat(directory / _VIEWS[side], _ROW_NUMBERS))
    view._side = side
    return view


def write_views(rows: Dataset, work: Path) -> None:
    """
    Write the row numbers of both views of a store, which all processes of a machine then map from one copy.

    Args:
        rows (`Dataset`): All rows of the store.
        work (`Path`): Its directory.
    """
    flags = rows.data.column("heldout").to_numpy()
    for side, name in _VIEWS.items():
        np.flatnonzero(flags == (side == "heldout")).astype(_ROW_NUMBERS).tofile(work / name)
