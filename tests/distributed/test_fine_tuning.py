"""Two gloo processes fine-tune as one: the same losses, figures, weights and end."""

import json

import pytest
from launching import finish, start_ranks, start_trainer
from safetensors.torch import load_file

from realm_hf.runs.records import read_log

pytestmark = pytest.mark.multiprocess


def records(run, name):
    return [record[name] for record in read_log(run / "log.jsonl") if name in record]


def rank_log(run, rank):
    return [json.loads(line) for line in (run / f"rank{rank}.jsonl").read_text().splitlines()]


def test_two_ranks_with_accumulation_equal_one_process_with_the_same_global_batch(world, tmp_path):
    settings = {
        "program": "fine_tune_program",
        "max_steps": 8,
        "per_device_train_batch_size": 1,
        "eval_steps": 3,
        "refresh": "sync",
        "refresh_steps": 4,
        "save_steps": 0,
        "float64": True,  # but what an index stores is float32, and two ranks embed in other batches than one
        "dropout": 0.1,  # the masks follow the micro-batch's place in the global batch
        "answerless": 3,  # at times a rank has nothing to learn from
    }
    two_ranks = start_ranks(world, tmp_path / "two", 2, gradient_accumulation_steps=2, **settings)
    finish([*two_ranks, start_trainer(world, tmp_path / "one", gradient_accumulation_steps=4, **settings)])

    one, two = tmp_path / "one", tmp_path / "two"
    assert records(two, "loss") == pytest.approx(records(one, "loss"), abs=1e-6)
    for counted in ("answerless", "reader_answerless", "questions", "eval_exact_match", "eval_answer_recall"):
        assert records(two, counted) == records(one, counted), counted
    assert sum(records(one, "answerless")) > 4
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    for name in ours:
        assert (ours[name] - theirs[name]).abs().max() < 1e-5, name
    logs = [rank_log(two, rank) for rank in (0, 1)]
    assert len(logs[0]) == len(logs[1]) == 8
    assert [entry["generation"] for entry in logs[0]] == [entry["generation"] for entry in logs[1]]
    assert [entry["best"] for entry in logs[0]] != [entry["best"] for entry in logs[1]], "different questions"


def test_two_ranks_teach_the_reader_alone_on_gold_passages_as_one_process_does(world, tmp_path):
    settings = {
        "program": "fine_tune_program",
        "max_steps": 4,
        "per_device_train_batch_size": 1,
        "reader_beam_size": 2,
        "searcher_beam_size": 2,
        "gold": True,
        "gold_passages": True,
        "freeze_retriever": True,
        "index_factory": "exact-sharded",  # both ranks search together, in the forward pass
        "answerless": 2,  # at times a rank has nothing to learn from
        "save_steps": 0,
        "float64": True,
        "dropout": 0.1,
    }
    two_ranks = start_ranks(world, tmp_path / "two", 2, **settings)
    finish([*two_ranks, start_trainer(world, tmp_path / "one", gradient_accumulation_steps=2, **settings)])
    one, two = tmp_path / "one", tmp_path / "two"
    assert records(two, "loss") == pytest.approx(records(one, "loss"), abs=1e-6)
    assert records(two, "reader_answerless") == records(one, "reader_answerless")
    assert 0 < sum(records(one, "reader_answerless")) < 8
    ours, theirs = (load_file(run / "model" / "model.safetensors") for run in (one, two))
    for name in ours:
        assert (ours[name] - theirs[name]).abs().max() < 1e-5, name


def test_both_ranks_end_early_at_the_same_step(world, tmp_path):
    settings = {"max_steps": 40, "eval_steps": 1, "early_stopping_patience": 1, "learning_rate": 1e-9}
    printed = finish(start_ranks(world, tmp_path / "run", 2, program="fine_tune_program", **settings))
    # Nothing changes, so the first evaluation is the best one, and the second ends the training.
    assert "finished at step 1" in printed[0]
    assert len(rank_log(tmp_path / "run", 0)) == len(rank_log(tmp_path / "run", 1)) == 1
    assert (tmp_path / "run" / "model" / "retriever.json").exists()
