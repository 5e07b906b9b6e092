"""Masked language modelling on the passages themselves: whole words, and two passages that share a span.

    one      [CLS] body, and the bodies that follow it in its article, up to the length [SEP]
    two      [CLS] window of one body [SEP] window of another [SEP]    segments 0 / 1, as query and passage

Of two passages the span that both hold is masked in the first: what stands there can be read in the second, and that
is what the knowledge-augmented encoder must have learned before the retriever can learn from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from realm_hf.data.collators import pad_rows
from realm_hf.data.masking import MASKED_LM_STREAM, example_rng
from realm_hf.data.passages.recurring import RecurringSpans, articles_of
from realm_hf.data.passages.store import PassageStore
from realm_hf.data.word_edges import WordEdges
from realm_hf.models.host_facts import IGNORED_LABEL

__all__ = ["MaskedLMCollator", "MaskedLMDataset", "MaskedLMExample"]


@dataclass(frozen=True)
class MaskedLMExample:
    """
    One sequence with its masks.

    Args:
        input_ids (`np.ndarray`, int64 `[L]`): With the special tokens, masked wordpieces replaced.
        positions (`np.ndarray`, int64 `[M]`): Of the masked wordpieces; M >= 1.
        labels (`np.ndarray`, int64 `[M]`): The wordpieces that stood there.
        words (`np.ndarray`, int64 `[M]`): Which masked word each belongs to, from 0.
        boundary (`int`): Where segment 1 begins; L if there is one passage.
        shared (`int`): How many of the M are of the span that the second passage holds; they are the first ones.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    labels: np.ndarray
    words: np.ndarray
    boundary: int
    shared: int


