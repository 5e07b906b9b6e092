"""`benchmarks/demo_seeds.py`: figures of several demos, on ones that are counted by hand."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from demo_seeds import ROWS, read_summaries, tables


def write_run(folder, seed, countries=("Chad", "Chad", "Peru", "Peru"), **ranks):
    folder.mkdir(parents=True)
    summary = {
        "seed": seed,
        "questions": [{"country": country, "field": "capital"} for country in countries],
        "ranks": {name: ranks.get(name, [20] * len(countries)) for name in ROWS},
        "exact_match": {"realm": 50.0 + seed},
        "seconds": {"total": 600.0},
    }
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    return folder


def test_the_gain_over_the_best_other_is_counted_question_by_question(tmp_path):
    # First places of the four questions: REALM 4 and 3, ICT 2 and 2, BM25 1 and 1.
    arms = {"ict": [0, 3, 0, 20], "bm25": [0, 1, 1, 1], "hybrid": [0, 0, 0, 0]}
    runs = [
        write_run(tmp_path / "0", 0, realm=[0, 0, 0, 0], **arms),
        write_run(tmp_path / "1", 1, realm=[0, 0, 0, 7], **arms),
    ]
    printed = tables(read_summaries(runs))
    assert "The best of the others is: after ICT" in printed
    # Each country is drawn as a whole: Chad's mean gain is 0.5, Peru's 0.25.
    assert "| after ICT | +37.5 | +25.0 to +50.0 | +50.0, +25.0 |" in printed
    assert "| after REALM | 87.5 | 75.0 to 100.0 | 87.5 | 100.0 |" in printed
    assert "| realm | 50.5 | 50.0, 51.0 |" in printed and "Seconds: 600, 600" in printed


def test_runs_that_cannot_be_compared_are_refused(tmp_path):
    one = write_run(tmp_path / "one", 0)
    with pytest.raises(SystemExit, match="holds no finished demo"):
        read_summaries([tmp_path / "none"])
    with pytest.raises(SystemExit, match=r"The seeds are \[0, 0\]"):
        read_summaries([one, write_run(tmp_path / "two", 0)])
    with pytest.raises(SystemExit, match="asked different questions"):
        read_summaries([one, write_run(tmp_path / "three", 1, countries=("Chad", "Peru"))])
