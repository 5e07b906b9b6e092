"""transformers' own callbacks hear of our training, and what they ask for is done."""

import json

import pytest
from question_worlds import qa_trainer, questions
from three_trainers import KINDS, trainer_of
from transformers import PrinterCallback, ProgressCallback, TrainerCallback, TrainerControl, TrainerState

from realm_hf.runs.records import read_log
from realm_hf.training import RealmCallback
from realm_hf.training.checkpoints import list_checkpoints


class StopAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step >= self.step:
            control.should_training_stop = True


class Heard(RealmCallback):
    def __init__(self):
        self.events = []

    def on_train_begin(self, args, state, control, **kwargs):
        self.events.append(("begin", state.max_steps, state.is_world_process_zero))

    def on_log(self, args, state, control, logs, **kwargs):
        self.events.append(("log", state.global_step, "loss" in logs, "eval_loss" in logs))

    def on_evaluate(self, args, state, control, metrics, **kwargs):
        self.events.append(("evaluate", state.global_step))

    def on_index_swap(self, args, state, control, swap, **kwargs):
        self.events.append(("swap", state.global_step, swap["snapshot_step"]))


@pytest.mark.parametrize("kind", KINDS)
def test_stock_callback_that_asks_for_a_stop_ends_the_training_like_its_last_step(kind, world, tmp_path):
    made = trainer_of(kind, world, tmp_path, max_steps=4)
    made.callbacks.append(StopAfter(2))
    result = made.train()
    assert (result.step, result.interrupted) == (2, False)
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "checkpoints")] == [2]
    assert json.loads((tmp_path / "summary.json").read_text())["steps"] == 2
    if kind != "inverse cloze":
        assert (tmp_path / "model" / "retriever.json").is_file()


def test_stopped_training_goes_on_when_it_is_resumed(world, tmp_path):
    made = trainer_of("pre-training", world, tmp_path, max_steps=4)
    made.callbacks.append(StopAfter(2))
    made.train()
    assert trainer_of("pre-training", world, tmp_path, max_steps=4).train(resume_from_checkpoint=True).step == 4


class AskAt(TrainerCallback):
    """Saves and evaluates at step 1, which no argument asks for."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 1:
            control.should_save = control.should_evaluate = control.should_log = True
        return control


def test_flags_of_the_control_save_evaluate_and_log_at_that_step_only(world, tmp_path):
    heard = Heard()
    made = qa_trainer(world, tmp_path, dev=questions(world)[:4], more={"callbacks": [AskAt(), heard]}, max_steps=3)
    made.train()
    saved = [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "checkpoints")]
    evaluated = [event[1] for event in heard.events if event[0] == "evaluate"]
    logged = [event[1] for event in heard.events if event[:1] == ("log",) and event[2]]
    assert (saved, evaluated, logged) == ([1, 3], [0, 1, 3], [1])


def test_control_that_is_returned_in_place_of_the_given_one_counts(world, tmp_path):
    class Returns(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            return TrainerControl(should_training_stop=state.global_step == 2)

    made = trainer_of("inverse cloze", world, tmp_path)
    made.callbacks.append(Returns())
    assert made.train().step == 2


def test_state_and_swaps_reach_a_callback(world, tmp_path):
    heard = Heard()
    made = trainer_of("pre-training", world, tmp_path, max_steps=4, refresh_steps=2, logging_steps=2)
    made.callbacks.append(heard)
    made.train()
    assert heard.events == [
        ("swap", 0, 0),
        ("begin", 4, True),
        ("swap", 2, 2),
        ("log", 2, True, False),
        ("log", 4, True, False),
        ("swap", 4, 4),
    ]
    assert isinstance(made.state, TrainerState) and made.state.global_step == 4
    assert made.state.epoch == pytest.approx(16 / made.examples_per_epoch)
    logged = [
        record for record in read_log(tmp_path / "log.jsonl") if record.get("step") in (2, 4) and "loss" in record
    ]
    assert [entry["loss"] for entry in made.state.log_history] == [record["loss"] for record in logged]


def test_epochs_begin_and_end_where_a_pass_over_the_data_does(world, tmp_path):
    called = []

    class Epochs(TrainerCallback):
        def on_epoch_begin(self, args, state, control, **kwargs):
            called.append(("begin", state.global_step))

        def on_epoch_end(self, args, state, control, **kwargs):
            called.append(("end", state.global_step))

    made = trainer_of("fine-tuning", world, tmp_path, max_steps=4)
    size = made.examples_per_epoch
    made.train_dataset = made.train_dataset[:6]
    made.order = type(made.order)(6, made.order.seed)
    assert made.examples_per_epoch == 6 < size
    made.callbacks.append(Epochs())
    made.train()
    # 4 questions a step: the first pass ends within step 2, the second within step 3.
    assert called == [("begin", 0), ("end", 2), ("begin", 2), ("end", 3), ("begin", 3), ("end", 4)]


def test_printer_and_progress_bar_of_transformers_run_as_they_are(world, tmp_path, capsys):
    made = trainer_of("inverse cloze", world, tmp_path, logging_steps=2)
    made.callbacks.extend([PrinterCallback(), ProgressCallback()])
    made.train()
    out = capsys.readouterr()
    assert out.out.count("'loss'") >= 2 and "4/4" in out.err


def test_callback_classes_are_taken_as_instances_are(world, tmp_path):
    made = qa_trainer(world, tmp_path, more={"callbacks": [PrinterCallback]})
    assert isinstance(made.callbacks[0], PrinterCallback)
