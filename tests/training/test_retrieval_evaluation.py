"""Retrieval is measured while training: figures as counted by hand, at each swap and evaluation."""

import json
import logging

import numpy as np
import pytest
from datasets import Dataset
from three_trainers import trainer_of
from tiny_worlds import load_world, tiny_model, tiny_tokenizer
from transformers import TrainerCallback

from realm_hf.data.passages.build import passages_from_rows
from realm_hf.data.questions.load import OpenQAExample
from realm_hf.generations.embedding import embed_passages
from realm_hf.index.faiss_index import build_index
from realm_hf.retriever.candidates import RankingSource
from realm_hf.retriever.retriever import RealmRetriever
from realm_hf.runs.records import read_log
from realm_hf.training.pretraining import RealmTrainer
from realm_hf.training.retrieval_evaluation import FIGURES, RetrievalQuestions

NAMES = {f"eval_{name}" for name in FIGURES}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    texts = ["The red coast sells oil.", "Gas is sold there.", "The red coast sells oil.", "Oil and gas.", "Rice."]
    rows = Dataset.from_dict({"title": [f"t{place}" for place in range(5)], "text": texts})
    return passages_from_rows(rows, tiny_tokenizer(), tmp_path_factory.mktemp("store") / "passages", max_length=32)


def judged(store, example, rows):
    asked = RetrievalQuestions([example], store, tiny_tokenizer(), 24)
    found = asked.judge([0], np.array([rows]))
    return found.hits[0].tolist(), int(found.relevant[0])


def test_gold_passages_count_wherever_they_are_and_one_of_the_same_text_is_the_same(store):
    example = OpenQAExample("Who sells oil?", (), gold=(0, 3))
    assert judged(store, example, [4, 2, 3, -2]) == ([False, True, True, False], 2)
    assert judged(store, example, [2, 0, 1, 4]) == ([True, False, False, False], 2), "a copy is not found twice"


def test_by_answers_the_first_passage_that_holds_one_counts_alone(store):
    example = OpenQAExample("What is sold?", ("oil", "cotton"))
    assert judged(store, example, [4, 3, 0, -2]) == ([False, True, False, False], 1)
    assert judged(store, example, [4, 1, -2, -2]) == ([False] * 4, 1)


def test_expressions_are_searched_and_gold_goes_before_answers(store):
    assert judged(store, OpenQAExample("q", (r"r.ce\b",), regex=True), [3, 4]) == ([False, True], 1)
    assert judged(store, OpenQAExample("q", ("oil",), gold=(4,)), [3, 4]) == ([False, True], 1)


def test_an_expression_without_end_is_said_once_and_counts_as_not_found(store, monkeypatch, caplog):
    asked = []

    def slow(text, answers):
        asked.append(text)
        raise TimeoutError("it backtracks without end")

    monkeypatch.setattr("realm_hf.training.retrieval_evaluation.contains_regex", slow)
    with caplog.at_level(logging.WARNING):
        assert judged(store, OpenQAExample("q?", ("(a+)+",), regex=True), [3, 4]) == ([False, False], 1)
    assert len(asked) == 1 and "'q?' counts as not found: it backtracks" in caplog.text


def test_a_passage_is_looked_at_once_for_a_question(store, monkeypatch):
    asked = RetrievalQuestions([OpenQAExample("q", ("cotton",))], store, tiny_tokenizer(), 24)
    asked.judge([0], np.array([[0, 1]]))
    monkeypatch.setattr("realm_hf.training.retrieval_evaluation.contains_answer", lambda text, _: "Rice" in text)
    assert asked.judge([0], np.array([[0, 4]])).hits.tolist() == [[False, True]]


def test_a_question_that_nothing_could_answer_is_refused(store):
    with pytest.raises(ValueError, match=r"'q\?' has neither a gold passage nor an answer"):
        RetrievalQuestions([OpenQAExample("q?", ())], store, tiny_tokenizer(), 24)


def test_gold_passages_that_are_not_in_the_corpus_are_said_and_count_as_not_found(store, caplog):
    lost = OpenQAExample("q", ("oil",), gold=("no such text in all of this corpus of five short passages",))
    with caplog.at_level(logging.WARNING):
        assert judged(store, lost, [0, 3]) == ([False, False], 0)
    assert "The gold passages of 1 of 1 questions" in caplog.text


def test_sums_are_those_of_ranks_counted_by_hand_and_parts_add_up(world):
    passages, _ = load_world(world)
    embedder = tiny_model().embedder
    embeddings = embed_passages(embedder, passages)
    retriever = RealmRetriever(passages, tiny_tokenizer(), index=build_index(embeddings), embeddings=embeddings)
    examples = [OpenQAExample(passages.text(row), (), gold=(row,)) for row in range(30)]
    asked = RetrievalQuestions(examples, passages, tiny_tokenizer(), 24)
    found = dict(zip(FIGURES, asked.sums(embedder, retriever, numbers=range(30), batch_size=7), strict=True))

    from realm_hf.training.evaluation import retrieval_ranks

    texts = [example.question for example in examples]
    ranks = retrieval_ranks(embedder, tiny_tokenizer(), retriever, texts, list(range(30)), max_length=24)
    assert 0 < (ranks < 5).sum() < 30, "the case is what it claims to be"
    assert [found[f"recall_at_{k}"] for k in (1, 5, 20)] == [(ranks < k).sum() for k in (1, 5, 20)]
    assert found["ndcg_at_10"] == pytest.approx(sum(1 / np.log2(rank + 2) for rank in ranks if rank < 10))
    parts = [asked.sums(embedder, retriever, numbers=range(rank, 30, 2)) for rank in (0, 1)]
    assert np.sum(parts, axis=0) == pytest.approx(list(found.values()))
    assert asked.sums(embedder, retriever, numbers=[]) == [0.0] * len(FIGURES)


