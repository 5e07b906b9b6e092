"""Warm start by recurring spans (Ram et al., 2022, "Spider"): the words around a span must find the other passage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase, TrainerCallback

from realm_hf.data.passages.recurring import RecurringSpans
from realm_hf.data.passages.store import PassageStore
from realm_hf.data.questions.load import OpenQAExample
from realm_hf.data.recurring_span_queries import RecurringSpanCollator, RecurringSpanDataset
from realm_hf.models.losses import inverse_cloze_loss
from realm_hf.models.modeling_realm import RealmEmbedder, RealmForPreTraining
from realm_hf.models.prompts import room_beside_prompt
from realm_hf.training.arguments import RecurringSpanTrainingArguments
from realm_hf.training.contrastive import ContrastiveTrainer


class RecurringSpanTrainer(ContrastiveTrainer):
    """
    Trains the towers of a model on spans that passages of one article share: like the inverse cloze task, with queries
    that do not stand in their passage and with a hard negative each.

    Args:
        model ([`RealmEmbedder`] or [`RealmForPreTraining`]): Of the latter the towers are trained and the encoder is
            frozen.
        args ([`RecurringSpanTrainingArguments`]): The arguments.
        train_dataset ([`PassageStore`]): The passages.
        recurring ([`RecurringSpans`]): Of them, see [`find_recurring_spans`].
        processing_class (`PreTrainedTokenizerBase`): The tokenizer that made the passages.
        rows (`np.ndarray`, *optional*): Train on these passage rows only, e.g. to hold others out.
        eval_retrieval (sequence of [`OpenQAExample`], *optional*): Questions with gold passages or answers; see
            [`~ContrastiveTrainer.evaluate`].
        eval_passages ([`PassageStore`], *optional*): What is searched for them; by default `train_dataset`.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*): Called in order; see
            [`RealmCallback`].
        accelerator (`accelerate.Accelerator`, *optional*): One to share; by default made from the arguments.

    Raises:
        ValueError: No span recurs in the passages.
    """

    name = "recurring-spans"

    def __init__(
        self,
        model: RealmEmbedder | RealmForPreTraining,
        args: RecurringSpanTrainingArguments,
        *,
        train_dataset: PassageStore,
        recurring: RecurringSpans,
        processing_class: PreTrainedTokenizerBase,
        rows: np.ndarray | None = None,
        eval_retrieval: Sequence[OpenQAExample] = (),
        eval_passages: PassageStore | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        accelerator: Accelerator | None = None,
    ):
        self.dataset = RecurringSpanDataset(
            train_dataset, recurring, processing_class, args.keep_probability, args.seed, rows
        )
        super().__init__(
            model,
            args,
            train_dataset,
            len(self.dataset),
            processing_class,
            eval_retrieval,
            eval_passages,
            callbacks,
            accelerator,
        )
        self.collator = RecurringSpanCollator(
            train_dataset,
            room_beside_prompt(model.config, "query", args.max_query_length),
            room_beside_prompt(model.config, "document", train_dataset.max_length),
        )
        self.recurring = recurring

    def trained_on(self) -> dict[str, Any]:
        """The passages, how many spans recur in them, and the scale of the scores."""
        return {**super().trained_on(), "recurring": len(self.recurring)}

    def batch_of(self, rows: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        """Queries with positives and negatives; see [`RecurringSpanCollator`]."""
        return self.collator([self.dataset.visit(int(r), int(e)) for r, e in zip(rows, epochs, strict=True)])

    def contrast(self, embeddings: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Among all positives and negatives; the passage that a query was cut from is no wrong answer to it."""
        passages, (positives, negatives, sources) = embeddings[1:].flatten(0, 1), groups
        return inverse_cloze_loss(embeddings[0], passages, torch.cat([positives, negatives]), self.scale, sources)
