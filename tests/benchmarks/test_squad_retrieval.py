"""The table of SQuAD's paragraphs found without training, on four small articles."""

import sys
from pathlib import Path

import numpy as np
import pytest
from tiny_squad import DEV_FROM, tiny_squad, tiny_weights

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import squad_retrieval
from harness import pooled_states
from harness.results import BEGIN, END, read_lines


@pytest.fixture
def options(tmp_path):
    return [
        *tiny_squad(tmp_path),
        *("--weights", tiny_weights(tmp_path / "weights"), "--output_dir", str(tmp_path / "run")),
        *("--results", str(tmp_path / "lines.jsonl"), "--dimension", "8", "--max_passage_length", "64"),
        *("--train_questions", "8"),
    ]


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["benchmarks/squad_retrieval.py", *words])
    squad_retrieval.main()


def test_each_row_is_measured_once_and_stands_in_the_page(tmp_path, monkeypatch, options, capsys):
    monkeypatch.setattr(pooled_states, "BLOCK", 5)
    call(monkeypatch, *options)
    lines = read_lines(tmp_path / "lines.jsonl")
    found = {line["name"]: line for line in lines}
    assert list(found) == squad_retrieval.ROWS
    assert found[squad_retrieval.BM25]["recall@20"] == found[squad_retrieval.TEXTS]["recall@20"] == 100
    assert {line["on"]["questions"] for line in lines} == {DEV_FROM}
    assert found[squad_retrieval.OWN]["dimension"] == 32 and found[squad_retrieval.PCA]["dimension"] == 8
    assert found[squad_retrieval.MIXED]["weight"] > 0 and found[squad_retrieval.MIXED]["fitted_on"] == 8
    assert all(str(tmp_path) not in line["command"] for line in lines)

    monkeypatch.setattr(pooled_states, "_block", None)
    call(monkeypatch, *options)
    assert read_lines(tmp_path / "lines.jsonl") == lines, "a second call measures nothing again"

    page = tmp_path / "page.md"
    page.write_text(f"# SQuAD\n\n{BEGIN}\n{END}\n")
    call(monkeypatch, "--tables", str(page), "--results", str(tmp_path / "lines.jsonl"))
    for name in squad_retrieval.ROWS:
        assert f"| {name} |" in page.read_text()
    for hybrid in (squad_retrieval.FUSED, squad_retrieval.MIXED):
        assert f"| {hybrid}, over {squad_retrieval.BM25} |" in page.read_text()


def test_the_states_of_a_run_that_was_stopped_are_those_of_one_that_was_not(tmp_path, monkeypatch, options):
    monkeypatch.setattr(pooled_states, "BLOCK", 7)
    arguments = squad_retrieval.make_parser().parse_args(options)
    states = squad_retrieval.Measurement(arguments).passage_states
    (tmp_path / "run" / "states" / "passages" / "00000007.npz").unlink()
    again = squad_retrieval.Measurement(arguments).passage_states
    np.testing.assert_array_equal(states, again)
    assert states.shape == (24, 2, 32)


def test_other_weights_are_another_measurement(options):
    measurement = squad_retrieval.Measurement(squad_retrieval.make_parser().parse_args(options))
    key = measurement.key
    measurement.encoder.realm.embeddings.word_embeddings.weight.data[5] += 1
    assert measurement.key != key
