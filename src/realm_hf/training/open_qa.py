"""Fine-tuning for open-domain question answering (ORQA, section 6; REALM, section 4.3).

Query tower and reader are trained; the passages' vectors stay those of the pre-trained passage tower, so that the
index is built once, or taken over from pre-training. With `refresh` the tower that embeds the questions embeds the
passages anew as well, by the machinery of pre-training.

One optimizer step: embed the questions of a micro-batch, search with these very embeddings, find the answers in the
beam, forward and backward through both losses, divided by all questions of the step over ranks and micro-batches. A
question whose beam holds no answer counts as 0 in that mean, and is counted in the log.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainerCallback

from realm_hf.data.collators import pad_rows
from realm_hf.data.passages.build import PassageStore
from realm_hf.data.questions.answer_finder import AnswerFinder
from realm_hf.data.questions.load import OpenQAExample
from realm_hf.data.reader_batch import encode_questions
from realm_hf.data.vocabulary import SpecialTokens
from realm_hf.generations.manifest import GenerationNotFoundError
from realm_hf.models.host_facts import RowFacts
from realm_hf.models.modeling_realm import RealmEmbedder
from realm_hf.models.modeling_realm_qa import RealmForOpenQA
from realm_hf.models.prompts import room_beside_prompt
from realm_hf.models.transfer import to_device
from realm_hf.qa.answerer import QuestionAnswerer
from realm_hf.retriever.candidates import CandidateSource
from realm_hf.retriever.retriever import RealmRetriever
from realm_hf.runs.directory import RunDirectory
from realm_hf.training.answerless import AnswerlessWatch, trained_questions
from realm_hf.training.best_model import BestModel
from realm_hf.training.candidate_mix import source_of_mix
from realm_hf.training.checkpoints import Checkpoint
from realm_hf.training.data_order import DataOrder, step_positions
from realm_hf.training.gold_passages import gold_rows_to_read, questions_sha256
from realm_hf.training.index_service import IndexService
from realm_hf.training.indexed_trainer import IndexedTrainer
from realm_hf.training.open_qa_arguments import OpenQATrainingArguments
from realm_hf.training.open_qa_beam import AnsweredBeam, BeamSearch
from realm_hf.training.open_qa_evaluation import answered
from realm_hf.training.open_qa_step import SUMS, OpenQAStep, means
from realm_hf.training.optimization import make_accelerator
from realm_hf.training.prefetch import LiveIndex
from realm_hf.training.retrieval_evaluation import RetrievalQuestions
from realm_hf.training.swap_probes import SwapProbes
from realm_hf.training.task import StepFigures

logger = logging.getLogger(__name__)


class OpenQATrainer(IndexedTrainer):
    """Trains query tower and reader on questions with their answers.

    The weights that answered the development questions best become RUN/model; without such questions, the last ones.

    Args:
        model ([`RealmForOpenQA`]): Its configuration takes the beam sizes and the length that the arguments set.
        args ([`OpenQATrainingArguments`]): The arguments.
        train_dataset (`list` of [`OpenQAExample`]): Questions to train on.
        eval_dataset (`list` of [`OpenQAExample`], *optional*): Questions for `evaluate`, early stopping and the choice
            of the best weights; none by default.
        processing_class (`PreTrainedTokenizerBase`): The tokenizer that made the passages.
        passages ([`PassageStore`]): The knowledge corpus.
        passage_embedder ([`RealmEmbedder`], *optional*): The passage tower, where it is not the query tower as `model`
            has it now.
        eval_retrieval (sequence of [`OpenQAExample`], *optional*): Questions with gold passages or answers: at each
            evaluation and swap the served index is asked for them, see [`~IndexedTrainer.evaluate_retrieval`].
        index_from (`str`, *optional*): A run directory, such as that of pre-training, whose newest generation serves
            as the index if it comes from these passages and this passage tower. By default an index is built before
            the first step.
        callbacks (`list` of [`~transformers.TrainerCallback`], *optional*): Called in order; see
            [`RealmCallback`].
        run ([`RunDirectory`] or `str`, *optional*, defaults to `args.output_dir`): The run directory, opened or
            created.
        accelerator (`accelerate.Accelerator`, *optional*): One to share; by default made from the arguments.
        candidate_source ([`CandidateSource`], *optional*): Finds candidates instead of the index.
        reading_source ([`CandidateSource`], *optional*): In training finds what the reader reads, in place of
            `args.candidate_mix`; the retriever's loss and the evaluation keep the index or `candidate_source`.

    Raises:
        ValueError: There is no question, the tokenizer is not the passages', no gold passage is in the corpus although
            `args.gold_passages` is set, or the arguments do not fit the model.
        RunDirectoryError: The directory belongs to another corpus, or cannot be written to.
    """

    name = "fine-tuning"
    figures = ("loss", "span_accuracy")

    def __init__(
        self,
        model: RealmForOpenQA,
        args: OpenQATrainingArguments,
        *,
        train_dataset: Sequence[OpenQAExample],
        eval_dataset: Sequence[OpenQAExample] = (),
        processing_class: PreTrainedTokenizerBase,
        passages: PassageStore,
        passage_embedder: RealmEmbedder | None = None,
        eval_retrieval: Sequence[OpenQAExample] = (),
        index_from: str | Path | None = None,
        callbacks: Sequence[TrainerCallback] = (),
        run: RunDirectory | str | Path | None = None,
        accelerator: Accelerator | None = None,
        candidate_source: CandidateSource | None = None,
        reading_source: CandidateSource | None = None,
    ):
        if not train_dataset:
            raise ValueError("There is no question to train on. Check the source of the questions, and its split.")
        if args.refresh != "off" and passage_embedder is not None:
            raise ValueError(
                f"refresh={args.refresh!r} embeds the passages by the query tower, but a passage tower of its own was "
                "given: its index would be replaced by one of another space. Use refresh='off'."
            )
        accelerator = accelerator or make_accelerator(args)
        args = args.resolved(len(train_dataset), accelerator.num_processes)
        for name in ("searcher_beam_size", "reader_beam_size", "reader_seq_len"):
            if getattr(args, name) is not None:
                setattr(model.config, name, getattr(args, name))
        # Copied before a checkpoint is loaded: a resumed run that must build its index again needs the first weights.
        self.passage_embedder = copy.deepcopy(model.embedder) if passage_embedder is None else passage_embedder
        root = run.root if isinstance(run, RunDirectory) else Path(run or args.output_dir)
        step = OpenQAStep(model, args.freeze_retriever)
        super().__init__(model, step, args, root, accelerator, processing_class, callbacks)
        self.args: OpenQATrainingArguments = args
        self.model: RealmForOpenQA = model
        self.passages, self.index_from = passages, index_from
        finder = AnswerFinder(passages, processing_class)
        self.run = run if isinstance(run, RunDirectory) else self.open_run(root, passages)
        self.train_dataset = list(train_dataset)
        self.eval_dataset = list(eval_dataset)[: args.max_eval_questions]
        gold = (self.train_dataset, passages, processing_class)
        self.gold_rows = gold_rows_to_read(*gold) if args.gold_passages else None
        self._questions_sha256 = questions_sha256(self.train_dataset, self.gold_rows)
        self.order = DataOrder(len(self.train_dataset), args.seed)
        self.special_tokens = SpecialTokens.from_tokenizer(processing_class)
        self.question_ids = self._encode([example.question for example in self.train_dataset])
        config = model.config
        reading_source = source_of_mix(self, args.candidate_mix, reading_source)
        # Without a loss of the retriever's own, what is not read has no use.
        wide = 1 if args.freeze_retriever and args.searcher_beam_size is None else config.searcher_beam_size
        self.search = BeamSearch(finder, wide, config.reader_beam_size, model.reader_length, reading_source)
        self._answerless = AnswerlessWatch(args, self.search.wide, self.search.read)
        asked = list(eval_retrieval)[: args.max_eval_questions]
        self.retrieval = RetrievalQuestions(asked, passages, processing_class, self._question_room)
        probes = self._encode([example.question for example in self.eval_dataset[: args.probe_queries]])
        swaps = SwapProbes(probes, self.search.read)
        self.index = IndexService(self.run, passages, processing_class, args, self.accelerator, swaps)
        self.index.candidate_source = candidate_source
        self.best = BestModel(root, args.early_stopping_patience)
        self._best_index = ExitStack()
        #: What this rank searched last; for callbacks.
        self.beam: AnsweredBeam | None = None

    def own_rates(self) -> dict[nn.Module, float]:
        """The query tower's, if it has one."""
        rate = self.args.retriever_learning_rate
        return {} if rate is None else {self.model.embedder: rate}

    # Before the first step

    def begin(self, checkpoint: Checkpoint | None) -> None:
        """Serve a generation: the checkpoint's, that of `index_from`, or one built now."""
        refreshed = self.args.refresh != "off"
        if checkpoint is not None:
            self.best.restore(checkpoint.state["best"])
            self._keep_best_index()
            self.ends_early = self.best.exhausted
        self.serve(
            checkpoint,
            self.model.embedder if refreshed else self.passage_embedder,
            ended=refreshed and self.step >= self.args.max_steps,
            # After the first step a refreshed index is no longer that of the run it came from.
            adopt_from=self.index_from if self.step == 0 or not refreshed else None,
        )

    def _encode(self, questions: list[str]) -> list[np.ndarray]:
        """`[CLS] question [SEP]` of each, cut to `max_query_length`."""
        return encode_questions(questions, self.processing_class, self.special_tokens, self._question_room)

    @property
    def _question_room(self) -> int:
        config = self.model.config
        return room_beside_prompt(config, "query", min(self.args.max_query_length, config.max_position_embeddings))

    # One step

    @property
    def examples_per_epoch(self) -> int:
        """Questions in one pass over the data."""
        return self.order.size

    def trained_on(self) -> dict[str, Any]:
        """Corpus and questions, and what of the model's configuration the losses depend on."""
        names = ("score_scale", "searcher_beam_size", "reader_beam_size", "reader_seq_len", "max_span_width")
        return {
            "passages": self.passages.fingerprint,
            "questions": self._questions_sha256,
            **{name: getattr(self.model.config, name) for name in names},
        }

    def verify_data(self) -> None:
        """The files of the passages."""
        PassageStore.load(self.passages.directory, verify=True)

    def accumulate(self, step: int) -> StepFigures:
        """Forward and backward over all micro-batches of this rank, normalised by the questions of all ranks."""
        args = self.args
        micro_batches = step_positions(
            self.cursor, args.per_device_train_batch_size, args.gradient_accumulation_steps, self.rank, self.world_size
        )
        sums, seconds = torch.zeros(len(SUMS), device=self.device), np.zeros(2)
        last = len(micro_batches) - 1
        with self.index.reading() as served:
            for index, positions in enumerate(micro_batches):
                rows, _ = self.order(positions)
                with self.micro_batch(step, index, index == last):
                    with self.autocast():
                        output = self._forward(served, rows)
                    # DDP averages over ranks what is already divided by the questions of all of them.
                    self.accelerator.backward(output.loss * (self.world_size / self.examples_per_step))
                sums = sums + output.sums()
                assert self.beam is not None
                seconds += [self.beam.search_seconds, self.beam.answer_seconds]
            generation, snapshot_step = served.name, served.info.snapshot_step
        facts = {
            "questions": self.examples_per_step,
            "generation": generation,
            "staleness_steps": step - snapshot_step,
            "search_seconds": seconds[0],
            "answer_seconds": seconds[1],
        }

        def record(total: list[float]) -> dict[str, Any]:
            figures = {**means(total, self.examples_per_step), **facts}
            if self.accelerator.is_main_process:
                self._answerless.see(figures)
            return figures

        return StepFigures(sums, record)

    def _forward(self, served: LiveIndex, rows: np.ndarray) -> Any:
        ids = [self.question_ids[row] for row in rows]
        examples = [self.train_dataset[row] for row in rows]
        gold = None if self.gold_rows is None else [self.gold_rows[row] for row in rows]

        def search(queries: torch.Tensor) -> AnsweredBeam:
            self.beam = self.search(served.retriever, queries, ids, examples, gold)
            return self.beam

        input_ids, attention_mask = pad_rows(ids, self.special_tokens.pad)
        sent = to_device({"input_ids": input_ids, "attention_mask": attention_mask}, self.device)
        return self.module(**sent, search=search, facts=RowFacts.of(input_ids, attention_mask))

    def after_step(self, step: int) -> dict[str, Any]:
        """Refresh and swap, where that is asked for."""
        if self.args.refresh == "off" or step >= self.args.max_steps:
            return {}
        event = self.index.after_step(step, self.model.embedder, self.stop_requested.is_set)
        found = {} if event is None else self.retrieval_after_swap(self.model.embedder)
        return {"building": self.index.is_building, "events": [] if event is None else [event], **found}

    def loop_state(self) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """The served generation, a snapshot still to be built, and what was best."""
        return {**self.index.state(), "best": self.best.state()}, {}

    # Development figures, and the end

    def evaluate(self) -> dict[str, float]:
        """Answer the development questions by the index that is served; keep the weights if they are the best so far.

        Returns:
            `eval_exact_match` (regex match where the answers are regular expressions) and `eval_answer_recall` (how
            often a passage that was read holds an answer), both between 0 and 1, where there are such questions; and
            what `evaluate_retrieval` returns.
        """
        found = self.evaluate_retrieval(self.model.embedder)
        if not self.eval_dataset:
            return found
        generation, own = self.together("evaluate", self._evaluate_own)
        matched, recalled, asked = self.sum_over_ranks(own)
        metrics = {"eval_exact_match": matched / asked, "eval_answer_recall": recalled / asked}
        if self.best.consider(self.step, metrics["eval_exact_match"], generation):
            self.on_main(lambda: self.best.save(self.model, self.term), "keep the best weights")
            self._keep_best_index()
        self.ends_early = self.best.exhausted
        return {**metrics, **found}

    def _evaluate_own(self) -> tuple[str, list[float]]:
        """The generation that was searched, and of this rank's questions the right ones, those whose passages hold an
        answer, and their number.
        """
        own = self.eval_dataset[self.rank :: self.world_size]
        with self.index.reading() as served, self.autocast():
            generation = served.name
            return generation, answered(own, self._answerer(served.retriever.alone()), self.search.finder)

    def _keep_best_index(self) -> None:
        """Lease the generation that the best weights searched: no collection takes it before the model is written."""
        self._best_index.close()
        if self.accelerator.is_main_process and self.best.generation is not None:
            with suppress(GenerationNotFoundError):  # `finish` says so
                self._best_index.enter_context(self.index.keep(self.best.generation))

    def _answerer(self, retriever: RealmRetriever) -> QuestionAnswerer:
        """Answers as the model would when it is done; restores the training mode."""
        size, most = self.args.per_device_eval_batch_size, self.args.max_query_length
        return QuestionAnswerer(
            self.model, retriever, self.processing_class, batch_size=size, max_question_length=most
        )

    def write_result(self) -> None:
        """RUN/model: the best weights so far and the tokenizer; `finish` adds what they search."""
        self.write_model(None, self.best.folder)

    def finish(self) -> dict[str, Any]:
        """Index the final weights if the index is refreshed at all; write RUN/model."""
        if not self.ends_early:
            event = self.index.final(self.step, self.model.embedder)
            if event is not None:
                self._note({"events": [event]})
        self._evaluate()
        generation: str | None = self.index.generation
        if self.best.step is not None and self.best.generation is not None:
            best = str(self.best.generation)
            generation = self.on_main(lambda: self.index.servable(best), "look for the index of the best weights")
        if generation is None:
            logger.warning("The index of the best weights is gone: RUN/model gets the last weights and their index.")
            generation, self.best.step = self.index.generation, None
        beside = generation if self.args.save_retriever else None
        self.write_model(beside, self.best.folder)
        chosen = {"step": self.step} if self.best.step is None else {"step": self.best.step, "value": self.best.value}
        return {"final_generation": generation, "model": chosen, "trained_questions": trained_questions(self.log_path)}

    def close(self) -> None:
        """End the builder and give the generations back."""
        self.index.stop()
        self._best_index.close()
