"""Warm start by the inverse cloze task: a sentence finds the passage it was taken from (ORQA; REALM, section 3.4)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase, TrainerCallback

from realm_hf.data.collators import InverseClozeCollator
from realm_hf.data.inverse_cloze import InverseClozeDataset
from realm_hf.data.passages.store import PassageStore
from realm_hf.data.questions.load import OpenQAExample
from realm_hf.models.losses import inverse_cloze_loss
from realm_hf.models.modeling_realm import RealmEmbedder, RealmForPreTraining
from realm_hf.models.prompts import room_beside_prompt
from realm_hf.training.arguments import InverseClozeTrainingArguments
from realm_hf.training.contrastive import ContrastiveTrainer


class InverseClozeTrainer(ContrastiveTrainer):
    """Trains the towers of a model on the passages themselves.

    Args:
        model ([`RealmEmbedder`] or [`RealmForPreTraining`]): Of the latter the towers are trained and the encoder is
            frozen.
        args ([`InverseClozeTrainingArguments`]): The arguments.
        train_dataset ([`PassageStore`]): The passages.
        processing_class (`PreTrainedTokenizerBase`): The tokenizer that made the passages.
        rows (`np.ndarray`, *optional*): Train on these passage rows only, e.g. to hold others out.
        eval_retrieval (sequence of [`OpenQAExample`], *optional*): Questions with gold passages or answers; see
            [`~ContrastiveTrainer.evaluate`].
        eval_passages ([`PassageStore`], *optional*): What is searched for them; by default `train_dataset`.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*): Called in order; see
            [`RealmCallback`].
        accelerator (`accelerate.Accelerator`, *optional*): One to share; by default made from the arguments.
    """

    name = "inverse-cloze"

    def __init__(
        self,
        model: RealmEmbedder | RealmForPreTraining,
        args: InverseClozeTrainingArguments,
        *,
        train_dataset: PassageStore,
        processing_class: PreTrainedTokenizerBase,
        rows: np.ndarray | None = None,
        eval_retrieval: Sequence[OpenQAExample] = (),
        eval_passages: PassageStore | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        accelerator: Accelerator | None = None,
    ):
        self.dataset = InverseClozeDataset(
            train_dataset, args.keep_probability, args.seed, rows, args.mask_probability
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
        self.collator = InverseClozeCollator(
            processing_class,
            room_beside_prompt(model.config, "query", args.max_query_length),
            room_beside_prompt(model.config, "document", train_dataset.max_length),
        )

    def batch_of(self, rows: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        """Sentences and their passages; `groups` `[1, B]` says which passages have one text."""
        batch = self.collator([self.dataset.visit(int(r), int(e)) for r, e in zip(rows, epochs, strict=True)])
        groups = self.passages.duplicate_groups[batch.pop("passage_ids").numpy()].astype(np.int64)
        return {**batch, "groups": torch.from_numpy(groups)[None]}

    def contrast(self, embeddings: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """See [`inverse_cloze_loss`]."""
        return inverse_cloze_loss(embeddings[0], embeddings[1], groups[0], self.scale)
