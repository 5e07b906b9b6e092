"""Spans that several passages of one article share (Ram et al., 2022, "Spider"): found by counting, without a tagger.

What an article says twice can be asked of its one passage and read in the other: the spans teach an encoder to copy
(masked language modelling over two passages) and a retriever to find (the other passage is the positive).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from realm_hf.data.passages.store import PassageStore
from realm_hf.data.passages.words import Words, folded
from realm_hf.progress import progress_bar
from realm_hf.storage.files import replacement

__all__ = ["RecurringSpans", "articles_of", "find_recurring_spans"]

_FORMAT = 1
_PIECES_AT_ONCE = 4_000_000  # wordpieces of the articles that are counted together: some 400 MB of working memory


@dataclass(frozen=True)
class RecurringSpans:
    """
    Spans with the places at which they stand; span `s` has the places `offsets[s]` to `offsets[s + 1]`.

    Args:
        passages (`str`): Fingerprint of the passages.
        offsets (`np.ndarray`, int64 `[S + 1]`): Where the places of each span begin; each has at least two.
        rows (`np.ndarray`, int64 `[P]`): Passage of each place; no span has two places in one passage.
        starts (`np.ndarray`, int64 `[P]`): First wordpiece within the body.
        lengths (`np.ndarray`, int64 `[P]`): Wordpieces; equal for all places of a span.
    """

    passages: str
    offsets: np.ndarray
    rows: np.ndarray
    starts: np.ndarray
    lengths: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def _by_row(self) -> tuple[np.ndarray, np.ndarray]:
        order = np.argsort(self.rows, kind="stable")
        return order, self.rows[order]

    @cached_property
    def _span_of_place(self) -> np.ndarray:
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))

    def places_in(self, row: int) -> np.ndarray:
        """The places in one passage, int64 `[n]`, n >= 0."""
        order, rows = self._by_row
        return order[slice(*np.searchsorted(rows, [row, row + 1]))]

    def others(self, place: int) -> np.ndarray:
        """The other places of the same span, int64 `[n]`, n >= 1."""
        span = self._span_of_place[place]
        places = np.arange(self.offsets[span], self.offsets[span + 1])
        return places[places != place]

    def save(self, path: Path) -> None:
        """Write them into one `.npz` file, which is whole or not there."""
        with replacement(path) as temporary, temporary.open("wb") as file:
            np.savez(
                file,
                format=_FORMAT,
                passages=self.passages,
                offsets=self.offsets,
                rows=self.rows,
                starts=self.starts,
                lengths=self.lengths,
            )

    @classmethod
    def load(cls, path: Path, passages: PassageStore) -> RecurringSpans:
        """
        Read what [`RecurringSpans.save`] wrote.

        Raises:
            ValueError: If it is of other passages, or of another version.
        """
        with np.load(path, allow_pickle=False) as found:
            made_of, version = str(found["passages"]), int(found["format"])
            if version != _FORMAT or made_of != passages.fingerprint:
                raise ValueError(
                    f"{path} holds recurring spans of passages {made_of} (format {version}), these are "
                    f"{passages.fingerprint} (format {_FORMAT}): remove the file and find them again."
                )
            return cls(made_of, *(found[name] for name in ("offsets", "rows", "starts", "lengths")))


def articles_of(passages: PassageStore) -> np.ndarray:
    """
    A number for the article of each passage, int64 `[N]`, ascending.

    Passages of one document are of one article; of ready-made passages, those in a row that have one title.
    """
    titles = passages.rows.data.column("title").combine_chunks().dictionary_encode()
    title = titles.indices.to_numpy()
    nameless = np.array([not name for name in titles.dictionary.to_pylist()])[title]
    documents = passages.documents
    same = (documents[1:] == documents[:-1]) | ((title[1:] == title[:-1]) & ~nameless[1:])
    return np.concatenate([[0], np.cumsum(~same)])


def find_recurring_spans(
    passages: PassageStore,
    tokenizer: PreTrainedTokenizerBase,
    *,
    shortest: int = 2,
    longest: int = 10,
    most_passages: int = 50,
) -> RecurringSpans:
    """
    Find the spans of whole words that two or more passages of one article share.

    A span begins and ends with a word that is no punctuation and not one of the corpus's commonest (more than one word
    in a thousand: "the", "of"), and a place that lies within a longer recurring span is left out (Ram et al., 2022,
    section 3.1).

    Args:
        passages (`PassageStore`): The corpus.
        tokenizer (`PreTrainedTokenizerBase`): The one that made the passages.
        shortest (`int`, *optional*, defaults to 2): Least words of a span.
        longest (`int`, *optional*, defaults to 10): Most words of a span.
        most_passages (`int`, *optional*, defaults to 50): A span that more passages of an article share is left out.

    Returns:
        [`RecurringSpans`]
    """
    if not 1 <= shortest <= longest:
        raise ValueError(f"shortest is {shortest} and longest {longest} words: 1 <= shortest <= longest is needed.")
    words = Words.of(passages.body_tokens, tokenizer)
    common = words.common()
    articles = articles_of(passages)
    found: list[tuple[np.ndarray, ...]] = []
    with progress_bar(len(passages), "finding recurring spans", "passages") as bar:
        for first, last in _pieces(articles, passages.body_tokens.offsets):
            chosen = slice(*np.searchsorted(words.rows, [first, last]))
            found += _recurring(words, chosen, articles, common, range(longest, shortest - 1, -1), most_passages)
            bar.update(last - first)
    if not found:
        empty = np.zeros(0, np.int64)
        return RecurringSpans(passages.fingerprint, np.zeros(1, np.int64), empty, empty, empty)
    counts, rows, starts, lengths = (np.concatenate(parts) for parts in zip(*found, strict=True))
    return RecurringSpans(passages.fingerprint, np.concatenate([[0], np.cumsum(counts)]), rows, starts, lengths)


def _pieces(articles: np.ndarray, offsets: np.ndarray) -> list[tuple[int, int]]:
    """Ranges of passages, of whole articles, of some millions of wordpieces."""
    edges = np.concatenate([[0], np.flatnonzero(np.diff(articles)) + 1, [len(articles)]])
    block = offsets[edges[:-1]] // _PIECES_AT_ONCE
    firsts = edges[:-1][np.concatenate([[True], np.diff(block) > 0])]
    return list(zip(firsts.tolist(), [*firsts[1:].tolist(), len(articles)], strict=True))


def _recurring(
    words: Words, chosen: slice, articles: np.ndarray, common: np.ndarray, sizes: range, most_passages: int
) -> list[tuple[np.ndarray, ...]]:
    """For each number of words, longest first: places a span `[s]`, and of each place row, start and wordpieces."""
    hashes, rows = words.hashes[chosen], words.rows[chosen]
    edge = words.is_text[chosen] & ~common[chosen]
    ends = words.starts[chosen] + words.lengths[chosen]
    count = len(hashes)
    reach = np.zeros(count, np.int64)  # one past the last word of the longest recurring span that begins at or before
    found: list[tuple[np.ndarray, ...]] = []
    for size in sizes:
        if size > count:
            continue
        first = np.arange(count - size + 1)
        last = first + size - 1
        first = first[(rows[first] == rows[last]) & edge[first] & edge[last]]
        if not len(first):
            continue
        key = folded(hashes, first, size, articles[rows[first]].astype(np.uint64))
        places, spans = _grouped(key, first, rows, most_passages)
        if not len(places):
            continue
        hidden = np.maximum.accumulate(reach)[places] >= places + size
        np.maximum.at(reach, places, places + size)
        places, spans = places[~hidden], spans[~hidden]
        # What is left of a span must still recur.
        _, which, left = np.unique(spans, return_inverse=True, return_counts=True)
        kept = left[which] > 1
        places, spans = places[kept], spans[kept]
        if len(places):
            starts = words.starts[chosen][places]
            counts = np.unique(spans, return_counts=True)[1]
            found.append((counts, rows[places], starts, ends[places + size - 1] - starts))
    return found


def _grouped(key: np.ndarray, first: np.ndarray, rows: np.ndarray, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Places of the keys that 2 to `most` passages have, one a passage; and a number for each key, ascending."""
    order = np.argsort(key, kind="stable")
    key, first = key[order], first[order]
    fresh = np.concatenate([[True], (key[1:] != key[:-1]) | (rows[first[1:]] != rows[first[:-1]])])
    key, first = key[fresh], first[fresh]
    begins = np.concatenate([[True], key[1:] != key[:-1]])
    spans = np.cumsum(begins) - 1
    passages = np.bincount(spans)[spans]
    kept = (passages > 1) & (passages <= most)
    return first[kept], spans[kept]
