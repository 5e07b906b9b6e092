"""What a launcher asks for is honoured or refused in words: nothing that it says changes a training silently."""

import json
import os
import subprocess
import sys

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from tiny_worlds import load_world, tiny_model, tiny_tokenizer

from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.loop_arguments import LoopArguments
from realm_hf.training.optimization import make_accelerator, uses_bfloat16
from realm_hf.training.pretraining import RealmTrainer

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


@pytest.mark.parametrize("variable", ["ACCELERATE_USE_FSDP", "ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_MEGATRON_LM"])
def test_sharding_is_refused_also_where_accelerate_passes_it_over(monkeypatch, variable):
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ValueError, match="keeps whole parameters on each device"):
        make_accelerator(arguments())


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


@pytest.mark.multiprocess
@pytest.mark.parametrize(
    ("options", "word"),
    [
        (["--multi_gpu", "--mixed_precision", "fp16"], "mixed_precision=fp16"),
        (["--use_fsdp"], "FSDP"),
    ],
)
def test_what_accelerate_launch_sets_for_such_an_option_is_refused(monkeypatch, tmp_path, options, word):
    script = tmp_path / "program.py"
    script.write_text(SCRIPT)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--main_process_port", "0"]
    launched = subprocess.run(
        [*launch, *options, str(script), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert launched.returncode == 0, launched.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    for name, value in first.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"The launcher asks for {word}"):
        make_accelerator(arguments())
