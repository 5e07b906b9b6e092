"""`pipeline("open-domain-qa", ...)`: every way in, every way out, and back from a directory."""

import json

import pytest
import torch
from datasets import Dataset
from promises import same_answers
from tiny_answerers import tiny_answerer
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from realm_hf.models.modeling_realm_qa import RealmForOpenQA
from realm_hf.qa.pipeline import OpenQAPipeline
from realm_hf.registration import TASK, register_pipeline
from realm_hf.retriever.retriever import RealmRetriever

QUESTIONS = ["How many people has the island?", "Where does the river lie?", "", "What is in the north?", "road"]


@pytest.fixture(scope="module", autouse=True)
def registered():
    register_pipeline()


@pytest.fixture(scope="module")
def answerer(tiny_passages):
    return tiny_answerer(tiny_passages)


@pytest.fixture(scope="module")
def asked(answerer) -> OpenQAPipeline:
    return pipeline(TASK, model=answerer.model, retriever=answerer.retriever, device="cpu")


@pytest.fixture(scope="module")
def saved(asked, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    asked.save_pretrained(folder)
    return folder


def test_the_pipeline_gives_the_answerers_answers(asked, answerer):
    assert isinstance(asked, OpenQAPipeline) and asked.task == TASK
    expected = [answer.to_dict() for answer in answerer(QUESTIONS)]
    assert same_answers(asked(QUESTIONS), expected)
    assert same_answers(asked(QUESTIONS[0]), expected[0])
    assert json.loads(json.dumps(asked(QUESTIONS), allow_nan=False)) == asked(QUESTIONS)


def test_every_kind_of_input_is_taken(asked):
    expected = asked(QUESTIONS)
    rows = [{"question": question} for question in QUESTIONS]
    assert same_answers(asked(tuple(QUESTIONS)), expected)
    assert same_answers(asked(rows), expected)
    assert same_answers(asked(rows[1]), expected[1])
    assert asked([]) == [] and asked(()) == []
    for stream in (
        asked(question for question in QUESTIONS),
        asked(KeyDataset(Dataset.from_list(rows), "question")),
        asked(_Questions()),
    ):
        assert not isinstance(stream, list)
        assert same_answers(list(stream), expected)


def test_a_stream_is_answered_as_it_comes(asked):
    taken = []

    def questions():
        for question in QUESTIONS * 4:
            taken.append(question)
            yield question

    stream = asked(questions(), batch_size=3)
    next(stream)
    assert len(taken) == 3
    assert len(list(stream)) == len(taken) - 1 == 19


def test_a_list_is_answered_in_batches(asked, answerer, monkeypatch):
    sizes = []
    original = answerer.retriever.retrieve
    monkeypatch.setattr(
        answerer.retriever,
        "retrieve",
        lambda queries, *args, **kw: sizes.append(len(queries)) or original(queries, *args, **kw),
    )
    asked(["a"] * 70)
    asked(["a"] * 5, batch_size=2)
    assert sizes == [32, 32, 6, 2, 2, 1]


def test_parameters_hold_for_the_pipeline_or_for_a_call(answerer):
    two = pipeline(TASK, model=answerer.model, top_k=2, batch_size=4, device="cpu")
    assert len(two("a")["evidence"]) == 2 and len(two(["a"], top_k=7)[0]["evidence"]) == 7
    assert len(two("a")["evidence"]) == 2
    for wrong, message in (({"top_n": 3}, "top_n"), ({"max_answer_len": 3}, "max_answer_len")):
        with pytest.raises(TypeError, match=message):
            two("a", **wrong)
    with pytest.raises(ValueError, match="top_k is 0"):
        two("a", top_k=0)
    with pytest.raises(ValueError, match="batch_size is 0"):
        two(["a"], batch_size=0)
    with pytest.raises(TypeError, match="must be strings"):
        two([None])


def test_a_saved_pipeline_comes_back_from_its_directory(asked, saved):
    again = pipeline(TASK, model=str(saved), device="cpu")
    assert same_answers(again(QUESTIONS), asked(QUESTIONS))
    assert "custom_pipelines" not in json.loads((saved / "config.json").read_text())
    assert not list(saved.glob("*.py"))


def test_model_and_retriever_may_be_objects_or_directories(asked, saved, answerer):
    expected = asked(QUESTIONS)
    bare = RealmForOpenQA.from_pretrained(saved)
    retriever = RealmRetriever.from_pretrained(saved)
    for options in (
        {"model": bare, "retriever": retriever},
        {"model": bare, "retriever": saved},
        {"model": saved, "retriever": str(saved)},
        {"model": bare, "retriever": retriever, "tokenizer": answerer.tokenizer},
        {"model": bare, "retriever": retriever, "tokenizer": str(saved)},
        {"model": bare},
    ):
        assert same_answers(pipeline(TASK, device="cpu", **options)(QUESTIONS), expected)


def test_without_a_corpus_it_is_refused(answerer, tmp_path):
    model = RealmForOpenQA(answerer.model.config)
    with pytest.raises(ValueError, match="nothing to search"):
        pipeline(TASK, model=model, device="cpu")
    with pytest.raises(FileNotFoundError, match=tmp_path.name):
        pipeline(TASK, model=model, retriever=tmp_path, device="cpu")
    model.save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=tmp_path.name):
        pipeline(TASK, model=str(tmp_path), device="cpu")


def test_registering_twice_is_silent(caplog):
    register_pipeline()
    assert not caplog.records
    assert [model.__name__ for model in PIPELINE_REGISTRY.check_task(TASK)[1]["pt"]] == ["RealmForOpenQA"]


class _Questions(torch.utils.data.Dataset):
    def __len__(self):
        return len(QUESTIONS)

    def __getitem__(self, number):
        return QUESTIONS[number]
