"""Documents -> passages, the part that runs in worker processes: sentence splitting, one tokenization, greedy packing.

The released preprocessing (ORQA's `wiki_preprocessor.py`) packs whole sentences while
`3 + title + body <= max_length`. Two differences, on purpose: a document is tokenized once and cut by character
offsets instead of once for each sentence and again for each block, and a sentence that alone exceeds the limit is
split there instead of being truncated at every later use.
"""

import hashlib
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from realm_hf.data.splitter import Splitter, split_sentences
from realm_hf.data.vocabulary import SpecialTokens, encode_texts, token_dtype

COUNTS = (
    "empty_documents",
    "sentences",
    "long_words_cut",
    "long_sentences_split",
    "titles_truncated",
    "passages_truncated",
    "passages_below_min_sentences",
)
"""What the packer counts for each document; the sums are stored in `passages.json`."""

LONGEST_WORD = 1 << 16
"""Characters without white space that are kept: of a word of 10 MB, which is data and no text, a tokenizer makes one
unknown wordpiece in half a minute. Scripts that are written without white space have line breaks."""

_WORD = re.compile(r"\w+")
_LONG_WORD = re.compile(rf"(?<!\S)(\S{{{LONGEST_WORD}}})\S+")  # tried where a word begins: linear in the text


@dataclass(frozen=True)
class Unit:
    """A sentence or a piece of an over-long one: wordpieces `[first, last)` and characters `[start, end)`."""

    first: int
    last: int
    start: int
    end: int


def sentence_units(
    sentences: list[tuple[int, int]], token_starts: np.ndarray, token_ends: np.ndarray, limit: int
) -> tuple[list[Unit], int]:
    """
    Map sentences to wordpieces, and split those of more than `limit` wordpieces.

    A long sentence is split before the last wordpiece that begins after white space and keeps the piece within the
    limit, so that the text of a piece gives its own wordpieces again; a single word beyond the limit is cut inside.

    Args:
        sentences (`list[tuple[int, int]]`): Character spans in order.
        token_starts (`np.ndarray` of shape `[T]`): First character of each wordpiece of the document.
        token_ends (`np.ndarray` of shape `[T]`): Character after each wordpiece.
        limit (`int`): Most wordpieces of a unit.

    Returns:
        The units (sentences without a wordpiece are left out) and the number of sentences that were split.
    """
    units, split = [], 0
    firsts = np.searchsorted(token_starts, [start for start, _ in sentences])
    lasts = np.searchsorted(token_starts, [end for _, end in sentences])
    for (start, end), first, last in zip(sentences, firsts.tolist(), lasts.tolist(), strict=True):
        split += last - first > limit
        while last - first > limit:
            cut = _word_boundary(token_starts, token_ends, first, first + limit)
            units.append(Unit(first, cut, start, int(token_ends[cut - 1])))
            first, start = cut, int(token_starts[cut])
        if first < last:
            units.append(Unit(first, last, start, end))
    return units, split


def _word_boundary(token_starts: np.ndarray, token_ends: np.ndarray, first: int, cut: int) -> int:
    """The last wordpiece in `(first, cut]` that begins after white space, or `cut` where one word fills the range."""
    for position in range(cut, first, -1):
        # Two pieces of one letter have the same characters: there is no space between them.
        if token_starts[position] > token_ends[position - 1]:
            return position
    return cut


def truncate_units(
    units: list[Unit], token_starts: np.ndarray, token_ends: np.ndarray, limit: int
) -> list[list[Unit]]:
    """One passage of the first `limit` wordpieces at most, its last sentence cut at a word; none without units."""
    kept: list[Unit] = []
    for unit in units:
        stop = units[0].first + limit
        if unit.last > stop:
            if unit.first < stop:
                cut = _word_boundary(token_starts, token_ends, unit.first, stop)
                kept.append(Unit(unit.first, cut, unit.start, int(token_ends[cut - 1])))
            break
        kept.append(unit)
    return [kept] if kept else []


def pack_units(units: list[Unit], limit: int) -> list[list[Unit]]:
    """Greedy packing: each passage takes units in order while it has at most `limit` wordpieces in all."""
    passages: list[list[Unit]] = []
    for unit in units:
        if passages and unit.last - passages[-1][0].first <= limit:
            passages[-1].append(unit)
        else:
            passages.append([unit])
    return passages


def normalised_text_hash(text: str) -> int:
    """64-bit hash of the words of a text without case, punctuation, spacing and compatibility forms, as signed int."""
    words = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return _hash64(" ".join(words) or text)


def content_hash(title: str, text: str) -> int:
    """64-bit hash of a passage's title and text, as signed int."""
    return _hash64(f"{title}\0{text}")


def _hash64(text: str) -> int:
    # Lone surrogates occur in scraped text and have no strict UTF-8 form.
    return int.from_bytes(
        hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest(), "big", signed=True
    )


