"""A batch of a pre-training step to be timed, and its operations, counted as `realm-hf estimate` counts them."""

from __future__ import annotations

import numpy as np
import torch

from realm_hf import RealmTokenizer
from realm_hf.data.collators import PreTrainingCollator
from realm_hf.data.masking import MaskedQuery, mask_example
from realm_hf.data.passages.store import NULL_PASSAGE, PassageStore
from realm_hf.estimate import ModelShape


def batch_of(passages: PassageStore, tokenizer: RealmTokenizer, queries: int, others: int) -> dict[str, torch.Tensor]:
    """Sentences of passages, masked, each with the null passage and some passages drawn at random.

    No two queries share a candidate but the null passage: with a trained retriever they would, and cost less.
    """
    rng = np.random.default_rng(0)
    collator = PreTrainingCollator(passages, tokenizer)
    examples = [
        (_masked_query(passages, int(row), rng, collator), rng.choice(len(passages), others, replace=False))
        for row in rng.choice(len(passages), queries, replace=False)
    ]
    return collator(examples)


def _masked_query(
    passages: PassageStore, row: int, rng: np.random.Generator, collator: PreTrainingCollator
) -> MaskedQuery:
    """The first sentence of a passage with one run of wordpieces masked."""
    body, starts = passages.body_ids(row), passages.sentence_starts(row)
    sentence = body[: starts[1] if len(starts) > 1 else None]
    query = mask_example(sentence, np.zeros((0, 2)), special_tokens=collator.special_tokens, rng=rng, mode="span")
    assert isinstance(query, MaskedQuery)
    return query


def forward_operations(shape: ModelShape, batch: dict[str, torch.Tensor]) -> float:
    """Of the forward pass: queries, candidates and joint inputs, and the vocabulary at masked positions.

    Args:
        shape: Of each tower.
        batch: Of the collator; padding is not counted, nor the null passage as a candidate.
    """
    own = batch["candidate_ids"] != NULL_PASSAGE
    forward = sum(map(shape.forward_operations, batch["query_attention_mask"].sum(-1).tolist()))
    forward += sum(map(shape.forward_operations, batch["candidate_attention_mask"].sum(-1)[own].tolist()))
    forward += sum(map(shape.forward_operations, batch["joint_attention_mask"].sum(-1).flatten().tolist()))
    masked = int((batch["mlm_labels"] >= 0).sum())
    return forward + shape.head_operations(masked * batch["candidate_ids"].size(1))


def tokens_of(batch: dict[str, torch.Tensor]) -> int:
    """Tokens that the towers read in a step, padding and the null passage as a candidate left out."""
    own = batch["candidate_ids"] != NULL_PASSAGE
    candidates = int(batch["candidate_attention_mask"].sum(-1)[own].sum())
    return candidates + int(batch["query_attention_mask"].sum()) + int(batch["joint_attention_mask"].sum())
