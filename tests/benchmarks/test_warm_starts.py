"""The comparison of warm starts, on four small articles."""

import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_squad import DEV_FROM, PARAGRAPHS, tiny_squad, tiny_weights

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import warm_starts
from harness.contrastive_starts import BOTH, ICT, RECURRING, tasks_of
from harness.results import BEGIN, END, read_lines


@pytest.fixture
def options(tmp_path):
    passages, _, dev = zip(*[iter(tiny_squad(tmp_path))] * 2, strict=True)
    return [
        *(*passages, *dev, "--weights", tiny_weights(tmp_path / "weights"), "--output_dir", str(tmp_path / "run")),
        *("--results", str(tmp_path / "lines.jsonl"), "--dimension", "8", "--max_passage_length", "64"),
        *("--max_steps", "3", "--batch_size", "4", "--learning_rate", "1e-2", "--distractors", "7"),
    ]


def call(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["benchmarks/warm_starts.py", *words])
    warm_starts.main()


def test_steps_are_halved_between_the_tasks_and_a_single_one_is_the_second_s():
    assert tasks_of(BOTH, 3) == [(ICT, 1), (RECURRING, 2)]
    assert tasks_of(BOTH, 1) == [(RECURRING, 1)]
    assert tasks_of(ICT, 1) == [(ICT, 1)]


def test_each_arm_of_each_seed_is_trained_once_and_stands_in_the_page(tmp_path, monkeypatch, options):
    taken = []
    trainer = warm_starts.Comparison.trainer

    def counted(self, task, model, steps, seed, run):
        taken.append((seed, task, steps))
        return trainer(self, task, model, steps, seed, run)

    monkeypatch.setattr(warm_starts.Comparison, "trainer", counted)
    call(monkeypatch, *options, "--seeds", "0")
    call(monkeypatch, *options, "--seeds", "0", "1")
    lines = read_lines(tmp_path / "lines.jsonl")
    assert [(line["arm"], line["seed"]) for line in lines] == [
        *((arm, 0) for arm in warm_starts.ARMS),
        *((arm, 1) for arm in warm_starts.ARMS if arm != "bm25"),
    ]
    # Every arm has the same number of steps.
    assert taken == [
        (seed, *of) for seed in (0, 1) for of in (("ict", 3), ("recurring", 3), ("ict", 1), ("recurring", 2))
    ]
    found = {line["arm"]: line for line in lines if not line["seed"]}
    assert found["bm25"]["recall@20"] == 100 and found["bm25"]["on"]["questions"] == DEV_FROM
    assert len({str(line["by_article"]) for line in lines}) > 3, "the arms end with different towers"

    page = tmp_path / "page.md"
    page.write_text(f"# Warm starts\n\n{BEGIN}\n{END}\n")
    call(monkeypatch, "--tables", str(page), "--results", str(tmp_path / "lines.jsonl"))
    assert page.read_text().count("### weights") == 1 and "| both, over recurring |" in page.read_text()
    assert all(f"| {arm} |" in page.read_text() for arm in warm_starts.ARMS)


def test_the_corpus_is_whole_articles(tmp_path):
    tiny_squad(tmp_path)
    file = tmp_path / "passages.parquet"
    dev = list(range(DEV_FROM, 4 * PARAGRAPHS))
    gold = pd.read_parquet(tmp_path / "dev.parquet")["passage"]
    np.testing.assert_array_equal(warm_starts.draw_rows(file, gold, 0), dev)
    for distractors, articles in ((1, 1), (PARAGRAPHS, 1), (PARAGRAPHS + 1, 2), (1000, 2)):
        rows = warm_starts.draw_rows(file, gold, distractors)
        assert len(rows) == len(dev) + articles * PARAGRAPHS and set(dev) < set(rows)
        assert (np.diff(rows) > 0).all()


def test_an_article_that_is_asked_about_is_there_though_one_paragraph_alone_has_questions(tmp_path):
    tiny_squad(tmp_path)
    rows = warm_starts.draw_rows(tmp_path / "passages.parquet", [DEV_FROM + 2], 0)
    np.testing.assert_array_equal(rows, np.arange(DEV_FROM, DEV_FROM + PARAGRAPHS))
