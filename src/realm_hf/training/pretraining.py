"""REALM pre-training (section 3): the masked sentence, its retrieved candidates, one marginal likelihood, one update.

One optimizer step: take the candidates that were retrieved ahead; sum the counts of masked tokens over all ranks and
micro-batches, for that is what the loss is divided by; forward and backward each micro-batch; update; then let the
refresh take a snapshot or swap the index, and ask for the candidates of a later step.
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

from realm_hf.data.collators import PreTrainingCollator
from realm_hf.data.masking import MaskedQuery, no_example
from realm_hf.data.passages.build import NULL_PASSAGE, PassageStore
from realm_hf.data.questions.load import OpenQAExample
from realm_hf.data.sentences.build import SentenceStore
from realm_hf.data.sentences.recurring import RecurringMasks, check_masks
from realm_hf.models.host_facts import PreTrainingFacts
from realm_hf.models.modeling_realm import RealmEmbedder, RealmForPreTraining
from realm_hf.models.transfer import to_device
from realm_hf.retriever.candidates import CandidateSource
from realm_hf.runs.directory import RunDirectory
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import write_json
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.candidate_mix import source_of_mix
from realm_hf.training.checkpoints import Checkpoint
from realm_hf.training.data_order import DataOrder, step_positions
from realm_hf.training.evaluation import SUMS, batch_sums, evaluation_sums, explain, means
from realm_hf.training.in_batch import unread_mask
from realm_hf.training.index_service import IndexService
from realm_hf.training.indexed_trainer import IndexedTrainer
from realm_hf.training.optimization import make_accelerator
from realm_hf.training.prefetch import CandidatePrefetcher, MaskedExamples, RetrievedStep, encode_queries
from realm_hf.training.reranking import LiveReranker
from realm_hf.training.retrieval_evaluation import RetrievalQuestions
from realm_hf.training.step_plan import StepPlan
from realm_hf.training.swap_probes import SwapProbes
from realm_hf.training.task import StepFigures

EXAMPLES_SHOWN = 5


class RealmTrainer(IndexedTrainer):
    """Pre-trains retriever and knowledge-augmented encoder together, with an index that is refreshed meanwhile.

    Args:
        model ([`RealmForPreTraining`]): Its `config.marginalization` is set where the arguments say one.
        args ([`RealmTrainingArguments`]): The arguments.
        train_dataset ([`SentenceStore`]): The pre-training corpus.
        eval_dataset ([`SentenceStore`], *optional*): Held-out sentences for `evaluate`; none by default.
        processing_class (`PreTrainedTokenizerBase`): The tokenizer that made passages and sentences.
        passages ([`PassageStore`]): The knowledge corpus.
        eval_retrieval (sequence of [`OpenQAExample`], *optional*): Questions with gold passages or answers: at each
            swap and evaluation the served index is asked for them, see [`~IndexedTrainer.evaluate_retrieval`].
        candidate_source ([`CandidateSource`], *optional*): Finds candidates instead of `args.candidate_mix`.
        recurring_masks ([`RecurringMasks`], *optional*): Of these sentences and passages, for `masking="recurring"`.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*): Called in order; see [`RealmCallback`].
        index_from (`str`, *optional*): A run directory whose newest generation serves first if it is of these passages
            and this passage tower: runs that begin with the same weights embed the corpus once.
        run ([`RunDirectory`] or `str`, *optional*, defaults to `args.output_dir`): The run directory, opened or
            created.
        accelerator (`accelerate.Accelerator`, *optional*): One to share; by default made from the arguments.

    Raises:
        ValueError: There is no sentence, or the arguments do not fit the model.
        RunDirectoryError: The directory belongs to another corpus, or cannot be written to.
    """

    name = "pre-training"
    figures = ("loss", "retrieval_utility", "null_mass")

    def __init__(
        self,
        model: RealmForPreTraining,
        args: RealmTrainingArguments,
        *,
        train_dataset: SentenceStore,
        eval_dataset: SentenceStore | None = None,
        processing_class: PreTrainedTokenizerBase,
        passages: PassageStore,
        eval_retrieval: Sequence[OpenQAExample] = (),
        candidate_source: CandidateSource | None = None,
        recurring_masks: RecurringMasks | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        index_from: str | Path | None = None,
        run: RunDirectory | str | Path | None = None,
        accelerator: Accelerator | None = None,
    ):
        if len(train_dataset) == 0:
            raise ValueError(
                "There is no sentence to train on. Check the pre-training corpus, and what its tagger skipped and why."
            )
        check_masks(args.masking, recurring_masks, train_dataset, passages)
        if args.query_encoder == "snapshot" and not model.config.share_embedders:
            raise ValueError(
                "query_encoder='snapshot' encodes queries by the passage tower's snapshot, but the model has two "
                "towers (share_embedders=False). Use query_encoder='live'."
            )
        if args.marginalization is not None:
            model.config.marginalization = args.marginalization
        if args.freeze_encoder:
            model.encoder.requires_grad_(False)
        accelerator = accelerator or make_accelerator(args)
        args = args.resolved(len(train_dataset), accelerator.num_processes)
        self.args: RealmTrainingArguments = args
        root = run.root if isinstance(run, RunDirectory) else Path(run or args.output_dir)
        super().__init__(model, model, args, root, accelerator, processing_class, callbacks)
        self.model: RealmForPreTraining = model
        self.run = run if isinstance(run, RunDirectory) else self.open_run(root, passages)
        self.passages, self.index_from = passages, index_from
        self.collator = PreTrainingCollator(
            passages, processing_class, args.max_query_length, args.max_candidate_length, config=model.config
        )
        special = self.collator.special_tokens
        self.placeholder = no_example(special)
        drawing = (args, self.collator.query_room, special, recurring_masks)
        self.examples = MaskedExamples(train_dataset, DataOrder(len(train_dataset), args.seed), *drawing)
        self.eval_queries: list[MaskedQuery] = []
        if eval_dataset is not None and len(eval_dataset):
            kept = MaskedExamples(eval_dataset, DataOrder(len(eval_dataset), args.seed), *drawing)
            self.eval_queries = kept.first(args.max_eval_sentences)
        probes = self.eval_queries[: args.probe_queries] or self.examples.first(args.probe_queries)
        asked = list(eval_retrieval)[: args.max_eval_questions]
        self.retrieval = RetrievalQuestions(asked, passages, processing_class, self.collator.query_room)
        swap_probes = SwapProbes(
            [probe.input_ids for probe in probes],
            max(1, args.num_candidates - 1),
            exclude=[probe.sentence_ids for probe in probes],
        )
        self.index = IndexService(
            self.run, passages, processing_class, args, self.accelerator, swap_probes, args.query_encoder
        )
        self.index.candidate_source = source_of_mix(self, args.candidate_mix, candidate_source)
        self.ahead: CandidatePrefetcher | None = None
        self.plan = StepPlan(args, self.world_size, len(train_dataset))
        self.rerank = LiveReranker(model, passages, self.collator.candidate_room, bf16=self.bf16)
        #: What this rank trained on last; for callbacks.
        self.retrieved: RetrievedStep | None = None

    def own_rates(self) -> dict[nn.Module, float]:
        """The towers', if they have one."""
        rate = self.args.retriever_learning_rate
        return {} if rate is None else {self.model.embedder: rate, self.model.query_embedder: rate}

    # Before the first step

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Serve a generation, the checkpoint's if there is one, and ask for the first candidates."""
        source = self.index_from if self.step == 0 else None
        tower, ended = self.weights.whole(self.model.embedder), self.step >= self.args.max_steps
        self.serve(checkpoint, tower, ended=ended, adopt_from=source)
        embed = None if self.args.query_encoder == "snapshot" else self._embed_live
        self.ahead = CandidatePrefetcher(self.examples, self.index.reading, embed)
        if checkpoint is not None:
            self._restore_ahead(checkpoint)
        for step in range(self.step + 1 + len(self.ahead), self.step + 2 + self.args.retrieval_depth):
            self._request(step)

    def _embed_live(self, queries: list[MaskedQuery]) -> np.ndarray:
        return self._embed(self.weights.whole(self.model.query_embedder), queries)

    def _embed(self, tower: RealmEmbedder, queries: list[MaskedQuery]) -> np.ndarray:
        return encode_queries(tower, [query.input_ids for query in queries], bf16=self.bf16)

    # One step

    @property
    def examples_per_epoch(self) -> int:
        """Sentences in one pass over the data; those whose mask does not fit are counted."""
        return self.examples.order.size

    def trained_on(self) -> dict[str, Any]:
        """Corpora, and what of the model's configuration the loss depends on."""
        sentences, config = self.examples.sentences, self.model.config
        return {
            "passages": self.passages.fingerprint,
            "sentences": f"{len(sentences)} of {sentences.fingerprint}",
            "marginalization": config.marginalization,
            "score_scale": config.score_scale,
        }

    def verify_data(self) -> None:
        """The files of passages and sentences."""
        PassageStore.load(self.passages.directory, verify=True)
        SentenceStore.load(self.examples.sentences.directory, verify=True)

    def accumulate(self, step: int) -> StepFigures:
        """Forward and backward over all micro-batches of this rank, normalised by what all ranks masked."""
        assert self.ahead is not None
        started = time.perf_counter()
        retrieved = self.ahead.take(step)
        waited = time.perf_counter() - started
        rerank = self.rerank if self.args.rerank_depth is None else self.rerank.of(self.weights.whole(self.model))
        retrieved = self.retrieved = rerank.step(retrieved, self.plan.candidates(step))
        queries = [query for micro, _ in retrieved.micro_batches for query in micro]
        masked = float(sum(len(query.labels) for query in queries))
        embedded = np.minimum(self.passages.lengths[retrieved.embedded()], self.args.max_candidate_length)
        counts = (len(queries), retrieved.skipped, retrieved.excluded, len(embedded), embedded.sum())
        tokens, examples, skipped, excluded, distinct, read = self.sum_over_ranks([masked, *map(float, counts)])
        items = max(1.0, tokens if self.model.config.marginalization == "token" else examples)
        learns = self._retriever_learns(step)
        figures, last = [], len(retrieved.micro_batches) - 1
        for index, (micro, rows) in enumerate(retrieved.micro_batches):
            batch = self._collate(micro, rows, with_unread=self.args.in_batch_candidates and learns)
            with self.micro_batch(step, index, index == last):
                with self.autocast():
                    output = self.module(**batch, num_items=items, detach_retrieval=not learns)
                # DDP averages over ranks what is already a mean over all of them.
                self.accelerator.backward(output.loss * self.world_size)
            figures.append(batch_sums(output, batch["mlm_labels"]))
        if not learns:
            self._freeze_towers()
        facts = {
            "masked_tokens": int(tokens),
            "skipped": int(skipped),
            "excluded": int(excluded),
            "distinct_candidates": int(distinct),
            "candidate_tokens": read / max(1.0, distinct),
            "generation": retrieved.generation,
            "staleness_steps": step - retrieved.snapshot_step,
            "staleness_seconds": time.time() - retrieved.created,
            "search_seconds": retrieved.search_seconds,
            "search_wait_seconds": waited,
        }
        return StepFigures(torch.stack(figures).sum(0), lambda total: {**means(total), **facts})

    def _collate(self, queries: list[MaskedQuery], rows: np.ndarray, *, with_unread: bool = False) -> dict[str, Any]:
        # A rank or micro-batch without any example still takes part: DDP waits for all ranks.
        pairs = list(zip(queries, rows, strict=True)) or [(self.placeholder, np.array([NULL_PASSAGE]))]
        batch = self.collator(pairs)
        if with_unread and queries:
            batch["unread_mask"] = torch.from_numpy(unread_mask(self.passages, queries, rows))
        return {**to_device(batch, self.device), "facts": PreTrainingFacts.of(**batch)}

    def _retriever_learns(self, step: int) -> bool:
        return step > self.args.freeze_retriever_steps and not self.args.detach_retrieval

    def _freeze_towers(self) -> None:
        """Take the towers out of the update: weight decay and old moments would move them even with zero gradients."""
        for tower in (self.model.embedder, self.model.query_embedder):
            for parameter in tower.parameters():
                parameter.grad = None

    # Between two steps

    def after_step(self, step: int) -> dict[str, Any]:
        """Refresh, swap, and ask for the candidates of the step that is `retrieval_depth` away."""
        events = []
        # With frozen towers a new index would equal the old one; after the last step `finish` builds the last one.
        if self._retriever_learns(step) and step < self.args.max_steps:
            event = self.index.after_step(step, self.model.embedder, self.stop_requested.is_set)
            events = [] if event is None else [event]
        self._request(step + 1 + self.args.retrieval_depth)
        found = self.retrieval_after_swap(self.weights.whole(self.model.query_embedder)) if events else {}
        return {"building": self.index.is_building, "events": events, **found}

    def _request(self, step: int) -> None:
        """Begin to retrieve for `step`, if there will be one."""
        assert self.ahead is not None
        if step <= self.args.max_steps:
            self.ahead.request(step, self._positions(step), self.plan.retrieved(self.plan.candidates(step)))

    def _positions(self, step: int) -> np.ndarray:
        args = self.args
        cursor = self.cursor + (step - self.step - 1) * self.examples_per_step
        return step_positions(
            cursor, args.per_device_train_batch_size, args.gradient_accumulation_steps, self.rank, self.world_size
        )

    def loop_state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The served generation, a snapshot still to be built, and the candidates that were retrieved ahead."""
        assert self.ahead is not None
        facts, rows = self.ahead.state()
        return {**self.index.state(), "ahead": facts, "layout": self.plan.layout}, rows

    def _restore_ahead(self, checkpoint: Checkpoint) -> None:
        assert self.ahead is not None
        if checkpoint.state["layout"] != self.plan.layout:
            self._say("Batch, processes or masks differ from the checkpoint's: its candidates are retrieved again.")
            return
        tensors = checkpoint.tensors()
        for facts in checkpoint.state["ahead"]:
            rows = tensors[f"rank{self.rank}.rows.{facts['step']}"].numpy()
            self.ahead.restore(facts, self._positions(facts["step"]), rows)

    # Held-out figures, and the end

    def evaluate(self) -> dict[str, float]:
        """Loss, retrieval utility, null mass and entropy on the held-out sentences, and the retrieval for questions,
        over the index that is served; so it is called while training runs, from a callback.

        Returns:
            `eval_loss` (nats a masked token, or a span), `eval_retrieval_utility` (nats an example), `eval_null_mass`,
            `eval_entropy`, where there are held-out sentences; and what `evaluate_retrieval` returns.
        """
        model = self.weights.whole(self.model)
        found = self.evaluate_retrieval(model.query_embedder)
        if not self.eval_queries:
            return found
        total = self.sum_over_ranks(self.together("evaluate", lambda: self._evaluate_own(model)))
        counted = "tokens" if model.config.marginalization == "token" else "examples"
        total[0] /= max(1.0, total[SUMS.index(counted)])
        return {**means(total, "eval_"), **found}

    def _evaluate_own(self, model: RealmForPreTraining) -> list[float]:
        """[`SUMS`] over this rank's share of the held-out sentences."""
        queries, size = self.eval_queries, self.args.per_device_eval_batch_size
        starts = range(self.rank * size, len(queries), size * self.world_size)
        own = [query for start in starts for query in queries[start : start + size]]
        rows = self._retrieve(model, own)
        batches = (self._collate(own[s : s + size], rows[s : s + size]) for s in range(0, len(own), size))
        with self.autocast():
            return evaluation_sums(model, batches)

    def _retrieve(self, model: RealmForPreTraining, queries: list[MaskedQuery]) -> np.ndarray:
        embeddings = self._embed(model.query_embedder, queries) if self.args.query_encoder == "live" else None
        kept = self.args.num_candidates
        with self.index.reading() as served:
            rows = served.retrieve(queries, self.plan.retrieved(kept), embeddings)[0]
        return self.rerank.of(model)(queries, rows, kept)

    def write_result(self) -> None:
        """RUN/model: weights and tokenizer; `finish` adds what they search."""
        self.write_model(None)

    def finish(self) -> dict[str, Any]:
        """Index the final weights, write their retriever beside RUN/model, and RUN/examples.json."""
        learned = self._retriever_learns(self.step)
        event = self.index.final(self.step, self.model.embedder) if learned else None
        if event is not None:
            self._note({"events": [event]})
        shown = self.eval_queries[:EXAMPLES_SHOWN] or self.examples.first(EXAMPLES_SHOWN)
        model = self.weights.whole(self.model)
        rows = self._retrieve(model, shown)
        self.write_model(self.index.generation)
        self.on_main(lambda: self._write_examples(model, shown, rows), "explain the examples")
        return {"final_generation": self.index.generation}

    def _write_examples(self, model: RealmForPreTraining, shown: list[MaskedQuery], rows: np.ndarray) -> None:
        with self.autocast():
            examples = explain(model, self.collator, self.passages, shown, rows) if shown else []
        with explain_os_errors("write the examples into", self.directory):
            write_json(self.directory / "examples.json", examples, place=self.place)

    def close(self) -> None:
        """End the retrieval thread and the builder."""
        if self.ahead is not None:
            self.ahead.close()
        self.index.stop()