class OnlyTheLast(RankingSource):
    """A source that finds the last passages, whatever is asked."""

    def rank(self, knowledge, queries, depth):
        rows = np.arange(len(knowledge.corpus))[::-1][:depth]
        return np.zeros((len(queries), depth), np.float32), np.tile(rows, (len(queries), 1))


def trainer_with_questions(world, run, questions=20, **overrides) -> RealmTrainer:
    made = trainer_of("pre-training", world, run, **overrides)
    passages, sentences = load_world(world)
    asked = [OpenQAExample(passages.text(row), (), gold=(row,)) for row in range(questions)]
    return RealmTrainer(
        tiny_model(),
        made.args,
        train_dataset=sentences.train,
        eval_dataset=sentences.heldout,
        processing_class=tiny_tokenizer(),
        passages=passages,
        eval_retrieval=asked,
        candidate_source=OnlyTheLast() if overrides.get("masking") == "uniform" else None,
    )


def retrieval_in(run):
    return {
        record["step"]: {name: record[name] for name in sorted(NAMES)}
        for record in read_log(run / "log.jsonl")
        if record.keys() >= NAMES
    }


def test_every_swap_and_every_evaluation_is_measured_over_the_index_that_is_served(world, tmp_path, capsys):
    said = []

    class Listen(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **kwargs):
            said.append(metrics)

    made = trainer_with_questions(world, tmp_path, max_steps=6, eval_steps=3, learning_rate=1e-2, bf16=False)
    made.callbacks.append(Listen())
    result = made.train()
    found = retrieval_in(tmp_path)
    assert sorted(found) == [0, 2, 3, 4, 6], "swaps at 0, 2, 4 and 6; evaluations at 0, 3 and 6"
    assert all(0 <= value <= 1 for figures in found.values() for value in figures.values())
    assert len({json.dumps(figures) for figures in found.values()}) > 1, "training moves it"
    assert [metrics.keys() >= NAMES for metrics in said] == [True] * 3
    assert result.metrics.items() >= found[6].items()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["evaluation"].items() >= found[6].items()

    # By hand, over the index and the weights that are left.
    retriever = RealmRetriever.from_pretrained(tmp_path)
    ids = made.retrieval.ids
    from realm_hf.training.prefetch import encode_queries

    rows = np.asarray(retriever.retrieve(encode_queries(made.model.embedder, ids), 20, null_passage=False).rows)
    gold = np.arange(len(ids))[:, None]
    assert found[6]["eval_recall_at_5"] == pytest.approx((rows[:, :5] == gold).any(1).mean())
    # A swap's seconds are those of an evaluation, not of a step.
    (swapped,) = [r for r in read_log(tmp_path / "log.jsonl") if r["step"] == 4 and "loss" in r]
    assert swapped["eval_seconds"] > 0 and "eval_loss" not in swapped


def test_between_two_swaps_the_questions_are_asked_by_todays_tower(world, tmp_path):
    made = trainer_with_questions(world, tmp_path, max_steps=4, eval_steps=1, refresh="off", learning_rate=3e-2)
    made.train()
    found = retrieval_in(tmp_path)
    assert sorted(found) == [0, 1, 2, 3, 4]
    assert len({json.dumps(figures) for figures in found.values()}) > 1, "the index is the same, the tower is not"


def test_a_candidate_source_is_not_what_is_measured(world, tmp_path):
    made = trainer_with_questions(world, tmp_path / "source", max_steps=1, masking="uniform")
    assert made.index.candidate_source is not None
    made.train()
    plain = trainer_with_questions(world, tmp_path / "plain", max_steps=1)
    plain.train()
    assert retrieval_in(tmp_path / "source")[0] == retrieval_in(tmp_path / "plain")[0]


def test_the_figures_change_nothing_that_is_trained(world, tmp_path):
    losses = []
    for questions in (0, 20):
        run = tmp_path / str(questions)
        trainer_with_questions(world, run, questions, max_steps=4, eval_steps=2).train()
        losses.append([record["loss"] for record in read_log(run / "log.jsonl") if "loss" in record])
    assert losses[0] == losses[1] and retrieval_in(tmp_path / "0") == {}


def test_so_many_questions_are_asked_as_the_arguments_say(world, tmp_path):
    made = trainer_with_questions(world, tmp_path, max_eval_questions=3)
    assert len(made.retrieval) == 3
