"""Contrastive warm starts: a query must find its own passage among all those of the batch.

The batch is as large as one likes: by gradient caching (Gao et al., 2021) all examples are first embedded without a
graph, the loss's gradient with respect to each embedding is computed over the whole batch, and then each chunk is
embedded once more and receives its part. Accumulating losses of small batches would add no negatives.
Every rank computes the whole score matrix from gathered embeddings, so that gradients through another rank's negatives
need no collective of their own: 4096 x 4096 x 128 is nothing beside a BERT.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from realm_hf.data.passages.build import PassageStore
from realm_hf.data.questions.load import OpenQAExample
from realm_hf.generations.embedding import embed_passages
from realm_hf.models.host_facts import RowFacts
from realm_hf.models.losses import full_precision
from realm_hf.models.modeling_realm import RealmEmbedder, RealmForPreTraining
from realm_hf.models.prompts import room_beside_prompt
from realm_hf.models.transfer import to_device
from realm_hf.retriever.retriever import RealmRetriever
from realm_hf.training.arguments import InverseClozeTrainingArguments
from realm_hf.training.data_order import DataOrder
from realm_hf.training.optimization import make_accelerator
from realm_hf.training.passage_training import PassageTraining
from realm_hf.training.retrieval_evaluation import RetrievalQuestions
from realm_hf.training.task import StepFigures


class TwinTowers(nn.Module):
    """Both towers behind one `forward`, as DistributedDataParallel wants them.

    Args:
        query_embedder ([`RealmEmbedder`]): Tower of the sentences.
        embedder ([`RealmEmbedder`]): Tower of the passages; may be the same module.
    """

    def __init__(self, query_embedder: RealmEmbedder, embedder: RealmEmbedder):
        super().__init__()
        self.query_embedder, self.embedder = query_embedder, embedder

    def forward(
        self,
        query_input_ids: torch.Tensor,
        query_attention_mask: torch.Tensor,
        passage_input_ids: torch.Tensor,
        passage_attention_mask: torch.Tensor,
        passage_token_type_ids: torch.Tensor,
        query_facts: RowFacts | None = None,
        passage_facts: RowFacts | None = None,
    ) -> torch.Tensor:
        """Embeddings `[1 + P, B, D]`: of the B queries, and of P * B passages."""
        queries = self.query_embedder.encode_tokens(
            query_input_ids, query_attention_mask, facts=query_facts, role="query"
        )
        passages = self.embedder.encode_tokens(
            passage_input_ids, passage_attention_mask, passage_token_type_ids, facts=passage_facts, role="document"
        )
        return torch.cat([full_precision(queries), full_precision(passages)]).unflatten(0, (-1, len(queries)))


class ContrastiveTrainer(PassageTraining):
    """
    What the contrastive warm starts share; a subclass says what its examples are.

    Args:
        model ([`RealmEmbedder`] or [`RealmForPreTraining`]): Of the latter the towers are trained and the encoder is
            frozen.
        args ([`InverseClozeTrainingArguments`]): The arguments.
        passages ([`PassageStore`]): The passages.
        examples (`int`): Examples of one pass over the data.
        processing_class (`PreTrainedTokenizerBase`): The tokenizer that made the passages.
        eval_retrieval (sequence of [`OpenQAExample`], *optional*): Questions with gold passages or answers: at each
            evaluation they are searched for, see [`evaluate`].
        eval_passages ([`PassageStore`], *optional*): What is searched then; by default `passages`.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*): Called in order.
        accelerator (`accelerate.Accelerator`, *optional*): One to share; by default made from the arguments.
    """

    args: InverseClozeTrainingArguments
    figures = ("loss", "accuracy")

    def __init__(
        self,
        model: RealmEmbedder | RealmForPreTraining,
        args: InverseClozeTrainingArguments,
        passages: PassageStore,
        examples: int,
        processing_class: PreTrainedTokenizerBase,
        eval_retrieval: Sequence[OpenQAExample] = (),
        eval_passages: PassageStore | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        accelerator: Accelerator | None = None,
    ):
        towers = (
            TwinTowers(model, model)
            if isinstance(model, RealmEmbedder)
            else TwinTowers(model.query_embedder, model.embedder)
        )
        accelerator = accelerator or make_accelerator(args)
        args = args.resolved(examples, accelerator.num_processes)
        super().__init__(model, towers, args, Path(args.output_dir), accelerator, processing_class, callbacks)
        self.passages, self.towers = passages, towers
        room = room_beside_prompt(model.config, "query", args.max_query_length)
        self.retrieval = RetrievalQuestions(
            eval_retrieval, passages if eval_passages is None else eval_passages, processing_class, room
        )
        self.scale = float(model.config.score_scale)
        self.order = DataOrder(examples, args.seed)

    @abstractmethod
    def batch_of(self, rows: np.ndarray, epochs: np.ndarray) -> dict[str, torch.Tensor]:
        """
        The tensors of B examples.

        Args:
            rows (`np.ndarray` of shape `[B]`): Which examples.
            epochs (`np.ndarray` of shape `[B]`): In which pass each is drawn.

        Returns:
            `dict[str, torch.Tensor]`: The arguments of [`TwinTowers`], with P * B passages, and `groups` `[X, B]`,
            what [`contrast`] needs to know of their texts.
        """

    @abstractmethod
    def contrast(self, embeddings: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Loss and accuracy of the G examples of all ranks.

        Args:
            embeddings (`torch.Tensor` of shape `[1 + P, G, D]`): Of queries and passages.
            groups (`torch.Tensor` of shape `[X, G]`): See [`batch_of`].
        """

    def trained_on(self) -> dict[str, Any]:
        """The passages, and the scale of the scores."""
        return {"passages": f"{self.order.size} of {self.passages.fingerprint}", "score_scale": self.scale}

    def accumulate(self, step: int) -> StepFigures:
        """One contrastive step over `batch * accumulation * ranks` examples."""
        started = time.perf_counter()
        chunks = [self._collate(positions) for positions in self.positions()]
        data_seconds = time.perf_counter() - started
        last = len(chunks) - 1
        # The first chunk keeps its graph: with a single chunk nothing is embedded twice.
        with self.micro_batch(step, 0, last == 0):
            kept = self._embed(self.module, chunks[0])
        embeddings = [kept.detach()]
        for index, chunk in enumerate(chunks[1:], start=1):
            with torch.no_grad(), self.micro_batch(step, index, last=False):
                embeddings.append(self._embed(self.accelerator.unwrap_model(self.module), chunk))
        own = torch.cat(embeddings, dim=1).requires_grad_(True)
        groups = self._gather(torch.cat([chunk["groups"] for chunk in chunks], dim=1))
        loss, accuracy = self.contrast(self._gather(own), groups)
        (gradient,) = torch.autograd.grad(loss, own)

        # DDP averages gradients over ranks; the loss is already the mean over all of them.
        parts = (gradient * self.world_size).split([e.shape[1] for e in embeddings], dim=1)
        with self.micro_batch(step, 0, last == 0):
            self.accelerator.backward((kept * parts[0]).sum())
        for index, (chunk, part) in enumerate(zip(chunks[1:], parts[1:], strict=True), start=1):
            with self.micro_batch(step, index, index == last):
                self.accelerator.backward((self._embed(self.module, chunk) * part).sum())
        # Each rank has both for the whole batch; they are summed all the same, so that all agree on one that is NaN.
        sums = torch.stack([loss.detach(), accuracy.to(loss)]) / self.world_size
        return StepFigures(sums, lambda t: {"loss": t[0], "accuracy": t[1], "data_seconds": data_seconds})

    def evaluate(self) -> dict[str, float]:
        """Recall and nDCG of `eval_retrieval`: the main process embeds all passages by the towers as they are now and
        searches them exactly, while the others wait.

        Returns:
            `eval_recall_at_1`, `_5` and `_20` and `eval_ndcg_at_10`, between 0 and 1; empty without questions.
        """
        return self.on_main(self._retrieval_now, "evaluate the retrieval") if len(self.retrieval) else {}

    def _retrieval_now(self) -> dict[str, float]:
        asked = self.retrieval
        with self.autocast():
            embeddings = embed_passages(self.towers.embedder, asked.passages)
        retriever = RealmRetriever(asked.passages, self.processing_class, embeddings=embeddings)
        numbers = range(len(asked))
        return asked.averages(asked.sums(self.towers.query_embedder, retriever, numbers=numbers, bf16=self.bf16))

    def _collate(self, positions: np.ndarray) -> dict[str, Any]:
        batch = self.batch_of(*self.order(positions))
        return {
            **to_device(batch, self.device),
            "query_facts": RowFacts.of(batch["query_input_ids"], batch["query_attention_mask"]),
            "passage_facts": RowFacts.of(batch["passage_input_ids"], batch["passage_attention_mask"]),
        }

    def _embed(self, module: nn.Module, chunk: dict[str, Any]) -> torch.Tensor:
        with self.autocast():
            return module(**{name: tensor for name, tensor in chunk.items() if name != "groups"})

    def _gather(self, own: torch.Tensor) -> torch.Tensor:
        """All ranks' `[X, B, ...]` as `[X, G, ...]`; this rank's part carries the gradient."""
        if self.world_size == 1:
            return own
        parts = [torch.empty_like(own) for _ in range(self.world_size)]
        dist.all_gather(parts, own.detach())
        parts[self.rank] = own
        return torch.cat(parts, dim=1)
