"""Retrieval is measured while training: figures as counted by hand, at each swap and evaluation."""

import json
import logging

import numpy as np
import pytest
from question_worlds import qa_trainer, questions
from three_trainers import trainer_of
from tiny_worlds import articles_that_share_words, bag_of_words_start, load_world, store_of, tiny_model, tiny_tokenizer
from transformers import TrainerCallback

from realm_hf.data.passages.recurring import find_recurring_spans
from realm_hf.data.questions.load import OpenQAExample
from realm_hf.generations.embedding import embed_passages
from realm_hf.index.faiss_index import build_index
from realm_hf.retriever.candidates import RankingSource
from realm_hf.retriever.retriever import RealmRetriever
from realm_hf.runs.records import read_log
from realm_hf.training.arguments import InverseClozeTrainingArguments, RecurringSpanTrainingArguments
from realm_hf.training.inverse_cloze import InverseClozeTrainer
from realm_hf.training.prefetch import encode_queries
from realm_hf.training.pretraining import RealmTrainer
from realm_hf.training.recurring_spans import RecurringSpanTrainer
from realm_hf.training.retrieval_evaluation import FIGURES, RetrievalQuestions

NAMES = {f"eval_{name}" for name in FIGURES}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    texts = ["The red coast sells oil.", "Gas is sold there.", "The red coast sells oil.", "Oil and gas.", "Rice."]
    titled = [(f"t{place}", text) for place, text in enumerate(texts)]
    return store_of(titled, tmp_path_factory.mktemp("store") / "passages", max_length=32)


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


@pytest.fixture(scope="module")
def ranked(world):
    """A retriever whose ranking is set by hand: for question q the passages come in the order of `order[q]`."""
    passages, _ = load_world(world)
    embedder = tiny_model(retriever_proj_size=16).embedder.eval()
    asked = [OpenQAExample("Who sells oil?", ()), OpenQAExample("Who sells much rice to others?", ())]
    queries = encode_queries(embedder, RetrievalQuestions(asked, passages, tiny_tokenizer(), gold_rows=[0, 0]).ids)
    # Embeddings that score exactly like -rank for both questions: solved by least squares in 16 dimensions.
    order = np.array([[3, 1, 4, 0, 2], [0, 1, 2, 3, 4]])
    scores = np.full((2, len(passages)), -100.0)
    for question in range(2):
        scores[question, order[question]] = -np.arange(5.0)
    embeddings = np.linalg.lstsq(queries.astype(np.float64), scores, rcond=None)[0].T.astype(np.float32)
    retriever = RealmRetriever(passages, index=build_index(embeddings), embeddings=embeddings)

    def ranks(gold_rows):
        questions = RetrievalQuestions(asked, passages, tiny_tokenizer(), gold_rows=gold_rows)
        return questions.ranks(embedder, retriever, depth=5).tolist()

    return ranks


def test_a_rank_is_the_place_of_the_first_right_passage_and_the_depth_where_there_is_none(ranked):
    assert ranked([4, 1]) == [2, 1]
    assert ranked([40, 41]) == [5, 5]
    assert ranked([[50, 3], {2, 0}]) == [0, 0], "any of several counts"


def test_rows_that_are_not_one_for_each_question_are_refused(ranked):
    with pytest.raises(ValueError, match="2 questions and 1 gold rows"):
        ranked([1])


def test_sums_are_those_of_ranks_counted_by_hand_and_parts_add_up(world):
    passages, _ = load_world(world)
    embedder = tiny_model().embedder
    embeddings = embed_passages(embedder, passages)
    retriever = RealmRetriever(passages, tiny_tokenizer(), index=build_index(embeddings), embeddings=embeddings)
    examples = [OpenQAExample(passages.text(row), (), gold=(row,)) for row in range(30)]
    asked = RetrievalQuestions(examples, passages, tiny_tokenizer(), 24)
    found = dict(zip(FIGURES, asked.sums(embedder, retriever, numbers=range(30)), strict=True))
    rows = np.asarray(retriever.retrieve(encode_queries(embedder, asked.ids), 20, null_passage=False).rows).tolist()
    ranks = np.array([place_of(row, rows[row], passages.duplicate_groups) for row in range(30)])
    assert 0 < (ranks < 5).sum() < 30, "the case is what it claims to be"
    assert [found[f"recall_at_{k}"] for k in (1, 5, 20)] == [(ranks < k).sum() for k in (1, 5, 20)]
    assert found["ndcg_at_10"] == pytest.approx(sum(1 / np.log2(rank + 2) for rank in ranks if rank < 10))
    parts = [asked.sums(embedder, retriever, numbers=range(rank, 30, 2)) for rank in (0, 1)]
    assert np.sum(parts, axis=0) == pytest.approx(list(found.values()))
    assert asked.sums(embedder, retriever, numbers=[]) == [0.0] * len(FIGURES)


