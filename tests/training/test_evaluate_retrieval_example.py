"""The example that compares retrievers counts as the trainer does, by answers and by gold passages."""

import json

import pytest
from example_programs import run_example
from three_trainers import trainer_of
from tiny_worlds import load_world

from realm_hf.data.questions.load import OpenQAExample
from realm_hf.training.retrieval_evaluation import RetrievalQuestions


@pytest.fixture(scope="module")
def run(world, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    made = trainer_of("pre-training", world, folder, max_steps=2, bf16=False)
    passages, _ = load_world(world)
    asked = [OpenQAExample(passages.text(row), (), gold=(row,)) for row in range(12)]
    made.retrieval = RetrievalQuestions(asked, passages, made.processing_class, 24)
    return folder, made.train().metrics


def table_of(run, world, tmp_path, monkeypatch, *words):
    passages, _ = load_world(world)
    questions = tmp_path / "questions.jsonl"
    rows = [{"question": passages.text(row), "answer": passages.text(row)[:-1], "passage": row} for row in range(12)]
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    output = tmp_path / "table.json"
    words = ["--run", run, "--questions", questions, "--max_query_length", 24, "--output", output, *words]
    run_example("evaluate_retrieval", monkeypatch, *words)
    return json.loads(output.read_text())


def test_the_last_generation_has_the_figures_that_training_ended_with(run, world, tmp_path, monkeypatch, capsys):
    folder, metrics = run
    table = table_of(folder, world, tmp_path, monkeypatch, "--gold_column", "passage")
    assert list(table) == ["step 0", "step 2", "BM25"]
    measured = [metrics["eval_recall_at_1"], metrics["eval_recall_at_5"], metrics["eval_recall_at_20"]]
    measured.append(metrics["eval_ndcg_at_10"])
    assert list(table["step 2"].values()) == pytest.approx([100 * share for share in measured], abs=0.051)
    printed = capsys.readouterr().out
    assert "| retriever | recall@1 | recall@5 | recall@20 | nDCG@10 |" in printed and "by gold passages" in printed


def test_by_answers_the_first_passage_that_holds_one_counts(run, world, tmp_path, monkeypatch, capsys):
    table = table_of(run[0], world, tmp_path, monkeypatch)
    assert "by answer string" in capsys.readouterr().out
    assert table["BM25"]["1"] == table["BM25"]["ndcg@10"] == 100.0, "the question is the passage"
