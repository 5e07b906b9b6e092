"""An edited retriever as one without edits, ready to be saved: passages, embeddings and index numbered anew."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from datasets import Dataset, concatenate_datasets

from realm_hf.data.passages.in_memory import write_edited_passages
from realm_hf.data.passages.store import PassageStore
from realm_hf.index.base import Embeddings, SearchIndex, extendable
from realm_hf.knowledge.edited_corpus import EditedCorpus
from realm_hf.knowledge.knowledge import Knowledge
from realm_hf.knowledge.overlay import EditedEmbeddings, Overlay
from realm_hf.knowledge.saved_source import SavedSource

__all__ = ["CompactedFiles", "EditedStore"]

_ROWS_A_CHUNK = 65_536
_OWN_COLUMNS = ("duplicate_group", "embeddings")  # they say nothing of new texts, and are made again


@dataclass(frozen=True)
class EditedStore:
    """
    A [`PassageStore`] with edits, to be written as a store of its own.

    Args:
        store ([`PassageStore`]): The passages as they were.
        overlay ([`Overlay`]): What differs.
    """

    store: PassageStore
    overlay: Overlay

    def write(self, work: Path) -> None:
        """Write the passages that are left into an existing directory."""
        # Opened now: the files may be replaced by what is written, and the live retriever goes on reading them.
        _ = self.store.rows, self.store.documents, self.store.duplicate_groups
        write_edited_passages(self.store, self.overlay.live_rows, self.overlay.records, work)


@dataclass(frozen=True)
class CompactedFiles:
    """
    What an edited retriever consists of when it is saved; the fields are those of [`RetrieverFiles`].

    Args:
        passages ([`EditedStore`] or `Dataset`): n passages.
        index ([`SearchIndex`]): Over their embeddings.
        embeddings (array of shape `[n, D]`): Still to be gathered, piece by piece.
        generation_name (`str`, *optional*): The generation that was edited, and how often.
        source ([`SavedSource`], *optional*): What finds candidates instead of the index; of the passages without
            edits.
    """

    passages: EditedStore | Dataset
    index: SearchIndex
    embeddings: Embeddings
    generation_name: str | None
    source: SavedSource | None = None

    @classmethod
    def of(cls, corpus: EditedCorpus, name: str | None, source: SavedSource | None = None) -> Self:
        """
        Work the edits in, in memory; nothing is tokenized or embedded.

        Args:
            corpus ([`EditedCorpus`]): The edited passages, with what they were made from.
            name (`str`, *optional*): The generation's name.
            source ([`SavedSource`], *optional*): What finds candidates instead of the index.

        Raises:
            ValueError: If the retriever has no embeddings, or no rows can be added to its kind of index.
        """
        index, embeddings = _compact_index(corpus.original, corpus.overlay)
        return cls(_compact_passages(corpus), index, embeddings, name, source)


def _compact_passages(corpus: EditedCorpus) -> EditedStore | Dataset:
    """
    The passages that are left, in the order of their rows.

    In columns of a dataset other than `text` and `title` new and replaced passages have `None`: what stood there was
    said of another text.
    """
    overlay = corpus.overlay
    if corpus.store is not None:
        return EditedStore(corpus.store, overlay)
    rows = corpus.base.dataset
    rows = rows.remove_columns([name for name in _OWN_COLUMNS if name in rows.column_names])
    for name in rows.list_indexes():
        rows.drop_index(name)
    live = overlay.live_rows
    places = overlay.positions(live)
    records = [overlay.records[row] for row in overlay.numbers.tolist()]
    if not records:
        return rows.select(live)
    columns: dict[str, list[str | None]] = {name: [None] * len(records) for name in rows.column_names}
    columns["text"] = [record.text for record in records]
    if "title" in columns:
        columns["title"] = [record.title for record in records]
    edited = Dataset.from_dict(columns, features=rows.features)
    return concatenate_datasets([rows, edited]).select(np.where(places < 0, live, overlay.base_rows + places))


def _compact_index(served: Knowledge, overlay: Overlay) -> tuple[SearchIndex, Embeddings]:
    """
    Index and embeddings of the passages that are left.

    The index is of the same kind, with the base's centroids, codebooks and search parameters: they belong to the
    tower, which is the same.
    """
    if served.embeddings is None:
        raise ValueError(
            "Saving edits builds the index again, from embeddings, and the retriever was made without them: pass "
            "`embeddings` beside the index."
        )
    embeddings = EditedEmbeddings(served.embeddings, overlay, overlay.live_rows)
    index = extendable(served.index).emptied()
    for start in range(0, len(embeddings), _ROWS_A_CHUNK):
        index.add(embeddings[start : start + _ROWS_A_CHUNK])
    return index, embeddings
