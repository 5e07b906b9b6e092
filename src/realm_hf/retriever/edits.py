"""Knowledge that changes without training: passages added, replaced and removed on a live retriever.

Only what was edited is embedded, by the passage tower that made the index; base index, embeddings and store stay
mapped and untouched (see [`realm_hf.knowledge.overlay`]). `save_pretrained` writes a compacted copy.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self, cast

import numpy as np

from realm_hf.data.passages.in_memory import PassagesInMemory, pack_passages
from realm_hf.data.vocabulary import tokenizer_fingerprint
from realm_hf.generations.embedding import embed_passages
from realm_hf.generations.tower_check import tower_movements, tower_tolerance
from realm_hf.knowledge.edited_corpus import EditedCorpus
from realm_hf.knowledge.files import RetrieverFiles
from realm_hf.knowledge.knowledge import Knowledge
from realm_hf.knowledge.overlay import EditedEmbeddings, EditedIndex, Overlay
from realm_hf.models.modeling_embedder import RealmEmbedder
from realm_hf.models.towers import Tower, TowerSource

if TYPE_CHECKING:
    import faiss
    from transformers import PreTrainedTokenizerBase

    from realm_hf.knowledge.corpus import Corpus

__all__ = ["EditCounts", "KnowledgeEdits"]

# One for all retrievers, held while a few dictionaries are copied: a lock in each would keep them from being pickled.
_EDITING = threading.Lock()
_PROBES = 4


@dataclass(frozen=True)
class EditCounts:
    """
    What an edited retriever has and its base has not.

    Args:
        added (`int`): Passages added and not removed again.
        replaced (`int`): Passages of the base with another text.
        removed (`int`): Passages of the base that are gone.
    """

    added: int = 0
    replaced: int = 0
    removed: int = 0


class KnowledgeEdits:
    """The part of a retriever that changes its knowledge."""

    tokenizer: PreTrainedTokenizerBase | None
    _corpus: Corpus
    _tower: Tower
    _query_tower: Tower

    def _served_index(self) -> Knowledge:
        raise NotImplementedError

    def _serve(self, served: Knowledge) -> None:
        raise NotImplementedError

    @property
    def embedder(self) -> RealmEmbedder | None:
        """The passage tower; one that was saved with the retriever is loaded when it is first asked for."""
        return self._tower.get()

    @embedder.setter
    def embedder(self, embedder: TowerSource) -> None:
        self._tower = Tower(embedder)

    @property
    def query_embedder(self) -> RealmEmbedder | None:
        """The query tower, loaded when it is first asked for; editing passages leaves it alone."""
        return self._query_tower.get()

    @query_embedder.setter
    def query_embedder(self, query_embedder: TowerSource) -> None:
        self._query_tower = Tower(query_embedder)

    @property
    def edits(self) -> EditCounts:
        """What was added, replaced and removed since the retriever was made or loaded."""
        corpus = self._corpus
        if not isinstance(corpus, EditedCorpus):
            return EditCounts()
        overlay = corpus.overlay
        gone = {row for row in overlay.removed if row < overlay.base_rows}
        return EditCounts(
            added=overlay.row_count - overlay.base_rows - len(overlay.removed - gone),
            replaced=sum(row < overlay.base_rows and row not in gone for row in overlay.records),
            removed=len(gone),
        )

    @property
    def live_rows(self) -> np.ndarray:
        """Rows that can be retrieved, int64, ascending. A saved copy numbers them anew in this order, from 0."""
        return self._corpus.live_rows

    def files(self) -> RetrieverFiles:
        """What is published of the retriever; a `ValueError` without an index, or with edits."""
        served = self._served_index()
        if isinstance(served.corpus, EditedCorpus):
            raise ValueError(
                f"The knowledge was edited ({self.edits}): save the retriever with `save_pretrained`, load the copy "
                "and publish that; its rows are numbered anew."
            )
        return RetrieverFiles(served.corpus.passages, served.index, served.embeddings, served.name)

    def snapshot(self) -> Self:
        """This retriever as it is now, which later edits and swaps do not reach; it shares all memory."""
        return copy.copy(self)

    def add_passages(self, texts: str | Sequence[str], titles: str | Sequence[str] | None = None) -> np.ndarray:
        """
        Add passages; they are found by the next search.

        Args:
            texts (`str` or sequence of `str`): Bodies. One that does not fit the passages' length with its title is
                cut, with a warning.
            titles (`str` or sequence of `str`, *optional*): Titles; empty by default.

        Returns:
            `np.ndarray`: int64, the rows that they have from now on: the next free ones.

        Raises:
            ValueError: If there is no index, passage tower (`embedder`) or tokenizer, the tower or the tokenizer is
                not the one that made the index, or a text is empty.
        """
        texts, titles = _strings(texts), None if titles is None else _strings(titles)
        prepared = self._prepare(texts, [""] * len(texts) if titles is None else titles)
        with _EDITING:
            overlay = self._overlay()
            rows = np.arange(overlay.row_count, overlay.row_count + len(texts))
            self._apply(prepared, overlay, rows)
        return rows

    def replace_passages(
        self,
        rows: int | Sequence[int] | np.ndarray,
        texts: str | Sequence[str],
        titles: str | Sequence[str] | None = None,
    ) -> None:
        """
        Give passages another text. Their rows stay what they were.

        Args:
            rows (`int` or sequence of `int`): The passages.
            texts (`str` or sequence of `str`): A body for each.
            titles (`str` or sequence of `str`, *optional*): A title for each; they keep theirs by default.

        Raises:
            IndexError: If a row is no passage, or was removed.
            ValueError: As for [`add_passages`], if there are not as many texts as rows, or a row comes twice.
        """
        rows, texts = self._live(rows), _strings(texts)
        if len(texts) != len(rows):
            raise ValueError(f"There are {len(texts)} texts for {len(rows)} rows: give one for each.")
        prepared = self._prepare(texts, self._corpus.titles(rows) if titles is None else _strings(titles))
        with _EDITING:
            self._live(rows)  # another thread may have removed one
            self._apply(prepared, self._overlay(), rows)

    def remove_passages(self, rows: int | Sequence[int] | np.ndarray) -> None:
        """
        Remove passages: no search returns them any more, and their rows are not given out again.

        Their texts can still be read by row, for whoever has retrieved them before.

        Args:
            rows (`int` or sequence of `int`): The passages.

        Raises:
            IndexError: If a row is no passage, or was removed.
            ValueError: If a row comes twice, no passage would be left, or there is no index.
        """
        with _EDITING:
            rows, overlay = self._live(rows), self._overlay()
            if len(rows) == overlay.live_count:
                raise ValueError("All passages would be removed: a retriever needs at least one. Add others first.")
            if len(rows):
                self._overlaid(overlay.without(rows.tolist()))

    def _prepare(self, texts: Sequence[str], titles: Sequence[str]) -> _Prepared:
        """Tokenize and embed, before anything is locked or changed."""
        served, embedder, tokenizer = self._served_index(), self.embedder, self.tokenizer
        if embedder is None:
            raise ValueError(
                "New passages must be embedded by the passage tower that made the index, and the retriever has none: "
                "set `retriever.embedder`, which is `model.embedder` as it was before fine-tuning."
            )
        if tokenizer is None:
            raise ValueError(
                "New passages must be tokenized: set `retriever.tokenizer` to the tokenizer of the others."
            )
        corpus, longest = served.corpus, embedder.config.max_position_embeddings
        if corpus.store is not None:
            made_by = tokenizer_fingerprint(tokenizer)
            if made_by != corpus.store.tokenizer_fingerprint:
                raise ValueError(
                    f"The tokenizer (fingerprint {made_by}) is not the one that made the passages "
                    f"({corpus.store.tokenizer_fingerprint}): set `retriever.tokenizer` to that one."
                )
            longest = min(longest, corpus.store.max_length)
        elif "title" not in corpus.columns and any(titles):
            raise ValueError("These passages have no column `title`: leave `titles` out, or add the column to them.")
        if not isinstance(corpus, EditedCorpus):
            _check_tower(served, embedder, tokenizer, longest)
        passages = pack_passages(texts, titles, tokenizer, longest)
        vectors = embed_passages(embedder, passages)
        if served.embeddings is not None:
            # Rounded as the stored ones are, so that a saved copy gives the same scores.
            vectors = vectors.astype(served.embeddings.dtype)
        return _Prepared(passages, vectors, embedder)

    def _apply(self, prepared: _Prepared, overlay: Overlay, rows: np.ndarray) -> None:
        if prepared.embedder is not self.embedder:
            raise ValueError("The passage tower was replaced while passages were embedded: edit them again.")
        if len(rows):
            self._overlaid(overlay.with_passages(rows.tolist(), prepared.passages.records, prepared.vectors))

    def _overlay(self) -> Overlay:
        corpus = self._served_index().corpus
        if isinstance(corpus, EditedCorpus):
            return corpus.overlay
        return Overlay(len(corpus), len(corpus), {}, {}, frozenset(), 0)

    def _overlaid(self, overlay: Overlay) -> None:
        """Serve the base with this overlay, in one assignment."""
        served = self._served_index()
        original = served.corpus.original if isinstance(served.corpus, EditedCorpus) else served
        embeddings = original.embeddings
        self._serve(
            Knowledge(
                EditedCorpus(original, overlay),
                cast("faiss.Index", EditedIndex(original.index, overlay)),
                None if embeddings is None else cast("np.ndarray", EditedEmbeddings(embeddings, overlay)),
                None if original.name is None else f"{original.name}+{overlay.edits}",
            )
        )

    def _live(self, rows: int | Sequence[int] | np.ndarray) -> np.ndarray:
        """The rows as an array; an error unless they are passages, each once, that were not removed."""
        asked = np.atleast_1d(np.asarray(rows))
        if asked.ndim != 1 or (len(asked) and asked.dtype.kind not in "iu"):
            raise ValueError(f"Rows are {rows!r}: a row number or a sequence of them is needed.")
        asked = asked.astype(np.int64)
        overlay = self._overlay()
        wrong = asked[(asked < 0) | (asked >= overlay.row_count)]
        if len(wrong):
            what = "is the null passage, which cannot be edited" if wrong[0] == -1 else "is out of range"
            raise IndexError(f"Passage row {wrong[0]} {what}: rows are 0 to {overlay.row_count - 1}.")
        gone = [row for row in asked.tolist() if row in overlay.removed]
        if gone:
            raise IndexError(f"Passage row {gone[0]} was removed: add its text with `add_passages`.")
        if len(np.unique(asked)) != len(asked):
            raise ValueError(f"A row comes twice in {asked.tolist()}: give each once.")
        return asked


@dataclass(frozen=True)
class _Prepared:
    """Passages ready to be put in: tokenized, and embedded `[n, D]` by that tower."""

    passages: PassagesInMemory
    vectors: np.ndarray
    embedder: RealmEmbedder


def _check_tower(
    served: Knowledge, embedder: RealmEmbedder, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> None:
    """Refuse a tower whose embeddings are not comparable with the index's: a fine-tuned query tower, a later step."""
    dimension = embedder.config.retriever_proj_size
    if dimension != served.index.d:
        raise ValueError(f"The passage tower gives {dimension} dimensions, the index has {served.index.d}.")
    if served.embeddings is None:
        return
    rows = np.unique(np.linspace(0, len(served.corpus) - 1, _PROBES).astype(np.int64))
    passages = pack_passages(served.corpus.texts(rows), served.corpus.titles(rows), tokenizer, max_length)
    moved = tower_movements(embedder, passages, served.embeddings[rows])
    # The median: a title that was cut, or a splitter of the user's own, may give some passages other wordpieces.
    if np.median(moved) > tower_tolerance():
        raise ValueError(
            f"The passage tower (`retriever.embedder`) is not the one that made the index: it moves the embeddings of "
            f"rows {rows.tolist()} by {np.round(moved, 2).tolist()} of their length. Give the tower that the index "
            "was built with; fine-tuning moves the query tower only."
        )


def _strings(values: str | Sequence[str]) -> Sequence[str]:
    return [values] if isinstance(values, str) else list(values)
