"""Found, read and answered, on four small articles; and a program that ends by itself."""

import signal
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from tiny_squad import DEV_FROM, tiny_squad, tiny_weights

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import squad_answers
from harness import paragraph_corpus
from harness.answer_scores import score_means, score_sums
from harness.results import BEGIN, END, read_lines
from harness.stop_after import stop_after

from realm_hf.data.questions.load import OpenQAExample
from realm_hf.training.open_qa import OpenQATrainer

ROWS = [
    *[("BM25", "BM25"), ("start", "vectors"), ("start", "both")],
    *[("start, fine-tuned", found_by) for found_by in ("gold paragraph", "BM25", "vectors", "both")],
]


@pytest.fixture
def options(tmp_path, monkeypatch):
    monkeypatch.setattr(paragraph_corpus, "HELD_OUT", 0.3)
    weights = tiny_weights(tmp_path / "weights")
    return [
        *tiny_squad(tmp_path),
        *("--weights", weights, "--encoder_weights", weights, "--output_dir", str(tmp_path / "run")),
        *("--results", str(tmp_path / "lines.jsonl"), "--max_passage_length", "48", "--dev_questions", "6"),
        *(
            "--reading_steps",
            "1",
            "--max_steps",
            "1",
            "--batch_size",
            "2",
            "--refresh_steps",
            "1",
            "--eval_steps",
            "1",
        ),
        *("--tuning_batch_size", "3", "--searcher_beam_size", "4", "--epochs", "1"),
    ]


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["benchmarks/squad_answers.py", *words])
    squad_answers.main()


def test_each_row_is_measured_once_and_realm_goes_on_from_the_same_start(tmp_path, monkeypatch, options):
    arms = ["BM25", "start", "start, fine-tuned"]
    call(monkeypatch, *options, "--arms", *arms)
    lines = read_lines(tmp_path / "lines.jsonl")
    assert [(line["arm"], line["found_by"]) for line in lines] == ROWS
    assert lines[0]["recall@1"] > lines[1]["recall@1"] and "exact_match" not in lines[1]
    gold = lines[3]
    assert "recall@1" not in gold and sum(gold["by_article"]["answers"]["questions"]) == 6
    assert lines[0]["on"]["trained_on"] == DEV_FROM // 2
    # Whoever reads them, BM25's paragraphs are the same.
    assert lines[4]["recall@5"] == lines[0]["recall@5"]

    # What was trained is there: another call trains REALM only, and fine-tunes from its end.
    begun = []
    train = OpenQATrainer.train
    monkeypatch.setattr(
        OpenQATrainer, "train", lambda self, **settings: begun.append(self.args.output_dir) or train(self, **settings)
    )
    call(monkeypatch, *options)
    after = read_lines(tmp_path / "lines.jsonl")
    assert after[: len(lines)] == lines and len(after) == len(lines) + 6
    assert [Path(folder).name.rpartition("-")[0] for folder in begun] == ["REALM"]
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    call(monkeypatch, "--tables", str(page), "--results", str(tmp_path / "lines.jsonl"))
    assert "| REALM, fine-tuned, by gold paragraph |" in page.read_text()
    assert "| start, by both, over BM25 |" in page.read_text()


def test_scores_are_sums_of_each_article():
    asked = [OpenQAExample(question, ("the gold",)) for question in ("a", "b", "c")]
    sums = score_sums(["Gold", "silver", "old gold"], asked, np.array([7, 3, 7]))
    assert sums["questions"] == [1, 2] and sums["exact_match"] == [0.0, 1.0]
    assert sums["f1"] == [0.0, 1.6667]
    assert score_means(sums) == {"exact_match": 33.33, "f1": 55.56}


def test_a_program_asks_itself_to_stop(monkeypatch):
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        stop_after(None)
        stop_after(0.0001)
        assert asked.wait(10)
    finally:
        signal.signal(signal.SIGTERM, before)
