"""A fine-tuning step with a beam of 5,000: embed, search, find the answers, read five passages, both losses, backward.

The port tokenizes all passages of the beam together with the question in every step, and looks for the answers in
Python lists; here both stand in the stored wordpieces. The optimizer's update is outside on both sides.
"""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness.alternation import alternate, timed
from harness.inputs import SCRATCH, load_passages, load_tokenizer, make_questions
from harness.peer import Peer
from harness.rows import Row, Settings, timed_row

from realm_hf.data.collators import pad_rows
from realm_hf.data.questions.answer_finder import AnswerFinder
from realm_hf.data.questions.load import OpenQAExample
from realm_hf.data.reader_batch import encode_questions
from realm_hf.data.vocabulary import SpecialTokens
from realm_hf.training.open_qa_beam import BeamSearch
from realm_hf.training.open_qa_step import OpenQAStep, StepOutput
from rows.open_qa import PORT, World, make_world, write_world


def measure(settings: Settings) -> Iterator[Row]:
    """One row, in seconds a question: ours takes two at once, the port one after the other."""
    tokenizer = load_tokenizer()
    passages = load_passages(settings, tokenizer)
    beam, count = (200, 2) if settings.quick else (5000, 2)
    world = make_world(settings, passages, tokenizer, beam)
    world.model.train()
    finder = AnswerFinder(passages, tokenizer)
    examples = _common_answers(make_questions(passages, 50 if settings.quick else 200), finder, count)
    step = make_step(world, finder, examples)
    with tempfile.TemporaryDirectory(dir=SCRATCH) as work:
        write_world(world, examples, Path(work))
        with Peer("fine_tuning", Path(work), settings.threads, world.options) as peer:
            agreement = _check_agreement(step(), peer.step()["losses"])
            found = alternate(timed(step), peer, settings.rounds, most_rounds=settings.most_rounds)
    yield timed_row(
        found,
        1 / count,
        name=f"fine-tuning step, beam {beam:,}",
        beside=PORT,
        unit="s/question",
        goal=10.0,
        kind="speedup",
        note=f"{count} questions a step, beam out of {len(passages):,} passages, 5 read; {agreement}.",
    )


def make_step(world: World, finder: AnswerFinder, examples: list[OpenQAExample]) -> Callable[[], StepOutput]:
    """Forward and backward of all questions, as the trainer does."""
    config = world.model.config
    texts = [example.question for example in examples]
    special = SpecialTokens.from_tokenizer(world.tokenizer)
    question_ids = encode_questions(texts, world.tokenizer, special, config.max_position_embeddings)
    input_ids, attention_mask = (torch.from_numpy(array) for array in pad_rows(question_ids, special.pad))
    search = BeamSearch(finder, config.searcher_beam_size, config.reader_beam_size, config.reader_seq_len)
    module = OpenQAStep(world.model)

    def step() -> StepOutput:
        module.zero_grad(set_to_none=True)
        output: StepOutput = module(
            input_ids, attention_mask, lambda queries: search(world.retriever, queries, question_ids, examples)
        )
        output.loss.backward()
        return output

    return step


def _common_answers(examples: list[OpenQAExample], finder: AnswerFinder, count: int) -> list[OpenQAExample]:
    """Questions whose answers stand in many passages, so that a random beam holds some."""
    rows = np.arange(len(finder.passages))
    held = [int(finder.find(rows, example.answers, span_rows=0).has_answer.sum()) for example in examples]
    order = sorted(range(len(examples)), key=lambda number: -held[number])
    return [examples[number] for number in order[:count]]


def _check_agreement(ours: StepOutput, theirs: list[float]) -> str:
    """How many losses agree; the port also takes an answer inside a longer word for one.

    Raises:
        RuntimeError: Fewer than half do: the sides do not do the same work.
    """
    losses: list[Any] = (ours.retriever_loss + ours.reader_loss).tolist()
    same = sum(abs(loss - other) < 1e-3 for loss, other in zip(losses, theirs, strict=True))
    if same * 2 < len(losses):
        raise RuntimeError(f"Losses are {losses} here and {theirs} there: not the same work.")
    return f"{same} of {len(losses)} losses agree within 1e-3"
