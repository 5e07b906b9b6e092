"""What two gloo ranks agree on: a step that is left out, a wait for one of them, and the signal that ends both."""

import re
import time

import pytest
from launching import finish, start_ranks
from safetensors.torch import load_file
from three_trainers import KINDS

from realm_hf.runs.records import read_log
from realm_hf.training.checkpoints import list_checkpoints

pytestmark = pytest.mark.multiprocess

LOOP = {"program": "loop_program", "per_device_train_batch_size": 2}


def step_records(run):
    return [record for record in read_log(run / "log.jsonl") if "grad_norm" in record]


@pytest.mark.parametrize("kind", KINDS)
def test_nan_on_one_rank_leaves_the_step_out_on_both(world, tmp_path, kind):
    run = tmp_path / "run"
    finish(start_ranks(world, run, 2, **LOOP, kind=kind, nan_on="1:2", save_steps=1, save_total_limit=None))
    records = step_records(run)
    assert [record.get("skipped_steps") for record in records] == [None, 1, None, None]
    one, two, three = (
        load_file(checkpoint.path / "model" / "model.safetensors")
        for checkpoint in list_checkpoints(run / "checkpoints")[:3]
    )
    assert all((one[name] == two[name]).all() for name in one)
    assert any((two[name] != three[name]).any() for name in two)
    assert all(tensor.isfinite().all() for tensor in three.values())


def test_ranks_wait_for_a_long_checkpoint_longer_than_for_a_step_and_say_so(world, tmp_path):
    settings = {**LOOP, "max_steps": 2, "busy": 8.0, "timeout": 3.0, "save_steps": 1}
    printed = finish(start_ranks(world, tmp_path / "run", 2, **settings))
    assert "finished at step 2" in printed[0]
    assert re.search(r"write the checkpoint: \d+ s so far, ranks at work: 0", printed[1])


def test_rank_that_is_told_to_stop_ends_both_with_its_status(world, tmp_path):
    run = tmp_path / "run"
    ranks = start_ranks(world, run, 2, **LOOP, max_steps=4000)
    deadline = time.monotonic() + 120
    while len(step_records(run)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    ranks[1].terminate()
    assert [rank.wait() for rank in ranks] == [143, 143]
    last = len(step_records(run))
    assert f"stopped at step {last}" in ranks[0].output
    assert [checkpoint.step for checkpoint in list_checkpoints(run / "checkpoints")] == [last]
