"""What a launcher asks for is honoured or refused in words: nothing that it says changes a training silently."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from launching import FSDP2
from tiny_worlds import load_world, tiny_model, tiny_tokenizer

from realm_hf.cli.arguments import WarmStartArguments
from realm_hf.cli.pretrain_warm_starts import check_launch_of_warm_starts
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.loop_arguments import LoopArguments
from realm_hf.training.optimization import make_accelerator, uses_bfloat16
from realm_hf.training.pretraining import RealmTrainer
from realm_hf.training.sharding_launch import Sharding, asked_sharding

# What each rank is told, without the seconds that it takes to import torch.
SCRIPT = """
import json, os, pathlib, sys
told = {name: value for name, value in os.environ.items() if name.startswith(("ACCELERATE_", "FSDP_"))}
pathlib.Path(sys.argv[1], os.environ["RANK"] + ".json").write_text(json.dumps(told))
"""


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps one state a process, and what a launcher said is part of it."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


def arguments(**overrides):
    return LoopArguments(output_dir="run", use_cpu=True, **overrides)


def gradient_of_one(accelerator):
    weight = torch.ones((), requires_grad=True)
    accelerator.backward(weight * 1.0)
    return weight.grad.item()


@pytest.mark.parametrize(("own", "launched"), [(1, "1"), (4, "4"), (4, "1"), (4, "")])
def test_accumulation_steps_of_the_launcher_do_not_divide_the_gradients_again(monkeypatch, own, launched):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", launched)
    assert gradient_of_one(make_accelerator(arguments(gradient_accumulation_steps=own))) == 1.0


def test_accumulation_steps_that_differ_from_the_runs_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(ValueError, match=r"steps=4, but the run's own is 2\. .*--gradient_accumulation_steps 4"):
        make_accelerator(arguments(gradient_accumulation_steps=2))


@pytest.mark.parametrize("precision", ["fp16", "fp8"])
def test_a_launchers_fp16_is_refused_with_what_to_do_instead(monkeypatch, precision):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", precision)
    with pytest.raises(ValueError, match=f"mixed_precision={precision}.*--bf16 true"):
        make_accelerator(arguments())


@pytest.mark.parametrize(
    ("launched", "own", "used"), [("bf16", None, True), ("bf16", True, True), ("no", True, True), ("no", False, False)]
)
def test_a_launchers_bf16_is_the_runs(monkeypatch, launched, own, used):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launched)
    monkeypatch.setattr("realm_hf.training.optimization.native_bfloat16", lambda device: False)
    args = arguments(bf16=own)
    assert uses_bfloat16(args, make_accelerator(args)) is used


def test_a_launchers_bf16_against_the_arguments_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ValueError, match=r"mixed_precision=bf16, the arguments for bf16=False"):
        make_accelerator(arguments(bf16=False))


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"])
def test_sharding_is_refused_also_where_accelerate_passes_it_over(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match="keeps whole parameters on each device"):
        make_accelerator(arguments())


@pytest.mark.parametrize(
    ("said", "own", "words"),
    [
        ({"FSDP_VERSION": "1"}, {}, "fsdp_version=1, .*: set fsdp_version: 2"),
        ({"FSDP_AUTO_WRAP_POLICY": "SIZE_BASED_WRAP"}, {}, "set it to TRANSFORMER_BASED_WRAP"),
        ({"FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}, {}, "checkpoints hold whole weights.*FULL_STATE_DICT"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, {}, "fsdp_offload_params=true, but weights stay"),
        ({"FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, {}, "every rank reads the models"),
        ({"FSDP_ACTIVATION_CHECKPOINTING": "true"}, {}, "--gradient_checkpointing true to the script"),
        ({"FSDP_IGNORED_MODULES": "encoder"}, {}, "fsdp_ignored_modules"),
        ({"FSDP_RESHARD_AFTER_FORWARD": "FULL_SHARD"}, {}, "'full_shard': FSDP2 takes true or false"),
        ({}, {"optim": "adafactor"}, "factors whole matrices"),
    ],
)
def test_what_fsdp2_does_not_do_here_is_refused_before_anything_is_written(monkeypatch, tmp_path, said, own, words):
    for name, value in {**FSDP2, **said}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=words):
        make_accelerator(RealmTrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, **own))
    assert not (tmp_path / "run").exists()


def test_trainings_that_keep_whole_weights_refuse_fsdp2(monkeypatch):
    for name, value in FSDP2.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=r"LoopArguments keeps whole parameters .* only pre-training"):
        make_accelerator(arguments())
    warm = WarmStartArguments(inverse_cloze_steps=7)
    args = RealmTrainingArguments(output_dir="run", use_cpu=True)
    with pytest.raises(ValueError, match=r"\(--inverse_cloze_steps 7\) keep whole weights"):
        check_launch_of_warm_starts(warm, args)
    check_launch_of_warm_starts(WarmStartArguments(), args)


def test_fsdp2_of_the_launcher_is_the_loops_own_and_one_process_holds_everything(monkeypatch, world, tmp_path):
    for name, value in {**FSDP2, "FSDP_TRANSFORMER_CLS_TO_WRAP": "BertLayer, RealmLastLayer"}.items():
        monkeypatch.setenv(name, value)
    args = RealmTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert asked_sharding(args) == Sharding(("BertLayer", "RealmLastLayer"), reshard_after_forward=True)
    passages, sentences = load_world(world)
    given = {"train_dataset": sentences.train, "processing_class": tiny_tokenizer(), "passages": passages}
    trainer = RealmTrainer(tiny_model(), args, **given)
    assert os.environ["ACCELERATE_USE_FSDP"] == "true" and not trainer.accelerator.is_fsdp2
    assert not trainer.weights.is_sharded and trainer.weights.whole(trainer.model.embedder) is trainer.model.embedder


def test_an_accelerator_that_divides_by_itself_is_refused(world, tmp_path):
    passages, sentences = load_world(world)
    args = RealmTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=4)
    with pytest.raises(ValueError, match="gradient_accumulation_steps=4: it would divide every gradient"):
        RealmTrainer(
            tiny_model(),
            args,
            train_dataset=sentences.train,
            processing_class=tiny_tokenizer(),
            passages=passages,
            accelerator=accelerator,
        )


def what_accelerate_launch_sets(folder, options):
    script = folder / "program.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    launched = subprocess.run(
        [*launch, *options, str(script), str(folder)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert launched.returncode == 0, launched.stderr
    first, second = (json.loads((folder / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    return first


@pytest.mark.multiprocess
def test_what_accelerate_launch_sets_for_fp16_is_refused(monkeypatch, tmp_path):
    for name, value in what_accelerate_launch_sets(tmp_path, ["--multi_gpu", "--mixed_precision", "fp16"]).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match="The launcher asks for mixed_precision=fp16"):
        make_accelerator(arguments())


@pytest.mark.multiprocess
def test_the_configuration_of_the_examples_asks_for_fsdp2_as_it_is_done_here(monkeypatch, tmp_path):
    file = Path(__file__).parents[2] / "examples" / "accelerate_configs" / "fsdp2.yaml"
    for name, value in what_accelerate_launch_sets(tmp_path, ["--config_file", str(file)]).items():
        monkeypatch.setenv(name, value)
    assert asked_sharding(RealmTrainingArguments(output_dir="run", use_cpu=True)) == Sharding()
