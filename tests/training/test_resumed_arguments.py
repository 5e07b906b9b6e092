"""Resuming with other arguments: said, and refused where they make another training of the rest."""

import dataclasses
import json
import logging

import pytest
from question_worlds import qa_trainer, questions
from three_trainers import KINDS, trainer_of
from tiny_worlds import fact_world
from transformers import TrainerCallback

from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.records import read_run
from realm_hf.storage.sealed_json import SEAL
from realm_hf.training.arguments import InverseClozeTrainingArguments, RealmTrainingArguments
from realm_hf.training.open_qa_arguments import OpenQATrainingArguments
from realm_hf.training.resumed_arguments import FREE, UNREPORTED, check_resumed, recorded


def test_an_argument_that_was_renamed_is_compared_by_its_new_name(tmp_path):
    args = OpenQATrainingArguments(output_dir=str(tmp_path))
    state = {**recorded(args, {}), "seed": 42, "world_size": 1, "step": 2}
    state["arguments"]["max_question_length"] = state["arguments"].pop("max_query_length")
    check_resumed(tmp_path, state, args, {}, 1)
    state["arguments"]["max_question_length"] = 16
    with pytest.raises(RunDirectoryError, match="max_query_length 16 then, 64 now"):
        check_resumed(tmp_path, state, args, {}, 1)


def stopped_run(kind, world, run, **overrides):
    """A run of 6 steps that was stopped after step 2."""

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, trainer, record, **kwargs):
            trainer.stop_requested.set()

    made = trainer_of(kind, world, run, max_steps=6, **overrides)
    made.callbacks.append(Stop())
    assert made.train().step == 2
    return made


@pytest.fixture(scope="module")
def stopped(world, tmp_path_factory):
    run = tmp_path_factory.mktemp("stopped")
    stopped_run("pre-training", world, run)
    return run


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"learning_rate": 2e-3}, "learning_rate 0.001 then, 0.002 now"),
        ({"max_steps": 5}, "max_steps 6 then, 5 now"),
        ({"seed": 1}, "seed 42 then, 1 now"),
        ({"warmup_steps": 3}, "warmup_steps 0 then, 3 now"),
        ({"per_device_train_batch_size": 2}, "examples_per_step 4 then, 2 now"),
        ({"num_candidates": 4}, "num_candidates 3 then, 4 now"),
        ({"masking": "span"}, "masking 'salient' then, 'span' now"),
        ({"marginalization": "span"}, "marginalization 'token' then, 'span' now"),
        ({"weight_decay": 0.1}, "weight_decay 0.01 then, 0.1 now"),
    ],
)
def test_other_objective_data_or_schedule_is_refused(world, stopped, changed, said):
    made = trainer_of("pre-training", world, stopped, **{"max_steps": 6, **changed})
    with pytest.raises(RunDirectoryError, match=f"{said}.*Give the old ones.*allow_changed_arguments=true"):
        made.train(resume_from_checkpoint=True)


def test_other_arguments_are_taken_where_they_are_asked_for_and_recorded(world, tmp_path, caplog):
    stopped_run("pre-training", world, tmp_path)
    settings = {"max_steps": 5, "learning_rate": 2e-3, "num_candidates": 4}
    made = trainer_of("pre-training", world, tmp_path, **settings, allow_changed_arguments=True)
    assert made.train(resume_from_checkpoint=True).step == 5
    assert "learning_rate 0.001 then, 0.002 now" in caplog.text and "num_candidates 3 then, 4 now" in caplog.text
    assert trainer_of("pre-training", world, tmp_path, **settings).train(resume_from_checkpoint=True).step == 5


@pytest.mark.parametrize("kind", KINDS)
def test_every_training_refuses_another_learning_rate_and_goes_on_with_the_old_one(world, tmp_path, kind):
    stopped_run(kind, world, tmp_path)
    with pytest.raises(RunDirectoryError, match="learning_rate"):
        trainer_of(kind, world, tmp_path, max_steps=6, learning_rate=1e-4).train(resume_from_checkpoint=True)
    assert trainer_of(kind, world, tmp_path, max_steps=6).train(resume_from_checkpoint=True).step == 6


