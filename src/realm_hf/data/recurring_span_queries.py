"""Recurring span retrieval (Ram et al., 2022, "Spider"): a few words around a span ask for the other passage with it.

The query looks more like a question than the whole sentence of the inverse cloze task does, and its passage shares a
span with it and nothing else. In half of the cases the span is taken out of the query, so that matching words alone
does not solve the task. A passage of the same article without the span is a hard negative.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from realm_hf.data.collators import pad_rows
from realm_hf.data.masking import RECURRING_SPAN_STREAM, example_rng
from realm_hf.data.passages.recurring import RecurringSpans, articles_of
from realm_hf.data.passages.store import NULL_PASSAGE, PassageStore
from realm_hf.data.word_edges import WordEdges
from realm_hf.models.cut_lengths import MAX_QUERY_LENGTH

__all__ = ["RecurringSpanCollator", "RecurringSpanDataset", "RecurringSpanExample"]

FEWEST_WORDS, MOST_WORDS = 5, 30
_NEGATIVE_DRAWS = 8


@dataclass(frozen=True)
class RecurringSpanExample:
    """
    A query with the passage that it asks for.

    Args:
        query_ids (`np.ndarray` of shape `[Q]`): Wordpieces around the span, without special tokens.
        source (`int`): Row of the passage that the query was cut from.
        positive (`int`): Row of another passage that holds the span.
        negative (`int`): Row of a passage of the article that does not; -1 where none was found.
        kept (`bool`): Whether the span was left in the query.
    """

    query_ids: np.ndarray
    source: int
    positive: int
    negative: int
    kept: bool


class RecurringSpanDataset(Dataset[RecurringSpanExample]):
    """
    Map-style dataset with one example a visit of a passage that has a recurring span, the same for the same (seed,
    epoch, index).

    Args:
        passages ([`PassageStore`]): The corpus.
        recurring ([`RecurringSpans`]): Of it.
        tokenizer (`PreTrainedTokenizerBase`): The one that made the passages.
        keep_probability (`float`, *optional*, defaults to 0.5): How often the span stays in the query.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.
        rows (`np.ndarray`, *optional*): Passages that queries are cut from, and that are asked for; all by default.

    Raises:
        ValueError: If no span recurs in those passages, or the probability is none.
    """

    def __init__(
        self,
        passages: PassageStore,
        recurring: RecurringSpans,
        tokenizer: PreTrainedTokenizerBase,
        keep_probability: float = 0.5,
        seed: int = 0,
        rows: np.ndarray | None = None,
    ) -> None:
        if not 0 <= keep_probability <= 1:
            raise ValueError(f"keep_probability is {keep_probability}: it must lie in [0, 1].")
        if recurring.passages != passages.fingerprint:
            raise ValueError(
                f"The recurring spans are of passages {recurring.passages}, these are {passages.fingerprint}."
            )
        allowed = np.zeros(len(passages), bool)
        allowed[slice(None) if rows is None else rows] = True
        # A span of which one place is held out has no answer among the others.
        span_of = np.repeat(np.arange(len(recurring)), np.diff(recurring.offsets))
        usable = np.bincount(span_of, allowed[recurring.rows], len(recurring)) > 1
        self.usable = usable[span_of] & allowed[recurring.rows] if len(recurring) else np.zeros(0, bool)
        self.rows = np.unique(recurring.rows[self.usable])
        if not len(self.rows):
            raise ValueError(f"No span recurs in these {int(allowed.sum())} passages, so that nothing can be asked.")
        self.passages, self.recurring, self.seed = passages, recurring, seed
        self.keep_probability = keep_probability
        self._articles, self._allowed = articles_of(passages), allowed
        self._edges = WordEdges.of(tokenizer)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> RecurringSpanExample:
        if not 0 <= index < len(self.rows):
            raise IndexError(f"example {index} is out of range for {len(self.rows)} passages")
        return self.visit(index, 0)

    def visit(self, index: int, epoch: int) -> RecurringSpanExample:
        """The example cut from passage `self.rows[index]` in an epoch."""
        rng, spans = example_rng(self.seed, epoch, index, RECURRING_SPAN_STREAM), self.recurring
        row = int(self.rows[index])
        places = spans.places_in(row)
        place = int(rng.choice(places[self.usable[places]]))
        others = spans.others(place)
        positive = int(spans.rows[rng.choice(others[self.usable[others]])])
        kept = bool(rng.random() < self.keep_probability)
        query = self._query(row, int(spans.starts[place]), int(spans.lengths[place]), kept, rng)
        holders = np.concatenate([[row], spans.rows[others]])
        return RecurringSpanExample(query, row, positive, self._negative(row, holders, rng), kept)

    def _query(self, row: int, start: int, length: int, kept: bool, rng: np.random.Generator) -> np.ndarray:
        """5 to 30 words of the body around the span, with it or without."""
        body = self.passages.body_ids(row)
        begins = np.flatnonzero(~self._edges.continues(body) | (np.arange(len(body)) == 0))
        first, last = np.searchsorted(begins, [start, start + length - 1], side="right") - 1  # words of the span
        within = int(last - first + 1)
        wanted = int(rng.integers(FEWEST_WORDS, MOST_WORDS + 1)) + (0 if kept else within)
        wanted = min(max(wanted, within), len(begins))
        # The span stands anywhere in the window.
        low, high = max(0, int(last) + 1 - wanted), min(int(first), len(begins) - wanted)
        begin = int(rng.integers(low, high + 1))
        stop = begin + wanted
        left, right = int(begins[begin]), int(begins[stop]) if stop < len(begins) else len(body)
        window = body[left:right]
        if kept or len(window) == length:
            return window
        return np.concatenate([window[: start - left], window[start - left + length :]])

    def _negative(self, row: int, holders: np.ndarray, rng: np.random.Generator) -> int:
        article = self._articles[row]
        first, last = np.searchsorted(self._articles, [article, article + 1])
        for candidate in rng.integers(first, last, _NEGATIVE_DRAWS).tolist():
            if self._allowed[candidate] and candidate not in holders:
                return int(candidate)
        return NULL_PASSAGE


@dataclass
class RecurringSpanCollator:
    """
    Batches of queries with the passages that they ask for and those that they do not.

    Args:
        passages ([`PassageStore`]): Where rows are looked up.
        max_query_length (`int`, *optional*, defaults to `MAX_QUERY_LENGTH`): Wordpieces of `[CLS] query [SEP]`; the
            rest is cut.
        max_candidate_length (`int`, *optional*): Wordpieces of a passage; the store's by default.
    """

    passages: PassageStore
    max_query_length: int = MAX_QUERY_LENGTH
    max_candidate_length: int | None = None

    def __call__(self, examples: Sequence[RecurringSpanExample]) -> dict[str, torch.Tensor]:
        """
        Collate B examples.

        Returns:
            `dict[str, torch.Tensor]`: `query_input_ids`, `query_attention_mask` `[B, Lq]`; `passage_input_ids`,
            `passage_attention_mask`, `passage_token_type_ids` `[2 * B, Lc]`, the positives and then the negatives, of
            which an absent one is the null passage; `groups` `[3, B]`, the duplicate groups of positives, negatives
            (-1 where there is none) and sources. Int64.
        """
        special = self.passages.special_tokens
        queries = [example.query_ids[: self.max_query_length - 2] for example in examples]
        ids, mask = pad_rows([np.concatenate([[special.cls], query, [special.sep]]) for query in queries], special.pad)
        rows = np.array([[e.positive, e.negative, e.source] for e in examples], np.int64).T
        passages = self.passages.pad_candidates(rows[:2].reshape(-1), self.max_candidate_length)
        groups = self.passages.duplicate_groups.astype(np.int64)
        arrays = {
            "query_input_ids": ids,
            "query_attention_mask": mask,
            **{f"passage_{name}": array for name, array in passages.items()},
            "groups": np.where(rows == NULL_PASSAGE, -1, groups[np.maximum(rows, 0)]),
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}
