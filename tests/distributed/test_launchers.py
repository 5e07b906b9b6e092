"""What a stop does under the launchers: who passes the signal on, who starts anything again, and with which status."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from realm_hf.runs.records import read_log
from realm_hf.training.checkpoints import list_checkpoints

pytestmark = pytest.mark.multiprocess

FIXTURES = Path(__file__).parents[1] / "fixtures"
ELASTIC = ["torch.distributed.run", "--max-restarts", "2", "--master-addr", "127.0.0.1", "--nproc-per-node"]
ACCELERATE = ["accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "1", "--num_machines", "1"]


def steps(run):
    return [record["step"] for record in read_log(run / "log.jsonl") if "grad_norm" in record]


def launched(launcher, world, run):
    """The launcher at work, once three steps are taken."""
    settings = {"kind": "inverse cloze", "max_steps": 100_000, "save_steps": 0}
    words = [sys.executable, "-m", *launcher, str(FIXTURES / "launched_program.py"), str(world), str(run)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "ACCELERATE_USE_CPU": "true"}
    environment["PYTHONPATH"] = os.pathsep.join([str(FIXTURES), environment["PYTHONPATH"]])
    output = run.with_suffix(".out").open("w")
    process = subprocess.Popen(
        [*words, json.dumps(settings)], stdout=output, stderr=output, env=environment, start_new_session=True
    )
    deadline = time.monotonic() + 240
    while len(steps(run)) < 3:
        assert process.poll() is None and time.monotonic() < deadline, run.with_suffix(".out").read_text()
        time.sleep(0.1)
    return process


# A process takes seconds to start: one signal is enough for two.
@pytest.mark.parametrize(("number", "ranks"), [(signal.SIGTERM, 2), (signal.SIGINT, 1)])
def test_elastic_launcher_that_is_stopped_passes_it_on_and_starts_nothing_again(world, tmp_path, number, ranks):
    run = tmp_path / "run"
    launcher = launched([*ELASTIC, str(ranks)], world, run)
    launcher.send_signal(number)
    assert launcher.wait(timeout=120) != 0
    assert sorted((run / "starts").read_text().split()) == ["0", "1"][:ranks]
    last = steps(run)[-1]
    assert [checkpoint.step for checkpoint in list_checkpoints(run / "checkpoints")] == [last]
    assert f"stopped at step {last}" in run.with_suffix(".out").read_text()


def test_ctrl_c_in_the_terminal_of_accelerate_launch_leaves_a_checkpoint(world, tmp_path):
    run = tmp_path / "run"
    launcher = launched(ACCELERATE, world, run)
    os.killpg(launcher.pid, signal.SIGINT)  # a terminal sends it to the whole group
    assert launcher.wait(timeout=120) != 0
    deadline = time.monotonic() + 120
    while (run / "trainer.lock").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert [checkpoint.step for checkpoint in list_checkpoints(run / "checkpoints")] == [steps(run)[-1]]
