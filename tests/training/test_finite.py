"""NaN and infinity: they reach neither the weights nor the disk, and a training of nothing else ends in words."""

import copy
import json
import math
import re

import pytest
import torch
from question_worlds import qa_trainer
from safetensors.torch import load_file
from three_trainers import KINDS, trainer_of
from tiny_worlds import tiny_tokenizer
from transformers import TrainerCallback

from realm_hf.report import write_report
from realm_hf.runs.records import read_log
from realm_hf.training.checkpoints import list_checkpoints
from realm_hf.training.finite import TrainingDiverged
from realm_hf.training.run_retriever import save_trained_model
from realm_hf.training.task import StepFigures


def spoil(trainer, steps, how):
    """Let the loss, or the gradient of one parameter, of these steps be no finite number."""
    accumulate = trainer.accumulate

    def spoiled(step):
        figures = accumulate(step)
        if step not in steps:
            return figures
        if how == "the loss is NaN":
            sums = figures.sums.clone()
            sums[0] = math.nan
            return StepFigures(sums, figures.record)
        parameter = next(p for p in trainer.module.parameters() if p.grad is not None)
        parameter.grad.view(-1)[3] = math.nan if how == "a gradient is NaN" else math.inf
        return figures

    trainer.accumulate = spoiled


class Watch(TrainerCallback):
    """Weights and moments after every step."""

    def __init__(self):
        self.after = {}

    def on_step_end(self, args, state, control, trainer, record, **kwargs):
        weights = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        self.after[record["step"]] = (weights, copy.deepcopy(trainer.optimizer.optimizer.state_dict()["state"]))


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


def step_records(run):
    return [record for record in read_log(run / "log.jsonl") if "grad_norm" in record]


@pytest.mark.parametrize("how", ["the loss is NaN", "a gradient is NaN", "a gradient is infinite"])
@pytest.mark.parametrize("kind", KINDS)
def test_step_without_a_finite_loss_or_gradient_is_left_out_and_the_next_one_is_not(world, tmp_path, kind, how):
    made = trainer_of(kind, world, tmp_path)
    watch = Watch()
    made.callbacks.append(watch)
    spoil(made, {2}, how)
    assert made.train().step == 4
    (before, moments), (after, moments_after), (later, _) = (watch.after[step] for step in (1, 2, 3))
    assert same(before, after) and not same(after, later)
    assert all(same(moments[index], moments_after[index]) for index in moments)
    records = step_records(tmp_path)
    assert [record.get("skipped_steps") for record in records] == [None, 1, None, None]
    wrong = "loss is nan" if "loss" in how else "gradient norm is " + ("nan" if "NaN" in how else "inf")
    assert wrong in records[1]["skipped_because"]
    assert all(torch.isfinite(p).all() for p in made.model.parameters())


@pytest.mark.parametrize("kind", KINDS)
def test_training_that_diverged_ends_in_words_and_keeps_its_good_checkpoints(world, tmp_path, kind):
    settings = {"max_steps": 12, "save_steps": 1, "save_total_limit": 2, "max_skipped_steps": 2}
    made = trainer_of(kind, world, tmp_path, **settings)
    spoil(made, range(4, 13), "the loss is NaN")
    with pytest.raises(
        TrainingDiverged, match=r"3 steps in a row, 4 to 6.*loss is nan.*max_skipped_steps is 2"
    ) as end:
        made.train()
    kept = list_checkpoints(tmp_path / "checkpoints")
    # Nothing was learned in steps 4 and 5: their checkpoints hold the weights of step 3.
    assert [checkpoint.step for checkpoint in kept] == [4, 5] and str(kept[-1].path) in str(end.value)
    assert all(t.isfinite().all() for c in kept for t in load_file(c.path / "model" / "model.safetensors").values())
    assert not (tmp_path / "model").exists() and not (tmp_path / "trainer.lock").exists()
    again = trainer_of(kind, world, tmp_path, **settings)
    assert again.train(resume_from_checkpoint=True).step == 12
    assert [record["step"] for record in step_records(tmp_path)] == list(range(1, 13))