class MaskedLMDataset(Dataset[MaskedLMExample]):
    """
    Map-style dataset with one example a passage and visit, the same for the same (seed, epoch, index).

    Args:
        passages (`PassageStore`): The corpus.
        tokenizer (`PreTrainedTokenizerBase`): The one that made the passages.
        rows (`np.ndarray`, *optional*): Passages that examples begin with; all that are not empty by default.
        recurring ([`RecurringSpans`], *optional*): For pairs of passages.
        max_length (`int`, *optional*, defaults to 128): Most wordpieces, special tokens included.
        mask_probability (`float`, *optional*, defaults to 0.2): Share of the wordpieces to mask, as whole words.
        pair_probability (`float`, *optional*, defaults to 0.5): How often a passage that shares a span is paired.
        pack (`bool`, *optional*, defaults to `True`): Fill a single sequence with the bodies that follow.
        seed (`int`, *optional*, defaults to 0): Seed of the draws.

    Raises:
        ValueError: If a probability or the length is none, or there is no passage.
    """

    def __init__(
        self,
        passages: PassageStore,
        tokenizer: PreTrainedTokenizerBase,
        rows: np.ndarray | None = None,
        recurring: RecurringSpans | None = None,
        *,
        max_length: int = 128,
        mask_probability: float = 0.2,
        pair_probability: float = 0.5,
        pack: bool = True,
        seed: int = 0,
    ) -> None:
        if not 0 < mask_probability < 1 or not 0 <= pair_probability <= 1:
            raise ValueError(
                f"mask_probability is {mask_probability} and pair_probability {pair_probability}: the one must lie "
                "between 0 and 1, the other in [0, 1]."
            )
        if max_length < 16:
            raise ValueError(f"max_length is {max_length} wordpieces: at least 16 are needed.")
        if recurring is not None and recurring.passages != passages.fingerprint:
            raise ValueError(
                f"The recurring spans are of passages {recurring.passages}, these are {passages.fingerprint}."
            )
        lengths = np.diff(passages.body_tokens.offsets)
        self.rows = np.flatnonzero(lengths > 0) if rows is None else np.asarray(rows)[lengths[np.asarray(rows)] > 0]
        if not len(self.rows):
            raise ValueError("There is no passage with a text to draw from: the corpus or the split is empty.")
        self.passages, self.recurring = passages, recurring
        self.max_length, self.seed, self.pack = max_length, seed, pack
        self.mask_probability, self.pair_probability = mask_probability, pair_probability
        self.articles = articles_of(passages)
        self._edges = WordEdges.of(tokenizer)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> MaskedLMExample:
        if not 0 <= index < len(self.rows):
            raise IndexError(f"example {index} is out of range for {len(self.rows)} passages")
        return self.visit(index, 0)

    def visit(self, index: int, epoch: int) -> MaskedLMExample:
        """The example that begins with passage `self.rows[index]` in an epoch."""
        rng = example_rng(self.seed, epoch, index, MASKED_LM_STREAM)
        row = int(self.rows[index])
        if self.recurring is not None and rng.random() < self.pair_probability:
            places = self.recurring.places_in(row)
            if len(places):
                return self.pair(int(rng.choice(places)), rng)
        return self._single(row, rng)

    def pair(
        self, place: int, rng: np.random.Generator, *, joined: bool = True, alone: bool = False
    ) -> MaskedLMExample:
        """
        A passage with another that shares the span at `place`, which is masked.

        Args:
            place (`int`): Of the recurring spans.
            rng (`np.random.Generator`): Draws the other passage, the windows and further masks.
            joined (`bool`, *optional*, defaults to `True`): Without it, nothing stands where the other passage would:
                what the span costs an encoder that cannot look it up.
            alone (`bool`, *optional*, defaults to `False`): Mask nothing but the span.
        """
        assert self.recurring is not None
        spans = self.recurring
        other = int(rng.choice(spans.others(place)))
        special = self.passages.special_tokens
        room = self.max_length - special.of_pair
        length = int(spans.lengths[place])
        body, second = (self.passages.body_ids(int(spans.rows[at])) for at in (place, other))
        # What one passage does not need, the other may have.
        half = max(room // 2, length, room - len(second))
        window, start = self._window(body, int(spans.starts[place]), length, min(half, room - length), rng)
        partner, _ = self._window(second, int(spans.starts[other]), length, room - len(window), rng)
        if not joined:
            partner = partner[:0]
        between = [special.sep] * special.separators
        ids = np.concatenate([[special.cls], window, between, partner, [special.sep]], dtype=np.int64)
        boundary, span = len(window) + 1 + len(between), np.arange(start + 1, start + 1 + length)
        # The span must stay where it can be read.
        kept = np.zeros(len(ids), bool)
        kept[[0, -1]] = kept[len(window) + 1 : boundary] = True
        kept[boundary:-1] = _equals(partner, window[start : start + length])
        return self._masked(ids, kept, span, boundary, rng, alone)

    def _single(self, row: int, rng: np.random.Generator) -> MaskedLMExample:
        room, tokens = self.max_length - 2, self.passages.body_tokens
        body = self.passages.body_ids(row)
        if len(body) > room:
            starts = self.passages.sentence_starts(row)
            starts = starts[starts <= len(body) - room]
            begin = int(rng.choice(starts)) if len(starts) else 0
            body = body[begin : begin + room]
        elif self.pack:
            last = int(np.searchsorted(self.articles, self.articles[row], side="right"))
            begin = int(tokens.offsets[row])
            body = tokens.values[begin : min(begin + room, int(tokens.offsets[last]))]
        special = self.passages.special_tokens
        ids = np.concatenate([[special.cls], body, [special.sep]], dtype=np.int64)
        kept = np.zeros(len(ids), bool)
        kept[[0, -1]] = True
        return self._masked(ids, kept, np.zeros(0, np.int64), len(ids), rng, False)

    def _window(
        self, body: np.ndarray, start: int, length: int, room: int, rng: np.random.Generator
    ) -> tuple[np.ndarray, int]:
        """Up to `room` wordpieces of a body that hold `length` of them from `start`, and where these begin in it."""
        room = min(room, len(body))
        low, high = max(0, start + length - room), min(start, len(body) - room)
        begin = int(rng.integers(low, high + 1))
        end = begin + room
        continues = self._edges.continues(body)
        while continues[begin] and begin < start:
            begin += 1
        return body[begin:end], start - begin

    def _masked(
        self, ids: np.ndarray, kept: np.ndarray, span: np.ndarray, boundary: int, rng: np.random.Generator, alone: bool
    ) -> MaskedLMExample:
        """Mask the span and, unless it shall be alone, further whole words of those that are not `kept`."""
        begins = ~self._edges.continues(ids)
        begins[1:] |= kept[1:] != kept[:-1]  # after [CLS] or [SEP] even the rest of a word counts as one
        word, chosen = np.cumsum(begins) - 1, span
        if not alone:
            free = np.setdiff1d(word[~kept], word[span])
            sizes = np.bincount(word)[free]
            order = rng.permutation(len(free))
            wanted = max(1, round(self.mask_probability * int((~kept).sum()))) - len(span)
            taken = free[order[np.cumsum(sizes[order]) - sizes[order] < wanted]]
            chosen = np.concatenate([span, np.flatnonzero(np.isin(word, taken))])
        masked = ids.copy()
        masked[chosen] = self.passages.special_tokens.mask
        words = np.unique(word[chosen], return_inverse=True)[1]
        return MaskedLMExample(masked, chosen, ids[chosen], words, boundary, len(span))


@dataclass
class MaskedLMCollator:
    """
    Batches of masked sequences.

    Args:
        padding (`int`): Id of the padding token.
    """

    padding: int

    def __call__(self, examples: Sequence[MaskedLMExample]) -> dict[str, torch.Tensor]:
        """
        Collate B examples.

        Returns:
            `dict[str, torch.Tensor]`: `input_ids`, `attention_mask`, `token_type_ids` `[B, L]`; `positions`, `labels`
            `[B, M]` (label -100 where there is none). Int64.
        """
        ids, mask = pad_rows([example.input_ids for example in examples], self.padding)
        boundaries = np.array([example.boundary for example in examples])
        arrays = {
            "input_ids": ids,
            "attention_mask": mask,
            "token_type_ids": mask * (np.arange(ids.shape[1]) >= boundaries[:, None]),
            "positions": pad_rows([example.positions for example in examples], 0)[0],
            "labels": pad_rows([example.labels for example in examples], IGNORED_LABEL)[0],
        }
        return {name: torch.from_numpy(array) for name, array in arrays.items()}


def _equals(ids: np.ndarray, span: np.ndarray) -> np.ndarray:
    """Bool `[len(ids)]`: where the span stands."""
    found = np.zeros(len(ids), bool)
    for at in range(len(ids) - len(span) + 1):
        if np.array_equal(ids[at : at + len(span)], span):
            found[at : at + len(span)] = True
    return found
