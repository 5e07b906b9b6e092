"""Which salient spans of the sentences can be read elsewhere: a mask that no passage answers teaches no retrieval.

Most of what is masked in an article is said once. Here each span is looked up in all passages, as whole words, and
those passages are counted that hold it and not the sentence itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from realm_hf.data.flat_arrays import RaggedArray
from realm_hf.data.passages.store import PassageStore
from realm_hf.data.passages.words import Words, folded
from realm_hf.data.sentences.store import SentenceStore
from realm_hf.progress import progress_bar
from realm_hf.storage.files import replacement

__all__ = ["RecurringMasks", "check_masks", "find_recurring_masks"]

_FORMAT = 1
_WORDS_AT_ONCE = 4_000_000


@dataclass(frozen=True)
class RecurringMasks:
    """
    How many passages hold each salient span of a sentence store.

    Args:
        passages (`str`): Fingerprint of the passages.
        sentences (`str`): Fingerprint of the sentences.
        offsets (`np.ndarray`, int64 `[S + 1]`): Those of sentence `s` are `offsets[s]` to `offsets[s + 1]`.
        counts (`np.ndarray`, int32 `[T]`): Passages that hold the span and would not be excluded for its sentence; one
            more than the limit stands for all that are above it.
        most_passages (`int`): The limit.
    """

    passages: str
    sentences: str
    offsets: np.ndarray
    counts: np.ndarray
    most_passages: int

    def kept(self, row: int) -> np.ndarray:
        """Bool `[spans]`: the spans of a row of the store that 1 to `most_passages` passages hold."""
        counts = self.counts[self.offsets[row] : self.offsets[row + 1]]
        return (counts >= 1) & (counts <= self.most_passages)

    @property
    def share(self) -> float:
        """The share of all spans that is kept."""
        return float(((self.counts >= 1) & (self.counts <= self.most_passages)).mean()) if len(self.counts) else 0.0

    def save(self, path: Path) -> None:
        """Write them into one `.npz` file, which is whole or not there."""
        with replacement(path) as temporary, temporary.open("wb") as file:
            np.savez(file, format=_FORMAT, **vars(self))

    @classmethod
    def load(cls, path: Path, passages: PassageStore, sentences: SentenceStore) -> RecurringMasks:
        """
        Read what [`RecurringMasks.save`] wrote.

        Raises:
            ValueError: If it is of other passages or sentences, or of another version.
        """
        with np.load(path, allow_pickle=False) as found:
            made_of = (str(found["passages"]), str(found["sentences"]), int(found["format"]))
            wanted = (passages.fingerprint, sentences.fingerprint, _FORMAT)
            if made_of != wanted:
                raise ValueError(
                    f"{path} was made of passages, sentences and format {made_of}, these are {wanted}: remove the "
                    "file and find the recurring masks again."
                )
            return cls(*made_of[:2], found["offsets"], found["counts"], int(found["most_passages"]))


def find_recurring_masks(
    sentences: SentenceStore,
    passages: PassageStore,
    tokenizer: PreTrainedTokenizerBase,
    *,
    most_passages: int = 50,
) -> RecurringMasks:
    """
    Count for each salient span the passages that answer it.

    Args:
        sentences ([`SentenceStore`]): All of its rows are looked at, whatever the view.
        passages ([`PassageStore`]): The knowledge corpus.
        tokenizer (`PreTrainedTokenizerBase`): The one that made both.
        most_passages (`int`, *optional*, defaults to 50): A span that more passages hold says nothing of which to
            retrieve.

    Returns:
        [`RecurringMasks`]

    Raises:
        ValueError: Sentences and passages were made by different tokenizers.
    """
    if sentences.tokenizer_fingerprint != passages.tokenizer_fingerprint:
        raise ValueError(
            f"The sentences were made by tokenizer {sentences.tokenizer_fingerprint}, the passages by "
            f"{passages.tokenizer_fingerprint}: build one of them again."
        )
    spans = _Spans.of(sentences, tokenizer)
    bodies = Words.of(passages.body_tokens, tokenizer)
    counts = np.zeros(len(spans.sizes), np.int32)
    limit = most_passages + 1
    bar = progress_bar(int((spans.sizes > 0).sum()), "finding recurring masks", "spans")
    for size in np.unique(spans.sizes[spans.sizes > 0]).tolist():
        asked = np.flatnonzero(spans.sizes == size)
        keys, which = np.unique(spans.keys[asked], return_inverse=True)
        offsets, rows = _holders(bodies, keys, size)
        for number, key in zip(asked.tolist(), which.tolist(), strict=True):
            held_by = rows[offsets[key] : offsets[key + 1]]
            if not len(held_by):
                continue
            # Passages of the sentence itself are few: among so many more they change nothing.
            own = held_by[: 4 * limit]
            excluded = passages.contains(spans.sentence(number, sentences.max_query_length - 2), own)
            counts[number] = min(len(held_by) - int(excluded.sum()), limit)
        bar.update(len(asked))
    bar.close()
    return RecurringMasks(passages.fingerprint, sentences.fingerprint, spans.offsets, counts, most_passages)


def check_masks(masking: str, masks: RecurringMasks | None, sentences: SentenceStore, passages: PassageStore) -> None:
    """
    Refuse recurring masks of others, and `masking="recurring"` without any.

    Raises:
        ValueError: See above; or masks were given, and would not be used.
    """
    if (masking == "recurring") != (masks is not None):
        raise ValueError(
            f"masking is {masking!r} and recurring masks were {'not ' if masks is None else ''}given: make them by "
            "`find_recurring_masks(sentences, passages, tokenizer)`, and give both or neither."
        )
    if masks is not None and (masks.sentences, masks.passages) != (sentences.fingerprint, passages.fingerprint):
        raise ValueError(
            f"The recurring masks are of sentences {masks.sentences} and passages {masks.passages}, the trainer has "
            f"{sentences.fingerprint} and {passages.fingerprint}: find them again."
        )


@dataclass(frozen=True)
class _Spans:
    """All salient spans: words of each (0 where it is no run of whole words), their hash, and the sentence of each."""

    sizes: np.ndarray
    keys: np.ndarray
    offsets: np.ndarray
    sentence_of: np.ndarray
    texts: RaggedArray

    @classmethod
    def of(cls, sentences: SentenceStore, tokenizer: PreTrainedTokenizerBase) -> _Spans:
        table = sentences.rows.data
        ids, ids_offsets = _lists(table.column("input_ids"))
        texts = RaggedArray.from_flat(ids, ids_offsets)
        words = Words.of(texts, tokenizer)
        starts, offsets = _lists(table.column("span_starts"))
        ends, _ = _lists(table.column("span_ends"))
        sentence_of = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
        # Words as places in all wordpieces, to find the one that begins where a span does.
        begins = words.starts + ids_offsets[words.rows]
        stops = begins + words.lengths
        first = np.searchsorted(begins, starts + ids_offsets[sentence_of])
        last = np.searchsorted(stops, ends + ids_offsets[sentence_of])
        inside = (first < len(begins)) & (last < len(begins))
        whole = np.zeros(len(starts), bool)
        at = np.flatnonzero(inside)
        whole[at] = (begins[first[at]] == (starts + ids_offsets[sentence_of])[at]) & (
            stops[last[at]] == (ends + ids_offsets[sentence_of])[at]
        )
        sizes = np.where(whole, last - first + 1, 0)
        keys = np.zeros(len(starts), np.uint64)
        for size in np.unique(sizes[sizes > 0]).tolist():
            some = np.flatnonzero(sizes == size)
            keys[some] = folded(words.hashes, first[some], size)
        return cls(sizes, keys, offsets, sentence_of, texts)

    def sentence(self, span: int, longest: int) -> np.ndarray:
        """Wordpieces of the sentence that a span stands in, as far as a query holds them."""
        return self.texts[int(self.sentence_of[span])][:longest]


def _lists(column: object) -> tuple[np.ndarray, np.ndarray]:
    """Values and offsets, both int64, of an Arrow column of lists."""
    chunks = column.chunks  # type: ignore[attr-defined]
    values = [chunk.flatten().to_numpy(zero_copy_only=False) for chunk in chunks]
    lengths = [chunk.value_lengths().to_numpy(zero_copy_only=False) for chunk in chunks]
    empty = np.zeros(0, np.int64)
    flat = np.concatenate([empty, *values]).astype(np.int64)
    return flat, np.concatenate([[0], np.cumsum(np.concatenate([empty, *lengths]))]).astype(np.int64)


def _holders(words: Words, keys: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Passages that hold each of the sorted keys of `size` words: offsets `[K + 1]` and rows, ascending a key."""
    found_keys, found_rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for start in range(0, max(0, len(words.rows) - size + 1), _WORDS_AT_ONCE):
        first = np.arange(start, min(start + _WORDS_AT_ONCE, len(words.rows) - size + 1))
        first = first[words.rows[first] == words.rows[first + size - 1]]
        key = folded(words.hashes, first, size)
        place = np.minimum(np.searchsorted(keys, key), len(keys) - 1)
        hit = keys[place] == key
        found_keys.append(place[hit])
        found_rows.append(words.rows[first[hit]])
    pairs = np.unique(np.stack([np.concatenate(found_keys), np.concatenate(found_rows)]), axis=1)
    return np.searchsorted(pairs[0], np.arange(len(keys) + 1)), pairs[1]