def test_what_is_kept_told_or_renewed_may_change_and_is_said(world, tmp_path, caplog):
    stopped_run("pre-training", world, tmp_path)
    settings = {"max_steps": 6, "save_steps": 3, "logging_steps": 1, "refresh_steps": 1, "builder_threads": 2}
    settings |= {"index_threads": 1}
    assert trainer_of("pre-training", world, tmp_path, **settings).train(resume_from_checkpoint=True).step == 6
    assert "save_steps 500 then, 3 now" in caplog.text and "builder_threads 1 then, 2 now" in caplog.text
    assert "index_threads None then, 1 now" in caplog.text


def test_a_resumed_run_goes_on_by_its_schedule_or_another(world, tmp_path, caplog):
    stopped_run("pre-training", world, tmp_path, refresh="sync", refresh_schedule="0-3:1,3-:2")
    settings = {"max_steps": 8, "refresh": "sync", "refresh_schedule": "0-3:1,3-:2"}
    trainer_of("pre-training", world, tmp_path, **settings).train(resume_from_checkpoint=True)
    taken = [swap["snapshot_step"] for swap in read_run(tmp_path).swaps()]
    assert taken == [0, 1, 2, 3, 5, 7, 8], "8 is the index of the final weights"
    settings |= {"max_steps": 11, "refresh_schedule": "0-8:1,8-:2"}
    trainer_of("pre-training", world, tmp_path, **settings).train(resume_from_checkpoint=True)
    assert "refresh_schedule '0-3:1,3-:2' then, '0-8:1,8-:2' now" in caplog.text
    assert [swap["snapshot_step"] for swap in read_run(tmp_path).swaps()][len(taken) :] == [10, 11]


def test_batch_dealt_out_in_another_way_is_the_same_batch(world, tmp_path):
    stopped_run("pre-training", world, tmp_path)
    settings = {"max_steps": 6, "per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    assert trainer_of("pre-training", world, tmp_path, **settings).train(resume_from_checkpoint=True).step == 6


def test_more_steps_are_allowed_and_what_they_do_to_the_learning_rate_is_said(world, tmp_path, caplog):
    stopped_run("pre-training", world, tmp_path)
    assert trainer_of("pre-training", world, tmp_path, max_steps=8).train(resume_from_checkpoint=True).step == 8
    # Linear decay over 8 steps: 6 of them are left before step 3.
    assert "max_steps 6 then, 8 now: the learning rate falls to 0 at the new end, and is 0.00075" in caplog.text


def test_other_questions_are_refused(world, tmp_path):
    asked = questions(world)
    qa_trainer(world, tmp_path, examples=asked[:10], max_steps=1).train()
    with pytest.raises(RunDirectoryError, match="questions '"):
        qa_trainer(world, tmp_path, examples=asked[1:11], max_steps=2).train(resume_from_checkpoint=True)


@pytest.mark.parametrize("store", ["passages", "sentences"])
def test_changed_byte_of_a_corpus_is_found_at_a_resume(tmp_path, store):
    fact_world(tmp_path / "world")
    stopped_run("pre-training", tmp_path / "world", tmp_path / "run")
    description = json.loads((tmp_path / "world" / store / f"{store}.json").read_text())
    name = next(iter(sorted(description["files"])))
    file = tmp_path / "world" / store / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.unlink()  # the run's copy may be a hard link to it
    file.write_bytes(content)
    again = trainer_of("pre-training", tmp_path / "world", tmp_path / "run", max_steps=6)
    with pytest.raises(ValueError, match=f"{name}.*"):
        again.train(resume_from_checkpoint=True)


def test_checkpoint_of_an_earlier_version_is_resumed_with_a_warning(world, tmp_path, caplog):
    state = stopped_run("inverse cloze", world, tmp_path).checkpoints / "step-2" / "state.json"
    content = json.loads(state.read_text())
    for name in ("arguments", "trained_on", "skipped_steps", SEAL):
        del content[name]
    state.write_text(json.dumps(content))
    with pytest.raises(RunDirectoryError, match="seed 42 then, 3 now"):
        trainer_of("inverse cloze", world, tmp_path, max_steps=6, seed=3).train(resume_from_checkpoint=True)
    with caplog.at_level(logging.WARNING):
        made = trainer_of("inverse cloze", world, tmp_path, max_steps=6, learning_rate=5e-4)
        assert made.train(resume_from_checkpoint=True).step == 6
    assert "did not record the arguments" in caplog.text


def test_arguments_that_may_change_are_arguments():
    kinds = (RealmTrainingArguments, OpenQATrainingArguments, InverseClozeTrainingArguments)
    known = {field.name for kind in kinds for field in dataclasses.fields(kind)}
    assert known >= FREE | UNREPORTED
