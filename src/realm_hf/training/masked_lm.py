"""Masked language modelling as the encoder's own warm start: it must read before a retriever can learn from it.

Section 3.4 of the paper describes the circle: an encoder that does not read what was retrieved gives the retriever
nothing to learn. Encoders with a prediction head come out of it by themselves; those without one, and those that start
from nothing, are trained here on the passages alone, half of the time on two that share a span.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from realm_hf.data.masked_lm import MaskedLMCollator, MaskedLMDataset, MaskedLMExample
from realm_hf.data.masking import MASKED_LM_STREAM, example_rng
from realm_hf.data.passages.recurring import RecurringSpans
from realm_hf.data.passages.store import PassageStore
from realm_hf.models.host_facts import IGNORED_LABEL, RowFacts, on_host
from realm_hf.models.losses import gold_log_probs
from realm_hf.models.modeling_encoder import RealmKnowledgeAugEncoder
from realm_hf.models.modeling_realm import RealmForPreTraining
from realm_hf.models.transfer import to_device
from realm_hf.training.arguments import MaskedLMTrainingArguments
from realm_hf.training.data_order import DataOrder
from realm_hf.training.optimization import make_accelerator
from realm_hf.training.passage_training import PassageTraining
from realm_hf.training.task import StepFigures

_HELD_OUT = 1 << 20  # An epoch of its own: what is evaluated is the same at every step.


class MaskedTokens(nn.Module):
    """The encoder behind a `forward` that gives log probabilities at masked positions and nothing else.

    Args:
        encoder ([`RealmKnowledgeAugEncoder`]): Tower and prediction head.
    """

    def __init__(self, encoder: RealmKnowledgeAugEncoder):
        super().__init__()
        self.encoder = encoder

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        token_type_ids: torch.Tensor,
        positions: torch.Tensor,
        labels: torch.Tensor,
        labelled: torch.Tensor,
        facts: RowFacts | None = None,
    ) -> torch.Tensor:
        """
        Log p of the right wordpieces.

        Args:
            input_ids (`torch.LongTensor` of shape `(B, L)`): Sequences with masks.
            attention_mask (`torch.Tensor` of shape `(B, L)`): 1 at tokens, 0 at padding.
            token_type_ids (`torch.LongTensor` of shape `(B, L)`): Segments.
            positions (`torch.LongTensor` of shape `(B, M)`): Of the masks.
            labels (`torch.LongTensor` of shape `(B, M)`): The right wordpieces; -100 where there is none.
            labelled (`torch.LongTensor` of shape `(G,)`): Places of the labels, counted flat.
            facts ([`RowFacts`], *optional*): Of the sequences.

        Returns:
            `torch.Tensor` of shape `(G,)`.
        """
        hidden = self.encoder.hidden_states_at(positions, input_ids, attention_mask, token_type_ids, facts=facts)
        return gold_log_probs(self.encoder.cls(hidden.flatten(0, 1)[labelled]), labels.flatten()[labelled])


class MaskedLMTrainer(PassageTraining):
    """
    Trains an encoder to fill in masked words of the passages.

    Args:
        model ([`RealmKnowledgeAugEncoder`] or [`RealmForPreTraining`]): Of the latter the encoder is trained.
        args ([`MaskedLMTrainingArguments`]): The arguments.
        train_dataset ([`PassageStore`]): The passages.
        processing_class (`PreTrainedTokenizerBase`): The tokenizer that made the passages.
        recurring ([`RecurringSpans`], *optional*): For pairs of passages that share a span.
        rows (`np.ndarray`, *optional*): Train on these passage rows only; all by default.
        eval_rows (`np.ndarray`, *optional*): Passages held out, on which it is evaluated.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*): Called in order; see
            [`RealmCallback`].
        accelerator (`accelerate.Accelerator`, *optional*): One to share; by default made from the arguments.

    Raises:
        ValueError: A sequence would be longer than the encoder's positions, or there is nothing to train on.
    """

    name = "masked-lm"
    figures = ("loss",)
    args: MaskedLMTrainingArguments

    def __init__(
        self,
        model: RealmKnowledgeAugEncoder | RealmForPreTraining,
        args: MaskedLMTrainingArguments,
        *,
        train_dataset: PassageStore,
        processing_class: PreTrainedTokenizerBase,
        recurring: RecurringSpans | None = None,
        rows: np.ndarray | None = None,
        eval_rows: np.ndarray | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        accelerator: Accelerator | None = None,
    ):
        encoder = model if isinstance(model, RealmKnowledgeAugEncoder) else model.encoder
        longest = int(model.config.max_position_embeddings)
        if args.max_length > longest:
            raise ValueError(f"max_length is {args.max_length}, the encoder has {longest} positions: give no more.")
        drawing: dict[str, Any] = {
            "max_length": args.max_length,
            "mask_probability": args.mask_probability,
            "pair_probability": args.pair_probability,
            "pack": args.pack,
        }
        self.passages, self.recurring = train_dataset, recurring
        self.dataset = MaskedLMDataset(train_dataset, processing_class, rows, recurring, seed=args.seed, **drawing)
        accelerator = accelerator or make_accelerator(args)
        args = args.resolved(len(self.dataset), accelerator.num_processes)
        module = MaskedTokens(encoder)
        super().__init__(model, module, args, Path(args.output_dir), accelerator, processing_class, callbacks)
        self.order = DataOrder(len(self.dataset), args.seed)
        self.collator = MaskedLMCollator(train_dataset.special_tokens.pad)
        # Nothing of what is compared between runs depends on their seed.
        self.held_out = None
        if eval_rows is not None and args.eval_examples:
            self.held_out = MaskedLMDataset(train_dataset, processing_class, eval_rows, recurring, seed=0, **drawing)

    def trained_on(self) -> dict[str, Any]:
        """The passages, and how many spans recur in them."""
        spans = 0 if self.recurring is None else len(self.recurring)
        return {"passages": f"{len(self.dataset)} of {self.passages.fingerprint}", "recurring": spans}

    def accumulate(self, step: int) -> StepFigures:
        """Forward and backward over all micro-batches of this rank, normalised by what all ranks masked."""
        started = time.perf_counter()
        drawn = [
            [self.dataset.visit(int(row), int(epoch)) for row, epoch in zip(*self.order(positions), strict=True)]
            for positions in self.positions()
        ]
        chunks = [self._collate(examples) for examples in drawn]
        examples = [example for examples in drawn for example in examples]
        masked, tokens = self.sum_over_ranks(
            [float(sum(len(e.labels) for e in examples)), float(sum(len(e.input_ids) for e in examples))]
        )
        seconds = time.perf_counter() - started
        losses = []
        for index, chunk in enumerate(chunks):
            with self.micro_batch(step, index, index == len(chunks) - 1):
                with self.autocast():
                    loss = -self.module(**chunk).sum() / masked
                # DDP averages over ranks what is already a mean over all of them.
                self.accelerator.backward(loss * self.world_size)
            losses.append(loss.detach())
        facts = {"masked_tokens": int(masked), "tokens": int(tokens), "data_seconds": seconds}
        return StepFigures(torch.stack(losses).sum().reshape(1), lambda total: {"loss": total[0], **facts})

    def _collate(self, examples: Sequence[MaskedLMExample]) -> dict[str, Any]:
        batch = self.collator(examples)
        labelled = torch.from_numpy(np.flatnonzero(on_host(batch["labels"]) != IGNORED_LABEL))
        facts = RowFacts.of(batch["input_ids"], batch["attention_mask"])
        return {**to_device({**batch, "labelled": labelled}, self.device), "facts": facts}

    def evaluate(self) -> dict[str, float]:
        """
        Held-out figures.

        Returns:
            `eval_loss` (nats a masked wordpiece), `eval_word_loss` (nats a masked word); with recurring spans
            `eval_utility`: log p of a span that a joined passage holds, less log p without that passage, in nats a
            span, with `eval_utility_error`, its standard error. Empty without held-out passages.
        """
        if self.held_out is None:
            return {}
        total = self.sum_over_ranks(self.together("evaluate", self._evaluate_own))
        loss, pieces, words, gain, squares, spans = total
        figures = {"eval_loss": loss / pieces, "eval_word_loss": loss / words}
        if spans > 1:
            mean = gain / spans
            variance = max(0.0, squares / spans - mean**2) / (spans - 1)
            figures |= {"eval_utility": mean, "eval_utility_error": variance**0.5}
        return figures

    def _evaluate_own(self) -> list[float]:
        """Sums over this rank's share: loss, wordpieces, words, utility, its squares, spans."""
        assert self.held_out is not None
        data, size = self.held_out, self.args.per_device_eval_batch_size
        count = min(self.args.eval_examples, len(data))
        # Spread over the whole of what is held out: neighbours are of one article.
        chosen = np.linspace(0, len(data) - 1, count).astype(np.int64)[self.rank :: self.world_size]
        sums = np.zeros(6)
        self.model.eval()
        for start in range(0, len(chosen), size):
            examples = [data.visit(int(index), _HELD_OUT) for index in chosen[start : start + size]]
            sums[0] -= self._log_probs(examples).sum()
            sums[1] += sum(len(example.labels) for example in examples)
            sums[2] += sum(int(example.words.max()) + 1 for example in examples)
            gains = self._utility(chosen[start : start + size])
            sums[3:] += [gains.sum(), (gains**2).sum(), len(gains)]
        return sums.tolist()

    def _utility(self, chosen: np.ndarray) -> np.ndarray:
        """What a passage that holds the span is worth, in nats, `[n]`: one span of each passage that has one."""
        data = self.held_out
        assert data is not None
        if data.recurring is None:
            return np.zeros(0)
        places = [data.recurring.places_in(int(data.rows[index])) for index in chosen]
        draws = [(int(index), int(found[0])) for index, found in zip(chosen, places, strict=True) if len(found)]
        if not draws:
            return np.zeros(0)
        both = []
        for joined in (True, False):
            streams = [example_rng(0, _HELD_OUT, index, MASKED_LM_STREAM) for index, _ in draws]
            examples = [
                data.pair(place, rng, joined=joined, alone=True)
                for (_, place), rng in zip(draws, streams, strict=True)
            ]
            of = np.repeat(np.arange(len(examples)), [len(example.labels) for example in examples])
            both.append(np.bincount(of, self._log_probs(examples), minlength=len(examples)))
        return both[0] - both[1]

    def _log_probs(self, examples: Sequence[MaskedLMExample]) -> np.ndarray:
        """Log p of the right wordpieces, example after example."""
        with torch.no_grad(), self.autocast():
            found: np.ndarray = (
                self.accelerator.unwrap_model(self.module)(**self._collate(examples)).double().cpu().numpy()
            )
        return found
