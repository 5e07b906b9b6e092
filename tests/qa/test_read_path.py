"""One batch, three callers: the model's forward, a training step and an answerer read it alike."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from question_worlds import answerless, questions
from tiny_answerers import tiny_answerer
from tiny_worlds import load_world, tiny_tokenizer

from realm_hf.data.collators import pad_rows
from realm_hf.data.questions.answer_finder import AnswerFinder
from realm_hf.data.vocabulary import SpecialTokens
from realm_hf.models.modeling_outputs import SpanScores
from realm_hf.models.modeling_realm_qa import RealmForOpenQA
from realm_hf.models.reading import ReadBeam
from realm_hf.qa.answerer import QuestionAnswerer
from realm_hf.training.open_qa_beam import BeamSearch
from realm_hf.training.open_qa_step import OpenQAStep, StepOutput

READ, WIDE = 3, 7
"""Passages that are read, and that training searches."""


class Watched(RealmForOpenQA):
    """Keeps what its reader found last."""

    read: ReadBeam | None = None

    def read_beam(self, *args, **kwargs) -> ReadBeam:
        self.read = super().read_beam(*args, **kwargs)
        return self.read


@pytest.fixture
def examples(world):
    """Four questions of different lengths; one has no answer in the corpus, one has several."""
    first, second, third, fourth = questions(world)[:4]
    longer = replace(second, question=f"now {second.question}")
    return [first, longer, answerless(third), replace(fourth, answers=("oil", "gas", "fish", *fourth.answers))]


@pytest.fixture
def answerer(world) -> QuestionAnswerer:
    answerer = tiny_answerer(load_world(world)[0], reader_beam_size=READ, searcher_beam_size=WIDE)
    answerer.model.__class__ = Watched
    answerer.model.double()
    return answerer


def step_of(answerer, examples) -> StepOutput:
    """The training step on these questions."""
    model, ids = answerer.model, answerer._question_ids([example.question for example in examples])
    input_ids, mask = map(torch.from_numpy, pad_rows(ids, SpecialTokens.from_tokenizer(answerer.tokenizer).pad))
    finder = AnswerFinder(answerer.retriever.passages, answerer.tokenizer)
    search = BeamSearch(finder, WIDE, READ, model.reader_length)
    return OpenQAStep(model)(input_ids, mask, lambda queries: search(answerer.retriever, queries, ids, examples))


def forward_of(answerer, examples):
    """The model called as in transformers 4."""
    tokenizer = tiny_tokenizer()
    ids = [tokenizer(list(example.answers), add_special_tokens=False)["input_ids"] for example in examples]
    encoded = tokenizer([example.question for example in examples], padding=True, return_tensors="pt")
    return answerer.model(**encoded, answer_ids=ids)


def test_the_three_callers_find_the_same_best_spans_in_float64(answerer, examples):
    answers = answerer([example.question for example in examples])
    answered = answerer.model.read
    step_of(answerer, examples)
    trained = answerer.model.read
    ported = forward_of(answerer, examples).reader_output
    assert answered.logits.dtype == trained.logits.dtype == torch.float64

    best = answered.best_of_questions()
    assert torch.equal(best, trained.best_of_questions())
    spans = answered.spans
    assert torch.equal(answered.input_rank[spans.pair[best]], ported.block_idx)
    assert torch.equal(spans.start[best], ported.start_pos) and torch.equal(spans.end[best], ported.end_pos)
    for number, answer in enumerate(answers):
        assert answer.score == answered.logits[best[number]].item()
        words = answerer.tokenizer(answer.text, add_special_tokens=False)["input_ids"]
        assert forward_of(answerer, examples).predicted_answer_ids[number].tolist() == words


def test_step_and_answerer_score_the_same_spans_to_the_bit(answerer, examples):
    answerer([example.question for example in examples])
    answered = answerer.model.read
    step_of(answerer, examples)
    trained = answerer.model.read
    for name in ("logits", "pair", "start", "end"):
        assert torch.equal(getattr(answered.spans, name), getattr(trained.spans, name)), name
    assert torch.equal(answered.logits, trained.logits)
    assert torch.equal(answered.relevance, trained.relevance[:, :READ])
    assert trained.relevance.shape == (4, WIDE)


def test_step_and_forward_have_the_same_losses_in_float64(answerer, examples):
    answerer.model.train()
    step, ported = step_of(answerer, examples), forward_of(answerer, examples).reader_output
    for name in ("retriever_loss", "reader_loss"):
        torch.testing.assert_close(getattr(step, name), ported[name].detach(), atol=1e-12, rtol=0)
    assert step.retriever_loss[2] == step.reader_loss[2] == 0
    assert (step.retriever_loss[[0, 1, 3]] > 0).all()
    # What answers the second question is retrieved, but not read.
    assert (step.reader_loss > 0).tolist() == [True, False, False, True]


def test_a_span_is_counted_as_right_only_where_it_is_the_one_that_is_answered(answerer, examples):
    # Every span of every passage ties: the first wordpiece of the best passage is the answer, and it is wrong.
    with torch.no_grad():
        answerer.model.reader.qa_outputs.dense_output.weight.zero_()
        answerer.model.config.score_scale = 0.0
    step = step_of(answerer, examples)
    rights = [example.answers for example in examples]
    texts = [answer.text for answer in answerer([example.question for example in examples])]
    assert step.best_is_answer.tolist() == [text in right for text, right in zip(texts, rights, strict=True)]
    assert (step.read_has_answer & ~step.best_is_answer).any()


class OneLogitAToken(torch.nn.Module):
    """A reader of another kind: single wordpieces by their id, no tower."""

    def __init__(self, reader):
        super().__init__()
        self.config, self.weight = reader.config, torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

    def score_spans(self, input_ids, attention_mask, token_type_ids, block_mask, facts=None) -> SpanScores:
        pair, place = block_mask.nonzero(as_tuple=True)
        return SpanScores(self.weight * input_ids[pair, place].double(), pair, place, place)


def test_a_reader_that_scores_spans_its_own_way_is_trained_and_answers(answerer, examples):
    model = answerer.model
    model.reader = OneLogitAToken(model.reader)
    step = step_of(answerer, examples)
    step.loss.backward()
    assert model.reader.weight.grad.abs() > 0
    assert any(parameter.grad is not None and parameter.grad.any() for parameter in model.embedder.parameters())
    answers = answerer([example.question for example in examples])
    read = model.read
    best = read.best_of_questions()
    assert np.allclose([answer.score for answer in answers], read.logits[best].tolist())
    assert all(answer.text for answer in answers)
