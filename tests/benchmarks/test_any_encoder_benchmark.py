"""The RoBERTa from nothing to answers, and the comparison with an earlier commit: what they read and compute."""

import argparse
import json
import math
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import any_encoder
import beside_commit


@pytest.mark.parametrize("name", beside_commit.WORKS)
def test_a_work_computes_the_same_each_time(name):
    work = beside_commit.prepare(name, beside_commit.TINY, 2, 3, 5)
    first = work()
    assert math.isfinite(first) and first > 0 and work() == pytest.approx(first, abs=1e-6)


def test_an_answer_counts_as_a_slice_only_where_it_stands(tmp_path):
    text = "The capital of Chad is N'Djamena."
    evidence = [{"row": 4, "text": "Another."}, {"row": 7, "text": text}]
    start = text.index("N'")
    shared = {"question": "?", "answers": ["N'Djamena"], "row": 7, "evidence": evidence}
    records = [
        {**shared, "prediction": "N'Djamena", "start_char": start, "end_char": start + 9},
        {**shared, "prediction": "N'Djamena", "start_char": start + 1, "end_char": start + 10},
        {**shared, "prediction": "", "row": None, "start_char": 0, "end_char": 0},
    ]
    (tmp_path / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    figures = {"questions": 3, "exact_match": 2 / 3, "token_f1": 0.7, "shuffled_exact_match": 0.0}
    (tmp_path / "metrics.json").write_text(json.dumps({**figures, "answer_recall": {"1": 0.5, "5": 1.0}}))
    line = any_encoder.answered(tmp_path)
    assert line["slices"] == 1 and line["examples"][0]["passage"] == text
    run = {"phase": "realm", "steps": 200, "loss": [5.0, 3.25], "held_out": [4.5, 3.5], "seconds": 120}
    table = any_encoder.table([run, {"phase": "answers", "given_gold": 1.0, "from_bm25": 0.5, **line}])
    assert "| REALM, jointly | 200 | 5.000 to 3.250 | 4.500 to 3.500 | 2 |" in table
    assert "exact match 66.7%" in table and "100.0% in 5" in table and f"| {text} |" in table


def test_every_phase_is_a_command_that_its_program_understands(tmp_path, capsys):
    """Arguments are parsed as the programs parse them; nothing is trained."""
    args = argparse.Namespace(
        output_dir=tmp_path, sizes=any_encoder.SIZES, vocab_size=300, seed=0, masked_lm_steps=10,
        inverse_cloze_steps=10, joint_steps=10, question_steps=10,
    )  # fmt: skip
    data = {name: tmp_path / f"{name}.jsonl" for name in ("passages", "statements", "train", "dev")}
    made = any_encoder.commands(args, data)
    assert list(made) == ["masked_lm", "inverse_cloze", "realm", "qa", "answers"]
    for words in made.values():
        with pytest.raises(SystemExit):
            any_encoder.realm_hf([*words, "--no_such_option", "1"])
        assert "There is no argument 'no_such_option'" in capsys.readouterr().err
