"""SIGTERM and Ctrl-C: how a stop is asked for, the status that says so, and the command that goes on."""

import os
import signal
import subprocess
import sys
import time

import pytest
from three_trainers import trainer_of
from transformers import TrainerCallback

from realm_hf.training.result import TrainingResult
from realm_hf.training.signals import StopRequest, resume_command


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_ends_the_training_after_its_step_with_a_checkpoint_and_a_status(world, tmp_path, number, status):
    class Signal(TrainerCallback):
        def on_step_end(self, args, state, control, trainer, record, **kwargs):
            if record["step"] == 2:
                os.kill(os.getpid(), number)

    made = trainer_of("inverse cloze", world, tmp_path)
    made.callbacks.append(Signal())
    before = signal.getsignal(number)
    result = made.train()
    assert (result.step, result.interrupted, result.signal, result.exit_status) == (3, True, number, status)
    assert result.checkpoint is not None and result.checkpoint.is_dir()
    assert signal.getsignal(number) is before
    with pytest.raises(SystemExit) as end:
        result.exit_if_interrupted()
    assert end.value.code == status


def test_training_that_came_to_its_end_has_status_0():
    result = TrainingResult(4, False, None)
    assert result.exit_status == 0 and result.exit_if_interrupted() is result


SLEEPER = """
import os, sys, time
from realm_hf.training.signals import StopRequest
stop = StopRequest()
with stop.listening():
    print("ready", flush=True)
    for _ in range(600):
        time.sleep(0.1)
        if stop.is_set() and sys.argv[1] == "obeys":
            sys.exit(128 + stop.signal)
"""


def sleeper(what):
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, what], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    return process


def test_second_ctrl_c_ends_the_process_at_once():
    process = sleeper("is busy")
    process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)  # the terminal's and the launcher's: one press
    time.sleep(1.2)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=60) == -signal.SIGINT
    assert process.communicate()[1].count("Ctrl-C: a checkpoint is written") == 1


def test_ctrl_c_that_the_shell_has_switched_off_stays_so():
    program = f"import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\n{SLEEPER}"
    process = subprocess.Popen([sys.executable, "-c", program, "obeys"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)
    assert process.poll() is None
    process.terminate()
    assert process.wait(timeout=60) == 143


def test_first_signal_is_the_one_that_is_told():
    stop = StopRequest()
    assert not stop.is_set() and stop.signal is None
    stop.set(signal.SIGINT)
    stop.set(signal.SIGTERM)
    assert stop.is_set() and stop.signal == signal.SIGINT


@pytest.mark.parametrize(
    "given", [[], ["--resume_from_checkpoint", "runs/a b/step-3"], ["--resume_from_checkpoint=x"]]
)
def test_command_that_resumes_is_the_one_that_was_given(monkeypatch, given):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    words = ["python", "examples/pretrain.py", "run.yaml", *given, "--output_dir", "runs/my run"]
    monkeypatch.setattr(sys, "orig_argv", words)
    monkeypatch.setattr(sys, "argv", words[1:])
    expected = "python examples/pretrain.py run.yaml --output_dir 'runs/my run' --resume_from_checkpoint true"
    assert resume_command() == expected