def place_of(gold, rows, groups):
    """At which of 20 places a passage stands, or one of the same text."""
    return next((place for place, row in enumerate(rows) if groups[row] == groups[gold]), 20)


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
    for count in (0, 20):
        run = tmp_path / str(count)
        trainer_with_questions(world, run, count, max_steps=4, eval_steps=2).train()
        losses.append([record["loss"] for record in read_log(run / "log.jsonl") if "loss" in record])
    assert losses[0] == losses[1] and retrieval_in(tmp_path / "0") == {}


@pytest.fixture(scope="module")
def articles(tmp_path_factory):
    """Ten articles of three passages; two of them share words."""
    texts = ["The harbour sells much {} today.", "People buy {} here.", "The night is long."]
    return articles_that_share_words(tmp_path_factory.mktemp("articles") / "passages", 10, texts)


def by_hand(embedder, passages, asked):
    """recall@5 over all passages as `embedder` sees them; those of one text take one place."""
    embeddings = embed_passages(embedder, passages)
    scores = encode_queries(embedder, asked.ids) @ embeddings.T
    groups = passages.duplicate_groups
    ranked = [list(dict.fromkeys(groups[order].tolist())) for order in np.argsort(-scores, axis=1, kind="stable")]
    return np.mean([groups[gold] in found[:5] for gold, found in enumerate(ranked)])


@pytest.mark.parametrize("task", [InverseClozeTrainer, RecurringSpanTrainer])
def test_a_warm_start_measures_its_towers_over_the_passages_as_they_are_then(articles, tmp_path, task):
    passages = articles
    asked = [OpenQAExample(passages.text(row), (), gold=(row,)) for row in range(10)]
    settings = {"max_steps": 2, "eval_steps": 1, "learning_rate": 3e-2, "per_device_train_batch_size": 4}
    settings |= {"keep_probability": 1.0, "max_query_length": 24, "use_cpu": True, "bf16": False, "disable_tqdm": True}
    kind, more = InverseClozeTrainingArguments, {}
    if task is RecurringSpanTrainer:
        kind, more = RecurringSpanTrainingArguments, {"recurring": find_recurring_spans(passages, tiny_tokenizer())}
    made = task(
        bag_of_words_start(tiny_model()),
        kind(output_dir=str(tmp_path), **settings),
        train_dataset=passages,
        processing_class=tiny_tokenizer(),
        eval_retrieval=asked,
        **more,
    )
    start = by_hand(made.model.embedder, passages, made.retrieval)
    result = made.train()
    found = retrieval_in(tmp_path)
    assert sorted(found) == [0, 1, 2]
    assert found[0]["eval_recall_at_5"] == pytest.approx(start)
    assert found[2]["eval_recall_at_5"] == pytest.approx(by_hand(made.model.embedder, passages, made.retrieval))
    assert len({json.dumps(figures) for figures in found.values()}) > 1, "training moves it"
    assert result.metrics == found[2]


def test_a_warm_start_may_be_asked_over_other_passages_than_it_learns_from(world, store, tmp_path):
    passages, _ = load_world(world)
    made = InverseClozeTrainer(
        tiny_model(),
        InverseClozeTrainingArguments(output_dir=str(tmp_path), use_cpu=True, max_query_length=24),
        train_dataset=passages,
        processing_class=tiny_tokenizer(),
        eval_retrieval=[OpenQAExample("Rice.", ("rice",))],
        eval_passages=store,
    )
    assert made.evaluate()["eval_recall_at_20"] == 1.0, "all five of them are found"


def test_fine_tuning_measures_the_index_that_it_serves_beside_its_answers(world, tmp_path):
    asked = questions(world)[:6]
    made = qa_trainer(world, tmp_path, dev=asked[:2], more={"eval_retrieval": asked}, max_steps=2, eval_steps=1)
    made.train()
    found = retrieval_in(tmp_path)
    assert sorted(found) == [0, 1, 2]
    retriever = RealmRetriever.from_pretrained(tmp_path)
    ranks = made.retrieval.ranks(made.model.embedder, retriever)
    assert found[2]["eval_recall_at_5"] == pytest.approx((ranks < 5).mean())
    assert all("eval_exact_match" in record for record in read_log(tmp_path / "log.jsonl") if record.keys() >= NAMES)


def test_so_many_questions_are_asked_as_the_arguments_say(world, tmp_path):
    made = trainer_with_questions(world, tmp_path, max_eval_questions=3)
    assert len(made.retrieval) == 3