@dataclass
class PassagePacker:
    """
    Batched function for `datasets.Dataset.map`: a batch of documents -> one row a document, its passages as lists.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): A fast tokenizer.
        max_length (`int`): Most wordpieces of `[CLS] title [SEP] body [SEP]`.
        min_sentences (`int`): Passages with fewer sentences are dropped and counted.
        title_column (`str` or `None`): Column with the title; `None` means that all titles are empty.
        text_column (`str`): Column with the text.
        splitter (`Splitter`): Sentence splitter.
        whole (`bool`): One document is one passage, truncated to `max_length`, instead of being packed.
    """

    tokenizer: PreTrainedTokenizerBase
    max_length: int
    min_sentences: int
    title_column: str | None
    text_column: str
    splitter: Splitter = split_sentences
    whole: bool = False
    _dtype: np.dtype = field(init=False)
    _special: SpecialTokens = field(init=False)

    def __post_init__(self) -> None:
        self._dtype = token_dtype(len(self.tokenizer))
        self._special = SpecialTokens.from_tokenizer(self.tokenizer)

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        """One output row a document; the columns are those of [`packed_features`]."""
        texts, cuts = cut_long_words(batch[self.text_column])
        titles = cut_long_words(batch[self.title_column])[0] if self.title_column else [""] * len(texts)
        title_ids = encode_texts(self.tokenizer, titles)["input_ids"]
        encoded = encode_texts(self.tokenizer, texts, return_offsets_mapping=True)
        rows = [
            self._pack(*document)
            for document in zip(titles, texts, title_ids, encoded["input_ids"], encoded["offset_mapping"], strict=True)
        ]
        return {key: [row[key] for row in rows] for key in rows[0]} | {"long_words_cut": cuts}

    def _pack(
        self, title: str, text: str, title_ids: list[int], body_ids: list[int], offsets: list[tuple[int, int]]
    ) -> dict[str, Any]:
        counts = Counter(dict.fromkeys(COUNTS, 0))
        # A title may take half of the room at most, so that there is always some for the body.
        room = self.max_length - self._special.of_pair
        title_limit = room // 2
        counts["titles_truncated"] += len(title_ids) > title_limit
        title_ids = title_ids[:title_limit]
        limit = room - len(title_ids)

        bounds = np.asarray(offsets, np.int64).reshape(-1, 2)
        sentences = self.splitter(text)
        if self.splitter is not split_sentences:
            check_sentence_spans(sentences, text)
        units, split = sentence_units(sentences, bounds[:, 0], bounds[:, 1], limit)
        counts["empty_documents"] += not units
        counts["sentences"] += len(units)
        if self.whole:
            passages = truncate_units(units, bounds[:, 0], bounds[:, 1], limit)
            counts["passages_truncated"] += bool(units) and passages[0][-1].last < units[-1].last
        else:
            passages = pack_units(units, limit)
            counts["long_sentences_split"] += split
        kept = [passage for passage in passages if len(passage) >= self.min_sentences]
        counts["passages_below_min_sentences"] += len(passages) - len(kept)

        texts = [text[passage[0].start : passage[-1].end] for passage in kept]
        ids = np.asarray(body_ids, self._dtype)
        bodies = [ids[p[0].first : p[-1].last] for p in kept]
        starts = [[unit.first - passage[0].first for unit in passage] for passage in kept]
        if self._special.first_word_differs and kept:
            bodies, starts = self._as_texts_of_their_own(texts, kept, limit)
        return {
            "title": title,
            "texts": texts,
            "title_tokens": np.asarray(title_ids, self._dtype),
            "body_tokens": np.concatenate([ids[:0], *bodies]),
            "body_lengths": [len(body) for body in bodies],
            "sentence_starts": [start for of_passage in starts for start in of_passage],
            "sentence_counts": [len(passage) for passage in kept],
            "text_hashes": [normalised_text_hash(body) for body in texts],
            "content_hashes": [content_hash(title, body) for body in texts],
            **counts,
        }

    def _as_texts_of_their_own(
        self, texts: list[str], passages: list[list[Unit]], limit: int
    ) -> tuple[list[np.ndarray], list[list[int]]]:
        """Wordpieces of passages and sentence starts, where the first word of a text has ids of its own."""
        encoded = encode_texts(self.tokenizer, texts, return_offsets_mapping=True)
        bodies, starts = [], []
        for ids, offsets, units in zip(encoded["input_ids"], encoded["offset_mapping"], passages, strict=True):
            bodies.append(np.asarray(ids[:limit], self._dtype))
            found = np.searchsorted([first for first, _ in offsets], [unit.start - units[0].start for unit in units])
            starts.append(np.minimum(found, len(bodies[-1]) - 1).tolist())
        return bodies, starts


def cut_long_words(texts: list[str | None]) -> tuple[list[str], list[int]]:
    """Texts of a batch with words of at most `LONGEST_WORD` characters, and how many were cut; no text is `""`."""
    cut = [_LONG_WORD.subn(r"\1", text or "") for text in texts]
    return [text for text, _ in cut], [count for _, count in cut]


def check_sentence_spans(spans: list[tuple[int, int]], text: str) -> None:
    """Raise a `ValueError` when a custom splitter's spans are out of order, overlap, or leave the text."""
    edges = [edge for span in spans for edge in span]
    if any(a > b for a, b in pairwise(edges)) or (edges and (edges[0] < 0 or edges[-1] > len(text))):
        raise ValueError(
            f"the sentence splitter returned {spans[:4]}... for a text of {len(text)} characters: spans must be "
            "(start, end) pairs in order, without overlap, inside the text"
        )
