"""What the host knows of a batch before it goes to the device: lengths, words, and which rows take part.

Sizes on a device depend on such facts, and to read them back there is to wait until all that was queued is done: 22
times in a pre-training step. Whoever makes a batch has it on the host, so the facts are gathered there and travel
beside it. Models that are called without them read their inputs back and gather them then.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch

Array = np.ndarray | torch.Tensor

NULL_PASSAGE = -1
"""Row number of the null passage."""
IGNORED_LABEL = -100
"""Of a position that nothing is predicted at; torch's own."""


def on_host(array: Array) -> np.ndarray:
    """`array` as numpy's; a tensor on a device is waited for."""
    return array.detach().cpu().numpy() if isinstance(array, torch.Tensor) else array


@dataclass(frozen=True)
class RowLengths:
    """
    How long N padded rows are.

    Args:
        ends (`np.ndarray`, int64 `[N]`): Where the last attended token ends; 1 for a row without any.
        tokens (`np.ndarray`, int64 `[N]`): Attended tokens: fewer than `ends` in a row with holes.
    """

    ends: np.ndarray
    tokens: np.ndarray

    @classmethod
    def of(cls, attention_mask: Array) -> Self:
        """The lengths of rows with this mask `(N, L)`, 0 at padding."""
        used = on_host(attention_mask) != 0
        ends = (np.arange(1, used.shape[1] + 1) * used).max(axis=1, initial=1)
        return cls(ends, used.sum(axis=1))

    def __getitem__(self, rows: np.ndarray) -> Self:
        return type(self)(self.ends[rows], self.tokens[rows])


@dataclass(frozen=True)
class RowFacts:
    """
    What the towers ask of N rows of token ids.

    Args:
        lengths ([`RowLengths`]): Their lengths.
        words (`np.ndarray`, int64 `[U]`): The token ids that occur in them, padding included, each once; others may be
            among them.
    """

    lengths: RowLengths
    words: np.ndarray

    @classmethod
    def of(cls, input_ids: Array, attention_mask: Array | None) -> Self:
        """The facts of token ids `(N, L)` and their mask, without which all are attended."""
        ids = on_host(input_ids)
        mask = np.ones_like(ids) if attention_mask is None else attention_mask
        return cls(RowLengths.of(mask), np.unique(ids))

    def __getitem__(self, rows: np.ndarray) -> Self:
        return type(self)(self.lengths[rows], self.words)


@dataclass(frozen=True)
class ReaderFacts:
    """
    What the reader asks of P joint inputs.

    Args:
        rows ([`RowFacts`]): Of the joint inputs.
        block_mask (`np.ndarray`, bool `[P, L]`): True at wordpieces of the passage.
    """

    rows: RowFacts
    block_mask: np.ndarray

    @classmethod
    def of(cls, input_ids: Array, attention_mask: Array | None, block_mask: Array) -> Self:
        """The facts of token ids `(P, L)` and their masks."""
        return cls(RowFacts.of(input_ids, attention_mask), on_host(block_mask).astype(bool))


@dataclass(frozen=True)
class PreTrainingFacts:
    """
    What [`RealmForPreTraining`] asks of a batch of B queries with K candidates and M masked positions.

    Args:
        query ([`RowFacts`]): Of the B queries.
        candidate ([`RowFacts`]): Of the candidates, flat: B * K.
        joint ([`RowFacts`]): Of the joint inputs, flat: B * K.
        candidate_mask (`np.ndarray`, bool `[B, K]`): False where there is no such candidate.
        encoded (`np.ndarray`, int64 `[E]`): Candidates, counted flat, that go through the passage tower: of equal ones
            the first.
        source (`np.ndarray`, int64 `[B * K]`): Which of the E stands for each candidate; 0 for an absent one.
        label_mask (`np.ndarray`, bool `[B, M]`): True where a masked position has a label.
    """

    query: RowFacts
    candidate: RowFacts
    joint: RowFacts
    candidate_mask: np.ndarray
    encoded: np.ndarray
    source: np.ndarray
    label_mask: np.ndarray

    @classmethod
    def of(
        cls,
        *,
        query_input_ids: Array,
        query_attention_mask: Array,
        candidate_input_ids: Array,
        candidate_attention_mask: Array,
        joint_input_ids: Array,
        joint_attention_mask: Array,
        mlm_labels: Array,
        candidate_mask: Array | None = None,
        candidate_ids: Array | None = None,
        **ignored: Array,  # noqa: ARG003 - what plays no part
    ) -> Self:
        """
        The facts of a batch; arguments as of [`RealmForPreTraining`]'s `forward`, those without a part in it ignored.

        Raises:
            `ValueError`: a row has no candidate at all.
        """
        shape = tuple(candidate_input_ids.shape[:2])
        present = np.ones(shape, bool) if candidate_mask is None else on_host(candidate_mask).astype(bool)
        ids = None if candidate_ids is None else on_host(candidate_ids)
        if ids is not None:
            present = present & (ids >= NULL_PASSAGE)
        empty = np.flatnonzero(~present.any(axis=1)).tolist()
        if empty:
            raise ValueError(f"Rows {empty} of the batch have no candidate: give each at least the null passage.")
        encoded = places = np.flatnonzero(present)
        source = np.zeros(present.size, np.int64)
        source[places] = np.arange(len(places))
        if ids is not None:
            _, first, source[places] = np.unique(ids.flatten()[places], return_index=True, return_inverse=True)
            encoded = places[first]
        flat = (shape[0] * shape[1], -1)
        return cls(
            query=RowFacts.of(query_input_ids, query_attention_mask),
            candidate=RowFacts.of(candidate_input_ids.reshape(flat), candidate_attention_mask.reshape(flat)),
            joint=RowFacts.of(joint_input_ids.reshape(flat), joint_attention_mask.reshape(flat)),
            candidate_mask=present,
            encoded=encoded,
            source=source,
            label_mask=on_host(mlm_labels) != IGNORED_LABEL,
        )

    @cached_property
    def pairs(self) -> np.ndarray:
        """int64 `[P]`: the joint inputs, counted flat, in which a label is to be predicted."""
        return np.flatnonzero(self.candidate_mask & self.label_mask.any(axis=1, keepdims=True))

    def places(self) -> dict[str, np.ndarray]:
        """
        What is looked up on the device.

        Returns:
            `dict[str, np.ndarray]`: `candidate_mask`, `encoded`, `source` and `pairs` as they are; and for each of G
            predictions `labelled` `[G]`, its place among the pairs' P * M positions, `label` `[G]`, its place among
            the B * M labels, and `gold` `[G]`, its place among all B * K * M positions.
        """
        count, positions = self.candidate_mask.shape[1], self.label_mask.shape[1]
        example = self.pairs // count
        pair, position = np.nonzero(self.label_mask[example])
        return {
            "candidate_mask": self.candidate_mask,
            "encoded": self.encoded,
            "source": self.source,
            "pairs": self.pairs,
            "labelled": pair * positions + position,
            "label": example[pair] * positions + position,
            "gold": self.pairs[pair] * positions + position,
        }


__all__ = [
    "IGNORED_LABEL",
    "NULL_PASSAGE",
    "Array",
    "PreTrainingFacts",
    "ReaderFacts",
    "RowFacts",
    "RowLengths",
    "on_host",
]