@pytest.mark.parametrize("kind", KINDS)
def test_weights_that_are_not_finite_are_never_saved(world, tmp_path, kind):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, trainer, record, **kwargs):
            if record["step"] == 3:
                with torch.no_grad():
                    next(trainer.module.parameters()).view(-1)[0] = math.inf

    made = trainer_of(kind, world, tmp_path, save_steps=1)
    made.callbacks.append(Poison())
    with pytest.raises(TrainingDiverged, match=r"holds NaN or infinity.*not saved.*lower learning_rate"):
        made.train()
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "checkpoints")] == [1, 2]
    assert not (tmp_path / "model").exists()
    assert not list(tmp_path.rglob(".tmp-step*"))


def test_a_model_that_is_not_finite_is_not_left_by_a_warm_start(world, tmp_path):
    made = trainer_of("inverse cloze", world, tmp_path)
    made.train()
    with torch.no_grad():
        next(made.model.parameters()).view(-1)[0] = math.inf
    with pytest.raises(TrainingDiverged, match="not saved"):
        save_trained_model(made, tiny_tokenizer())
    assert not (tmp_path / "model").exists()


def test_best_weights_that_are_not_finite_are_not_kept(world, tmp_path):
    made = qa_trainer(world, tmp_path, max_steps=2, eval_steps=1)
    with torch.no_grad():
        next(made.model.parameters()).view(-1)[0] = math.nan
    made.best.consider(1, 0.5, "g")
    with pytest.raises(TrainingDiverged, match="not saved"):
        made.best.save(made.model)
    assert not list(tmp_path.rglob("model.safetensors"))


def test_moments_that_are_not_finite_are_not_saved(world, tmp_path):
    class Poison(TrainerCallback):
        def on_step_end(self, args, state, control, trainer, record, **kwargs):
            next(iter(trainer.optimizer.optimizer.state.values()))["exp_avg_sq"].view(-1)[0] = math.inf

    made = trainer_of("pre-training", world, tmp_path)
    made.callbacks.append(Poison())
    with pytest.raises(TrainingDiverged, match=r"exp_avg_sq holds NaN or infinity"):
        made.train()


def test_checkpoint_of_an_earlier_version_with_nan_weights_is_not_resumed_from(world, tmp_path, monkeypatch):
    made = trainer_of("inverse cloze", world, tmp_path)
    made.callbacks.append(_NanAtTheEnd())
    with monkeypatch.context() as earlier:
        earlier.setattr("realm_hf.training.checkpoints.require_finite_weights", lambda *_: None)
        made.train()
    with pytest.raises(TrainingDiverged, match=r"not resumed from .*step-4"):
        trainer_of("inverse cloze", world, tmp_path).train(resume_from_checkpoint=True)


class _NanAtTheEnd(TrainerCallback):
    def on_step_end(self, args, state, control, trainer, record, **kwargs):
        if record["step"] == 4:
            with torch.no_grad():
                next(trainer.module.parameters()).view(-1)[0] = math.nan


def test_skipped_steps_are_counted_across_a_resume_and_shown_by_the_report(world, tmp_path):
    first = trainer_of("pre-training", world, tmp_path, max_steps=4)
    spoil(first, {2}, "the loss is NaN")
    first.train()
    second = trainer_of("pre-training", world, tmp_path, max_steps=6)
    spoil(second, {5}, "a gradient is NaN")
    second.train(resume_from_checkpoint=True)
    assert [record.get("skipped_steps") for record in step_records(tmp_path)] == [None, 1, None, None, 2, None]
    assert json.loads((tmp_path / "summary.json").read_text())["skipped_steps"] == 2
    assert re.search(r"<svg", write_report(tmp_path).read_text())
