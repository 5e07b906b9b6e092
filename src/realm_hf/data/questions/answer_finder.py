"""Where answers stand in passages: a search in the stored wordpieces, for thousands of passages at once.

The retriever's loss asks of up to 5,000 passages whether they hold the answer, for every question of every step. The
bodies of a beam are gathered into one array; the places where some answer may begin are found by one comparison for
each distinct first wordpiece, and each further wordpiece of the answers thins them out. No loop runs over passages,
and no passage is tokenized again for plain answers.

Regular expressions have no wordpieces: they are searched in the texts, and what they find is mapped to wordpieces by
character offsets, in those passages alone whose spans are wanted. A search in 5,000 texts takes some tenths of a
second, so which passages hold an answer is remembered: a question meets much the same beam in every epoch.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from realm_hf.data.passages.store import PassageStore
from realm_hf.data.questions.matching import PATTERN_SECONDS, compile_pattern
from realm_hf.data.vocabulary import encode_texts, require_fast_tokenizer, tokenizer_fingerprint
from realm_hf.data.word_edges import marks_continuations

__all__ = ["AnswerFinder", "AnswerSpans"]

_ANSWERS_REMEMBERED = 100_000
_SEARCHES_REMEMBERED = 10_000  # of at most a beam's rows each: 9 bytes a row


@dataclass(frozen=True)
class AnswerSpans:
    """
    What was found in n passages.

    Args:
        has_answer (`np.ndarray`, bool `[n]`): Whether the passage holds an answer.
        passage (`np.ndarray`, int64 `[A]`): Place of each span's passage among the n, ascending.
        start (`np.ndarray`, int64 `[A]`): First wordpiece of the span within the passage's body.
        end (`np.ndarray`, int64 `[A]`): Its last wordpiece, inclusive.
    """

    has_answer: np.ndarray
    passage: np.ndarray
    start: np.ndarray
    end: np.ndarray


class AnswerFinder:
    """
    Finds answers in stored passages.

    An answer is found where its wordpieces stand one after the other, and neither begin nor end inside a word: "6"
    is not in "67". Case and accents are the tokenizer's affair. An answer with a character that the vocabulary does
    not know is not looked for, for `[UNK]` would stand for anything. Tokenizers other than WordPiece give a word other
    wordpieces at the beginning of a text and behind a parenthesis: with them the texts are searched, which is slower.

    Args:
        passages ([`PassageStore`]): The passages.
        tokenizer (`PreTrainedTokenizerBase`): The one that made them.

    Raises:
        ValueError: If the tokenizer is another one.

    Example:
    ```python
    >>> found = AnswerFinder(passages, tokenizer).find(rows, ["Paris", "Lutetia"])
    >>> found.has_answer.sum(), found.start[:3], found.end[:3]
    ```
    """

    def __init__(self, passages: PassageStore, tokenizer: PreTrainedTokenizerBase):
        require_fast_tokenizer(tokenizer)
        made_by = tokenizer_fingerprint(tokenizer)
        if made_by != passages.tokenizer_fingerprint:
            raise ValueError(
                f"The tokenizer (fingerprint {made_by}) is not the one that made the passages "
                f"({passages.tokenizer_fingerprint}): their wordpieces mean other texts. Load that one."
            )
        self.passages, self.tokenizer = passages, tokenizer
        # Other tokenizers cut a word in another way behind a parenthesis or at the beginning of a text.
        self._continues = _continuing_pieces(tokenizer) if marks_continuations(tokenizer) else None
        self._ignores_case = tokenizer("A")["input_ids"] == tokenizer("a")["input_ids"]
        self._texts = passages.rows.select_columns("text")
        self._searched: OrderedDict[tuple[str, ...], tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._encoded = lru_cache(_ANSWERS_REMEMBERED)(self._encode)

    def find(
        self, rows: np.ndarray, answers: Sequence[str], *, regex: bool = False, span_rows: int | None = None
    ) -> AnswerSpans:
        """
        Search passages for the answers of one question.

        Args:
            rows (`np.ndarray` of shape `[n]`): Passage rows; the null passage (-1) and absent ones (-2) hold nothing.
            answers (`Sequence[str]`): Acceptable answers, or regular expressions for them.
            regex (`bool`, *optional*, defaults to `False`): Whether they are regular expressions. Then a passage has
                an answer where `search` finds one (case ignored), and a span is the wordpieces that what was found
                touches, if their text still matches from its beginning, as evaluation will ask.
            span_rows (`int`, *optional*): Spans are wanted in the first so many rows only; in all by default. It
                saves regular expressions most of their time.

        Returns:
            [`AnswerSpans`]: Spans ordered by passage, then start, then end; each once. The reader cannot give those
            wider than its `max_span_width`: they are found all the same.

        Raises:
            IndexError: If a row is out of range.
            ValueError: If a regular expression does not compile.
            TimeoutError: If one backtracks for seconds in a single passage.
        """
        rows = np.asarray(rows, np.int64)
        if rows.ndim != 1 or (len(rows) and (rows.min() < -2 or rows.max() >= len(self.passages))):
            raise IndexError(
                f"rows has shape {list(rows.shape)} and values {rows.min(initial=0)}..{rows.max(initial=0)}: one "
                f"dimension and -2..{len(self.passages) - 1} are needed."
            )
        wanted = len(rows) if span_rows is None else span_rows
        stored = np.flatnonzero(rows >= 0)
        if regex or self._continues is None:
            patterns = answers if regex else [self._pattern(answer) for answer in answers if answer.strip()]
            has, place, start, end = self._search_texts(rows[stored], patterns, int((stored < wanted).sum()))
        else:
            has, place, start, end = self._search_wordpieces(rows[stored], answers)
        has_answer = np.zeros(len(rows), bool)
        has_answer[stored] = has
        passage = stored[place]
        kept = passage < wanted
        spans = np.unique(np.stack([passage, start, end])[:, kept], axis=1)
        return AnswerSpans(has_answer, *spans)

    def _pattern(self, answer: str) -> str:
        """A regular expression of a plain answer: whole words, with any space between them."""
        words = r"\s+".join(map(re.escape, answer.split()))
        return rf"(?<!\w)(?{'i' if self._ignores_case else '-i'}:{words})(?!\w)"

    def _search_wordpieces(
        self, rows: np.ndarray, answers: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """`has` `[n]` and the spans' `place`, `start`, `end` `[A]`, for stored rows."""
        assert self._continues is not None
        ids, lengths = self._encoded(tuple(answers))
        has, nothing = np.zeros(len(rows), bool), np.zeros(0, np.int64)
        if not len(rows) or not len(lengths):
            return has, nothing, nothing, nothing
        starts, sizes = self.passages.body_extents(rows)
        ends = np.cumsum(sizes)
        # [T + width]: all bodies one after the other, and room behind the last for the longest answer.
        tokens = np.zeros(int(ends[-1]) + ids.shape[1], self.passages.dtype)
        within = np.repeat(starts - (ends - sizes), sizes)
        within += np.arange(ends[-1])
        tokens[: len(within)] = self.passages.body_tokens.values[within]
        bodies = tokens[: len(within)]
        candidates = np.concatenate([np.flatnonzero(bodies == first) for first in np.unique(ids[:, 0])])
        # Every answer with every place where some answer may begin; usually one answer a place survives.
        answer, which = np.nonzero(ids[:, :1] == tokens[candidates])
        at = candidates[which]
        place = np.searchsorted(ends, at, side="right")
        for offset in range(1, ids.shape[1]):
            goes_on = (lengths[answer] <= offset) | (ids[answer, offset] == tokens[at + offset])
            answer, at, place = answer[goes_on], at[goes_on], place[goes_on]
        last = at + lengths[answer] - 1
        inside = last < ends[place]
        inside &= ~((last + 1 < ends[place]) & self._continues[tokens[last + 1]])
        at, last, place = at[inside], last[inside], place[inside]
        has[place] = True
        first = ends[place] - sizes[place]
        return has, place, at - first, last - first

    def _search_texts(
        self, rows: np.ndarray, patterns: Sequence[str], span_rows: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """The same by regular expressions; spans in the first `span_rows` rows only."""
        compiled = [compile_pattern(pattern) for pattern in patterns]
        has = self._holding(rows, tuple(patterns))
        hits = np.flatnonzero(has[:span_rows])
        texts = self._texts[rows[hits].tolist()]["text"] if len(hits) else []
        encoded = encode_texts(self.tokenizer, texts, return_offsets_mapping=True)["offset_mapping"] if texts else []
        lengths = self.passages.body_tokens.lengths(rows[hits]).tolist()
        spans: list[tuple[int, int, int]] = []
        for hit, text, offsets, length in zip(hits.tolist(), texts, encoded, lengths, strict=True):
            bounds = np.asarray(offsets, np.int64).reshape(-1, 2)[:length]
            spans += [(hit, *span) for pattern in compiled for span in _touched(pattern, text, bounds)]
        return has, *np.array(spans, np.int64).reshape(-1, 3).T

    def _holding(self, rows: np.ndarray, patterns: tuple[str, ...]) -> np.ndarray:
        """Bool `[n]`: the rows in whose text some pattern finds something; what was asked before is remembered."""
        known, held = self._searched.get(patterns, (np.zeros(0, np.int64), np.zeros(0, bool)))
        new = np.setdiff1d(rows, known)
        if len(new):
            compiled = [compile_pattern(pattern) for pattern in patterns]
            texts = self._texts[new.tolist()]["text"]
            found = np.fromiter(
                (any(p.search(text, timeout=PATTERN_SECONDS) for p in compiled) for text in texts), bool, len(new)
            )
            order = np.argsort(np.concatenate([known, new]))
            known, held = (np.concatenate(pair)[order] for pair in ((known, new), (held, found)))
            self._searched[patterns] = known, held
            if len(self._searched) > _SEARCHES_REMEMBERED:
                self._searched.popitem(last=False)
        return held[np.searchsorted(known, rows)]

    def _encode(self, answers: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
        """Wordpieces `[n, width]`, padded with 0, and lengths `[n]` of the answers that can be looked for."""
        assert self._continues is not None
        unknown = self.tokenizer.unk_token_id
        encoded = [ids for ids in encode_texts(self.tokenizer, list(answers))["input_ids"] if ids] if answers else []
        known = [ids for ids in encoded if unknown not in ids and not self._continues[ids[0]]]
        lengths = np.array([len(ids) for ids in known], np.int64)
        padded = np.zeros((len(known), lengths.max(initial=0)), np.int64)
        for row, ids in zip(padded, known, strict=True):
            row[: len(ids)] = ids
        return padded, lengths


def _touched(pattern: Any, text: str, bounds: np.ndarray) -> list[tuple[int, int]]:
    """Wordpieces `(start, end)`, inclusive, that the pattern's finds in `text` touch."""
    spans = []
    for found in pattern.finditer(text, timeout=PATTERN_SECONDS):
        first = int(np.searchsorted(bounds[:, 1], found.start(), side="right"))
        last = int(np.searchsorted(bounds[:, 0], found.end(), side="left")) - 1
        if found.end() > found.start() and first <= last and pattern.match(text[bounds[first, 0] : bounds[last, 1]]):
            spans.append((first, last))
    return spans


def _continuing_pieces(tokenizer: PreTrainedTokenizerBase) -> np.ndarray:
    """Bool `[V]`: the wordpieces that go on with a word ("##ing")."""
    prefix = getattr(tokenizer.backend_tokenizer.model, "continuing_subword_prefix", None) or "##"
    vocabulary = tokenizer.get_vocab()
    continues = np.zeros(max(vocabulary.values()) + 1, bool)
    continues[[number for token, number in vocabulary.items() if token.startswith(prefix) and token != prefix]] = True
    return continues
