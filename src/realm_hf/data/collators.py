"""Examples -> the exact keyword arguments of the models' `forward`, as int64 tensors trimmed to the longest row.

    query      [CLS] x [SEP]
    candidate  [CLS] title [SEP] body [SEP]     segments 0 / 1
    joint      [CLS] x [SEP] body [SEP]         segments 0 / 1, the title left out as released

The null passage has an empty title and body: `[CLS] [SEP] [SEP]` as a candidate, `[CLS] x [SEP] [SEP]` in the joint
input.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from realm_hf.data.flat_arrays import scatter_rows
from realm_hf.data.inverse_cloze import InverseClozeExample
from realm_hf.data.masking import MaskedQuery
from realm_hf.data.passages.store import NULL_PASSAGE, PassageStore
from realm_hf.data.vocabulary import SpecialTokens, tokenizer_fingerprint
from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.cut_lengths import MAX_PASSAGE_LENGTH, MAX_QUERY_LENGTH
from realm_hf.models.host_facts import IGNORED_LABEL
from realm_hf.models.prompts import room_beside_prompt

ABSENT = -2
"""Row number of "no such candidate": the retriever found fewer than K passages."""


@dataclass
class PreTrainingCollator:
    """
    Batches of masked sentences with their retrieved passages, for `RealmForPreTraining.forward`.

    Lengths are in wordpieces. A body is cut to what its title leaves of `max_candidate_length` in the candidate input,
    and to `max_candidate_length - 2` in the joint input, as released; no `[SEP]` is ever cut.

    Args:
        passages (`PassageStore`): Where candidate rows are looked up.
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer that the passages were built with.
        max_query_length (`int`, *optional*, defaults to `MAX_QUERY_LENGTH`): Lq, special tokens included.
        max_candidate_length (`int`, *optional*, defaults to `MAX_PASSAGE_LENGTH`): Lc, special tokens included.
        null_candidate (`bool`, *optional*, defaults to `True`): Put the null passage first where it is not there yet.
        config ([`RealmConfig`], *optional*): The model's, whose prompts count for Lq and Lc although its towers, not
            this, put them in, and whose encoder must have a position for each token of a joint input; none by
            default.

    Raises:
        ValueError: If the passages were built with another tokenizer, or a joint input can be longer than the encoder
            of `config` has positions.
    """

    passages: PassageStore
    tokenizer: PreTrainedTokenizerBase
    max_query_length: int = MAX_QUERY_LENGTH
    max_candidate_length: int = MAX_PASSAGE_LENGTH
    null_candidate: bool = True
    config: RealmConfig | None = None
    special_tokens: SpecialTokens = field(init=False)
    query_room: int = field(init=False)
    candidate_room: int = field(init=False)

    def __post_init__(self) -> None:
        check_tokenizer(self.passages, self.tokenizer)
        self.special_tokens = self.passages.special_tokens
        self.query_room, self.candidate_room = self.max_query_length, self.max_candidate_length
        if self.config is not None:
            self.query_room = room_beside_prompt(self.config, "query", self.max_query_length)
            self.candidate_room = room_beside_prompt(self.config, "document", self.max_candidate_length)
            self._check_positions(self.config.encoder_positions)

    def _check_positions(self, positions: int) -> None:
        """Before training: a longer input ends it at the step in which it comes."""
        bodies = self.passages.body_extents(np.arange(len(self.passages)))[1]
        body = min(int(bodies.max(initial=0)), self._body_room)
        longest = self.query_room + self.special_tokens.separators + body
        if longest > positions:
            raise ValueError(
                f"Query and passage together have up to {longest} tokens (max_query_length={self.max_query_length}, "
                f"max_candidate_length={self.max_candidate_length}, the longest passage {body}), but the encoder has "
                f"{positions} positions: lower one of the two by {longest - positions}, or take another encoder."
            )

    @property
    def _body_room(self) -> int:
        """Where a body is cut in the joint input."""
        return self.max_candidate_length - 1 - self.special_tokens.separators

    def __call__(self, examples: Sequence[tuple[MaskedQuery, np.ndarray]]) -> dict[str, torch.Tensor]:
        """
        Collate B examples.

        Args:
            examples (`Sequence[tuple[MaskedQuery, np.ndarray]]`): Queries with their candidate rows `[K']`; -1 is the
                null passage, -2 an absent candidate. Rows of unequal number are filled up with absent candidates,
                which are `[CLS] [SEP] [SEP]` in the tensors (a row without any attention would be NaN) and False in
                the mask.

        Returns:
            `dict[str, torch.Tensor]`: `query_input_ids`, `query_attention_mask` `[B, Lq]`; `candidate_input_ids`,
            `candidate_attention_mask`, `candidate_token_type_ids` `[B, K, Lc]`; `joint_input_ids`,
            `joint_attention_mask`, `joint_token_type_ids` `[B, K, Lj]`; `candidate_mask` `[B, K]` (bool);
            `candidate_ids` `[B, K]`; `mlm_positions`, `mlm_labels` `[B, M]` (label -100 where there is none). All
            but the mask are int64.
        """
        if not examples:
            raise ValueError("an empty list of examples cannot be collated: a batch needs at least one")
        queries = [query for query, _ in examples]
        candidate_ids = self._candidate_ids([np.asarray(rows, np.int64) for _, rows in examples])
        batch, count = candidate_ids.shape
        looked_up = np.where(candidate_ids == ABSENT, NULL_PASSAGE, candidate_ids).reshape(-1)

        query_ids, query_mask = pad_rows([query.input_ids for query in queries], self.special_tokens.pad)
        if query_ids.shape[1] > self.query_room:
            raise ValueError(
                f"a query of {query_ids.shape[1]} wordpieces exceeds max_query_length={self.query_room}: mask "
                "with the same max_query_length as the collator's"
            )
        candidates = self.passages.pad_candidates(looked_up, self.candidate_room)
        joint = self._joint(query_ids, query_mask.sum(1), looked_up, count)
        width = max(len(query.positions) for query in queries)
        arrays = {
            "query_input_ids": query_ids,
            "query_attention_mask": query_mask,
            **{f"candidate_{key}": value.reshape(batch, count, -1) for key, value in candidates.items()},
            **{f"joint_{key}": value.reshape(batch, count, -1) for key, value in joint.items()},
            "candidate_mask": candidate_ids != ABSENT,
            "candidate_ids": candidate_ids,
            "mlm_positions": pad_rows([query.positions for query in queries], 0, width)[0],
            "mlm_labels": pad_rows([query.labels for query in queries], IGNORED_LABEL, width)[0],
        }
        return {key: torch.from_numpy(value) for key, value in arrays.items()}

    def _candidate_ids(self, rows: list[np.ndarray]) -> np.ndarray:
        if self.null_candidate:
            rows = [r if len(r) and r[0] == NULL_PASSAGE else np.concatenate([[NULL_PASSAGE], r]) for r in rows]
        ids = np.full((len(rows), max(map(len, rows))), ABSENT, np.int64)
        for each, row in zip(ids, rows, strict=True):
            each[: len(row)] = row
        if not (ids != ABSENT).any(axis=1).all():
            raise ValueError("an example has no candidate at all: give it passage rows, or set null_candidate=True")
        return ids

    def _joint(
        self, query_ids: np.ndarray, query_lengths: np.ndarray, rows: np.ndarray, count: int
    ) -> dict[str, np.ndarray]:
        """`[CLS] x [SEP] body [SEP]` for each of the B * K rows; `x` comes masked, with its special tokens."""
        body_starts, body_lengths = self.passages.body_extents(rows)
        special = self.special_tokens
        body_lengths = np.minimum(body_lengths, self._body_room)
        query_lengths = np.repeat(query_lengths, count)
        # The query ends with one [SEP]; some templates have another before the body.
        body_places = query_lengths + special.separators - 1
        ends = body_places + body_lengths
        columns = np.arange(ends.max() + 1)
        input_ids = np.full((len(rows), len(columns)), self.special_tokens.pad, np.int64)
        # Padding of a short query is overwritten by the body, or is padding of the joint row as well.
        shared = min(query_ids.shape[1], len(columns))
        input_ids[:, :shared] = np.repeat(query_ids[:, :shared], count, axis=0)
        for place in range(special.separators - 1):
            input_ids[np.arange(len(rows)), query_lengths + place] = special.sep
        scatter_rows(input_ids, body_places, self.passages.body_tokens.values, body_starts, body_lengths)
        input_ids[np.arange(len(rows)), ends] = special.sep
        attention_mask = columns <= ends[:, None]
        return {
            "input_ids": input_ids,
            "attention_mask": attention_mask.astype(np.int64),
            "token_type_ids": (attention_mask & (columns >= body_places[:, None])).astype(np.int64),
        }


@dataclass
class InverseClozeCollator:
    """
    Batches of sentences with the passages they were taken from (ICT), for an in-batch softmax.

    Args:
        tokenizer (`PreTrainedTokenizerBase`): The tokenizer that the passages were built with.
        max_query_length (`int`, *optional*, defaults to `MAX_QUERY_LENGTH`):
            Wordpieces of `[CLS] sentence [SEP]`; the rest is cut.
        max_candidate_length (`int`, *optional*, defaults to `MAX_PASSAGE_LENGTH`):
            Wordpieces of `[CLS] title [SEP] body [SEP]`.
    """

    tokenizer: PreTrainedTokenizerBase
    max_query_length: int = MAX_QUERY_LENGTH
    max_candidate_length: int = MAX_PASSAGE_LENGTH
    special_tokens: SpecialTokens = field(init=False)

    def __post_init__(self) -> None:
        if self.max_query_length < 3 or self.max_candidate_length < 4:
            raise ValueError(
                f"max_query_length={self.max_query_length} and max_candidate_length={self.max_candidate_length} "
                "must be at least 3 and 4: the special tokens alone take 2 and 3"
            )
        self.special_tokens = SpecialTokens.from_tokenizer(self.tokenizer)

    def __call__(self, examples: Sequence[InverseClozeExample]) -> dict[str, torch.Tensor]:
        """
        Collate B examples.

        Returns:
            `dict[str, torch.Tensor]`: `query_input_ids`, `query_attention_mask` `[B, Lq]`; `passage_input_ids`,
            `passage_attention_mask`, `passage_token_type_ids` `[B, Lc]`; `passage_ids` `[B]`, the passage rows. Int64.
        """
        if not examples:
            raise ValueError("an empty list of examples cannot be collated: a batch needs at least one")
        special = self.special_tokens
        room = self.max_candidate_length - special.of_pair
        sentences = [example.query_ids[: self.max_query_length - 2] for example in examples]
        titles = [example.title_ids[:room] for example in examples]
        bodies = [example.body_ids[: room - len(title)] for example, title in zip(examples, titles, strict=True)]
        cls, sep, between = [special.cls], [special.sep], [special.sep] * special.separators
        query_ids, query_mask = pad_rows([np.concatenate([cls, x, sep]) for x in sentences], special.pad)
        passage_ids, passage_mask = pad_rows(
            [np.concatenate([cls, t, between, b, sep]) for t, b in zip(titles, bodies, strict=True)], special.pad
        )
        body_starts = np.array([len(title) + 1 + special.separators for title in titles])
        segments = passage_mask * (np.arange(passage_ids.shape[1]) >= body_starts[:, None])
        arrays = {
            "query_input_ids": query_ids,
            "query_attention_mask": query_mask,
            "passage_input_ids": passage_ids,
            "passage_attention_mask": passage_mask,
            "passage_token_type_ids": segments,
            "passage_ids": np.array([example.passage_row for example in examples], np.int64),
        }
        return {key: torch.from_numpy(value) for key, value in arrays.items()}


def pad_rows(rows: Sequence[np.ndarray], padding: int, width: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Rows of unequal length -> int64 matrix `[N, width or the longest]` and its 1/0 mask of what is not padding."""
    lengths = np.array([len(row) for row in rows])
    width = int(lengths.max()) if width is None else width
    padded = np.full((len(rows), width), padding, np.int64)
    starts = np.cumsum(lengths) - lengths
    scatter_rows(padded, np.zeros_like(lengths), np.concatenate(rows), starts, lengths)
    return padded, (np.arange(width) < lengths[:, None]).astype(np.int64)


def check_tokenizer(passages: PassageStore, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise a `ValueError` when `passages` were built with another tokenizer than this one."""
    found = tokenizer_fingerprint(tokenizer)
    if found != passages.tokenizer_fingerprint:
        raise ValueError(
            f"the passages in {passages.directory} were built with tokenizer {passages.tokenizer_fingerprint}, this "
            f"one is {found}: their ids mean different wordpieces; load the run's own tokenizer or build the "
            "passages again"
        )
