"""Knowledge that changes without training: from what a retriever searches, and an edit, to what it searches then.

Only what was edited is embedded, by the passage tower that made the index; base index, embeddings and store stay
mapped and untouched (see [`realm_hf.knowledge.overlay`]). Nothing here changes a [`Knowledge`]: each function makes
another one, which the retriever assigns while it holds [`EDITING`]. `save_pretrained` writes a compacted copy.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from realm_hf.data.passages.in_memory import PassagesInMemory, pack_passages
from realm_hf.data.vocabulary import tokenizer_fingerprint
from realm_hf.generations.embedding import embed_passages
from realm_hf.generations.tower_check import tower_movements, tower_tolerance
from realm_hf.knowledge.edited_corpus import EditedCorpus
from realm_hf.knowledge.knowledge import Knowledge
from realm_hf.knowledge.overlay import EditedEmbeddings, EditedIndex, Overlay

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from realm_hf.knowledge.corpus import Corpus
    from realm_hf.models.modeling_embedder import RealmEmbedder

__all__ = [
    "EDITING",
    "EditCounts",
    "NewPassages",
    "add_passages",
    "edit_counts",
    "embed_new_passages",
    "live_passages",
    "remove_passages",
    "replace_passages",
]

EDITING = threading.Lock()
"""One for all retrievers, held while a few dictionaries are copied: one in each would keep them from being pickled."""
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


@dataclass(frozen=True)
class NewPassages:
    """
    Passages ready to be put in.

    Args:
        passages ([`PassagesInMemory`]): n passages, tokenized.
        vectors (`np.ndarray` of shape `[n, D]`): Their embeddings, of the type of the stored ones.
        embedder ([`RealmEmbedder`]): The passage tower that made them.
    """

    passages: PassagesInMemory
    vectors: np.ndarray
    embedder: RealmEmbedder

    def __len__(self) -> int:
        return len(self.vectors)


def edit_counts(corpus: Corpus) -> EditCounts:
    """How a corpus differs from its base."""
    if not isinstance(corpus, EditedCorpus):
        return EditCounts()
    overlay = corpus.overlay
    gone = {row for row in overlay.removed if row < overlay.base_rows}
    return EditCounts(
        added=overlay.row_count - overlay.base_rows - len(overlay.removed - gone),
        replaced=sum(row < overlay.base_rows and row not in gone for row in overlay.records),
        removed=len(gone),
    )


def embed_new_passages(
    knowledge: Knowledge,
    texts: Sequence[str],
    titles: Sequence[str],
    *,
    embedder: RealmEmbedder | None,
    tokenizer: PreTrainedTokenizerBase | None,
) -> NewPassages:
    """
    Tokenize and embed passages: the slow part of an edit, done before anything is locked or changed.

    Args:
        knowledge ([`Knowledge`]): What they shall be put into.
        texts (sequence of n `str`): Bodies. One that does not fit with its title is cut, with a warning.
        titles (sequence of n `str`): Titles; may be empty.
        embedder ([`RealmEmbedder`], *optional*): The passage tower.
        tokenizer (`PreTrainedTokenizerBase`, *optional*): That of the passages.

    Returns:
        [`NewPassages`]

    Raises:
        ValueError: If tower or tokenizer is missing or is not the one that made the index, or a text is empty.
    """
    if embedder is None:
        raise ValueError(
            "New passages must be embedded by the passage tower that made the index, and the retriever has none: "
            "set `retriever.embedder`, which is `model.embedder` as it was before fine-tuning."
        )
    if tokenizer is None:
        raise ValueError("New passages must be tokenized: set `retriever.tokenizer` to the tokenizer of the others.")
    corpus, longest = knowledge.corpus, embedder.config.max_position_embeddings
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
        _check_tower(knowledge, embedder, tokenizer, longest)
    passages = pack_passages(texts, titles, tokenizer, longest)
    vectors = embed_passages(embedder, passages)
    if knowledge.embeddings is not None:
        # Rounded as the stored ones are, so that a saved copy gives the same scores.
        vectors = vectors.astype(knowledge.embeddings.dtype)
    return NewPassages(passages, vectors, embedder)


def add_passages(knowledge: Knowledge, new: NewPassages) -> tuple[Knowledge, np.ndarray]:
    """The knowledge with new passages behind the others, and the rows that they have in it, int64 `[n]`."""
    overlay = _overlay(knowledge.corpus)
    rows = np.arange(overlay.row_count, overlay.row_count + len(new))
    return _with_passages(knowledge, overlay, rows, new), rows


def replace_passages(knowledge: Knowledge, rows: np.ndarray, new: NewPassages) -> Knowledge:
    """
    The knowledge with new passages in the place of others.

    Raises:
        IndexError: If a row is no passage, or was removed.
    """
    rows = live_passages(knowledge.corpus, rows)
    return _with_passages(knowledge, _overlay(knowledge.corpus), rows, new)


def remove_passages(knowledge: Knowledge, rows: int | Sequence[int] | np.ndarray) -> Knowledge:
    """
    The knowledge without some passages.

    Raises:
        IndexError: If a row is no passage, or was removed.
        ValueError: If a row comes twice, or no passage would be left.
    """
    rows, overlay = live_passages(knowledge.corpus, rows), _overlay(knowledge.corpus)
    if len(rows) == overlay.live_count:
        raise ValueError("All passages would be removed: a retriever needs at least one. Add others first.")
    return _overlaid(knowledge, overlay.without(rows.tolist())) if len(rows) else knowledge


def live_passages(corpus: Corpus, rows: int | Sequence[int] | np.ndarray) -> np.ndarray:
    """
    Rows as an array, int64 `[n]`.

    Raises:
        IndexError: If a row is no passage, or was removed.
        ValueError: If they are no row numbers, or one comes twice.
    """
    asked = np.atleast_1d(np.asarray(rows))
    if asked.ndim != 1 or (len(asked) and asked.dtype.kind not in "iu"):
        raise ValueError(f"Rows are {rows!r}: a row number or a sequence of them is needed.")
    asked = asked.astype(np.int64)
    overlay = _overlay(corpus)
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


def _overlay(corpus: Corpus) -> Overlay:
    """How a corpus differs from its base; an empty overlay if it is one."""
    if isinstance(corpus, EditedCorpus):
        return corpus.overlay
    return Overlay(len(corpus), len(corpus), {}, {}, frozenset(), 0)


def _with_passages(knowledge: Knowledge, overlay: Overlay, rows: np.ndarray, new: NewPassages) -> Knowledge:
    if not len(rows):
        return knowledge
    return _overlaid(knowledge, overlay.with_passages(rows.tolist(), new.passages.records, new.vectors))


def _overlaid(knowledge: Knowledge, overlay: Overlay) -> Knowledge:
    """The base of some knowledge with an overlay in front of it."""
    original = knowledge.corpus.original if isinstance(knowledge.corpus, EditedCorpus) else knowledge
    embeddings = original.embeddings
    return Knowledge(
        EditedCorpus(original, overlay),
        EditedIndex(original.index, overlay),
        None if embeddings is None else EditedEmbeddings(embeddings, overlay),
        None if original.name is None else f"{original.name}+{overlay.edits}",
    )


def _check_tower(
    served: Knowledge, embedder: RealmEmbedder, tokenizer: PreTrainedTokenizerBase, max_length: int
) -> None:
    """Refuse a tower whose embeddings are not comparable with the index's: a fine-tuned query tower, a later step."""
    dimension = embedder.config.retriever_proj_size
    if dimension != served.index.dimension:
        raise ValueError(f"The passage tower gives {dimension} dimensions, the index has {served.index.dimension}.")
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
