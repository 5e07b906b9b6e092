"""Schedule and optimizer: what is stepped by how much."""

from typing import get_args

import pytest
import torch
from three_trainers import trainer_of
from tiny_worlds import tiny_model
from transformers import get_scheduler
from transformers.optimization import Adafactor

from realm_hf.models.precision import native_bfloat16
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.records import read_log
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.command_line import parse_arguments
from realm_hf.training.loop_arguments import Schedule
from realm_hf.training.optimization import learning_rate, make_accelerator, make_optimizer


def test_rate_rises_to_its_peak_and_falls_to_nothing():
    args = RealmTrainingArguments(output_dir="x", learning_rate=1.0, warmup_steps=4, max_steps=12)
    rates = [learning_rate(args, step) for step in range(1, 14)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:12] == pytest.approx([1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert rates[12] == 0.0


def test_rate_without_warm_up_starts_at_its_peak():
    args = RealmTrainingArguments(output_dir="x", learning_rate=2.0, max_steps=2)
    assert [learning_rate(args, step) for step in (1, 2)] == [2.0, 1.0]


@pytest.mark.parametrize(("max_steps", "warmup"), [(50, 100), (1_000, 100), (2_009, 200), (200_000, 10_000)])
def test_the_released_warm_up_is_a_tenth_of_the_steps_within_its_bounds(max_steps, warmup):
    settings = {"output_dir": "x", "learning_rate": 1.0, "max_steps": max_steps}
    released = RealmTrainingArguments(**settings, warmup_steps=-1)
    given = RealmTrainingArguments(**settings, warmup_steps=warmup)
    assert released.num_warmup_steps == warmup
    for step in (1, 37, warmup, warmup + 1, max_steps):
        assert learning_rate(released, step) == learning_rate(given, step)
    assert learning_rate(released, 1) == pytest.approx(1 / warmup)


def test_weight_decay_spares_biases_and_layer_norms_and_nothing_frozen_is_stepped():
    model = tiny_model()
    optimizer = make_optimizer(model, RealmTrainingArguments(output_dir="x", weight_decay=0.1))
    names = {parameter: name for name, parameter in model.named_parameters()}
    decay = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    spared = {name for name, rate in decay.items() if rate == 0.0}
    assert spared == {name for name in decay if name.endswith("bias") or "LayerNorm" in name}
    assert "embedder.cls.predictions.bias" not in decay


def test_the_towers_may_have_a_rate_of_their_own():
    model = tiny_model()
    args = RealmTrainingArguments(output_dir="x", learning_rate=3e-4)
    optimizer = make_optimizer(model, args, {model.embedder: 3e-5, model.query_embedder: 3e-5})
    names = {parameter: name for name, parameter in model.named_parameters()}
    scales = {names[p]: group["scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scales.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, scale in scales.items():
        assert scale == pytest.approx(0.1 if "embedder." in name else 1.0), name


def test_bfloat16_is_native_only_where_the_device_says_so(monkeypatch):
    for amx, avx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert native_bfloat16(torch.device("cpu")) is (amx or avx)


def shares(args):
    return [learning_rate(args, step) / args.learning_rate for step in range(1, args.max_steps + 1)]


@pytest.mark.parametrize("name", get_args(Schedule))
def test_schedule_is_that_of_transformers_a_step_earlier_in_the_warm_up(name):
    more = {"cosine_with_min_lr": {"min_lr_rate": 0.1}, "cosine_warmup_with_min_lr": {"min_lr_rate": 0.1}}
    more = {**more, "warmup_stable_decay": {"num_decay_steps": 4}}.get(name)
    args = RealmTrainingArguments(
        output_dir="x", lr_scheduler_type=name, lr_scheduler_kwargs=more, warmup_steps=3, max_steps=12
    )
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=args.learning_rate)
    theirs = get_scheduler(name, optimizer, 3, 12, more)
    expected = []
    for _ in range(13):
        expected.append(theirs.get_last_lr()[0] / args.learning_rate)
        optimizer.step()
        theirs.step()
    # Theirs has the peak at its fourth step, ours at the third and the fourth.
    assert shares(args) == pytest.approx([*expected[1:4], *expected[3:12]], rel=1e-12)
    assert name == "constant" or shares(args)[0] < 1.0


def test_schedule_that_its_arguments_do_not_fit_is_refused_before_anything_is_built(world, tmp_path):
    with pytest.raises(ValueError, match=r"lr_scheduler_kwargs=\{\} do not fit.*'warmup_stable_decay'"):
        trainer_of("pre-training", world, tmp_path / "run", lr_scheduler_type="warmup_stable_decay")
    with pytest.raises(ValueError, match="which is no JSON"):
        RealmTrainingArguments(output_dir="x", lr_scheduler_kwargs="{")
    with pytest.raises(ValueError, match="lr_scheduler_type is 'greedy'"):
        RealmTrainingArguments(output_dir="x", lr_scheduler_type="greedy")
    assert not (tmp_path / "run" / "index").exists()


def test_arguments_of_a_schedule_are_read_from_the_command_line_and_from_yaml(tmp_path):
    file = tmp_path / "run.yaml"
    file.write_text("output_dir: x\nlr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.1}\n")
    words = ["--output_dir", "x", "--lr_scheduler_type", "cosine_with_min_lr"]
    words += ["--lr_scheduler_kwargs", '{"min_lr_rate": 0.1}']
    (by_file,), (by_words,) = (parse_arguments([RealmTrainingArguments], given) for given in ([str(file)], words))
    assert by_file == by_words and by_words.lr_scheduler_kwargs == {"min_lr_rate": 0.1}


def test_optimizer_is_the_named_one():
    made = {
        name: make_optimizer(tiny_model(), RealmTrainingArguments(output_dir="x", optim=name))
        for name in ("adamw_torch_fused", "adamw_torch", "adafactor")
    }
    assert [
        group["fused"] for name in ("adamw_torch_fused", "adamw_torch") for group in made[name].param_groups[:1]
    ] == [
        True,
        False,
    ]
    assert isinstance(made["adafactor"], Adafactor)


def losses(run):
    return [record["loss"] for record in read_log(run / "log.jsonl") if "loss" in record]


@pytest.mark.parametrize("optim", ["adamw_torch", "adafactor"])
def test_resumed_run_goes_on_with_the_optimizers_state_as_if_nothing_had_happened(optim, world, tmp_path):
    settings = {"optim": optim, "save_steps": 2, "lr_scheduler_type": "cosine", "warmup_steps": 1}
    trainer_of("inverse cloze", world, tmp_path / "whole", **settings).train()
    trainer_of("inverse cloze", world, tmp_path / "parts", **settings).train()
    parts = trainer_of("inverse cloze", world, tmp_path / "parts", **settings)
    parts.train(resume_from_checkpoint=tmp_path / "parts" / "checkpoints" / "step-2")
    assert losses(tmp_path / "parts") == losses(tmp_path / "whole")
    whole = trainer_of("inverse cloze", world, tmp_path / "whole", **settings)
    whole.train(resume_from_checkpoint=True)
    for one, other in zip(parts.model.parameters(), whole.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_another_optimizer_at_a_resume_is_refused_or_begins_without_moments(world, tmp_path, caplog):
    trainer_of("inverse cloze", world, tmp_path, max_steps=4, save_steps=2).train()
    other = {"optim": "adafactor", "max_steps": 5}
    with pytest.raises(RunDirectoryError, match="optim 'adamw_torch_fused' then, 'adafactor' now"):
        trainer_of("inverse cloze", world, tmp_path, **other).train(resume_from_checkpoint=True)
    made = trainer_of("inverse cloze", world, tmp_path, **other, allow_changed_arguments=True)
    assert made.train(resume_from_checkpoint=True).step == 5
    assert "its moments begin anew" in caplog.text


@pytest.mark.parametrize("kind", ["inverse cloze", "pre-training", "fine-tuning"])
def test_epochs_stand_for_steps_in_every_training(kind, world, tmp_path):
    made = trainer_of(kind, world, tmp_path, num_train_epochs=0.5)
    assert made.args.max_steps == -(-made.examples_per_epoch // 8)


def test_an_output_directory_that_cannot_be_written_is_said_before_anything_is_prepared(tmp_path):
    (tmp_path / "file").write_text("")
    args = RealmTrainingArguments(output_dir=str(tmp_path / "file" / "run"), use_cpu=True)
    with pytest.raises(NotADirectoryError, match=r"could not use the output directory.*check the path"):
        make_accelerator(args)
