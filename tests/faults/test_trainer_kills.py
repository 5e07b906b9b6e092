"""The trainer dies at any moment, and the run goes on as if it had not."""

import random
import signal
import time

import psutil
import pytest
from launching import finish, start_trainer
from tiny_worlds import fact_world

from realm_hf.runs.records import read_log
from realm_hf.training.checkpoints import list_checkpoints

pytestmark = pytest.mark.multiprocess

# Dropout on, two micro-batches a step, checkpoints after 3, 6, 9, swaps after 4 and 8, candidates retrieved ahead.
RUN = {
    "max_steps": 12,
    "dropout": 0.1,
    "gradient_accumulation_steps": 2,
    "save_steps": 3,
    "refresh_steps": 4,
    "save_total_limit": 2,
}


def losses(run):
    return {record["step"]: record["loss"] for record in read_log(run / "log.jsonl") if "loss" in record}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    fact_world(folder)
    return folder


@pytest.fixture(scope="module")
def uninterrupted(world, tmp_path_factory):
    """The run that nobody disturbed, and how many seconds it took."""
    run = tmp_path_factory.mktemp("uninterrupted") / "run"
    finish([start_trainer(world, tmp_path_factory.mktemp("warm") / "run", max_steps=1)])  # starts the fork server
    started = time.monotonic()
    finish([start_trainer(world, run, **RUN)])
    return run, time.monotonic() - started


def test_run_killed_in_mid_accumulation_and_in_mid_checkpoint_repeats_every_loss(world, uninterrupted, tmp_path):
    run = tmp_path / "run"
    # Weights of another seed: what a resumed run computes with can only come from its checkpoint.
    for sitting, place in enumerate(["5.1", "save.9"]):
        process = start_trainer(world, run, **RUN, die_in=place, resume=sitting > 0, model_seed=sitting)
        assert process.wait() == -signal.SIGKILL, process.output
    assert [checkpoint.step for checkpoint in list_checkpoints(run / "checkpoints")] == [3, 6]
    finish([start_trainer(world, run, **RUN, resume=True, model_seed=7)])
    assert losses(run) == losses(uninterrupted[0])
    assert list(losses(run)) == list(range(1, 13))


@pytest.mark.full
def test_run_killed_at_twenty_random_moments_repeats_every_loss(world, uninterrupted, tmp_path):
    reference, seconds = uninterrupted
    chance, kills, reached, sittings = random.Random(0), 0, set(), 0
    while kills < 20:
        # A run that was done before the moment came is compared, and another one begun.
        run = tmp_path / f"run-{sittings}"
        sittings += 1
        resume = False
        while True:
            # As above, weights of another seed, once there is a checkpoint to resume from.
            seed = kills if list_checkpoints(run / "checkpoints") else 0
            trainer = start_trainer(world, run, **RUN, resume=resume, model_seed=seed)
            # Some while it loads its libraries, which takes most of its time, and some a few steps further on.
            done = max(losses(run), default=0)
            _wait_for_step(run, trainer, done + chance.randint(0, 4) if kills < 20 else 13, time.monotonic() + 600)
            time.sleep(chance.uniform(0, seconds / 40))
            if trainer.returncode is not None:
                break
            trainer.kill()
            reached.add(max(losses(run), default=0))
            kills, resume = kills + 1, True
        finish([trainer])
        assert losses(run) == losses(reference)
    assert len(reached) >= 5, f"the kills came at too few different steps: {reached}"


def test_sigterm_writes_a_checkpoint_stops_the_builder_and_says_so(world, tmp_path):
    run = tmp_path / "run"
    settings = {"max_steps": 4000, "refresh": "async", "refresh_steps": 2, "save_steps": 0}
    process = start_trainer(world, run, **settings)
    _wait_for_step(run, process, 5, time.monotonic() + 120)
    children = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    (output,) = finish([process])
    last = max(losses(run))
    assert "SIGTERM" in output and f"stopped at step {last}" in output
    assert [checkpoint.step for checkpoint in list_checkpoints(run / "checkpoints")] == [last]
    assert not (run / "trainer.lock").exists()
    assert children, "a builder was at work"
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def _wait_for_step(run, process, step, deadline):
    """Until the log holds `step`, or the process has ended."""
    while process.returncode is None and max(losses(run), default=0) < step:
        assert time.monotonic() < deadline, "the trainer takes too long"
        time.sleep(0.02)
