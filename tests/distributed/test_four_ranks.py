"""Four gloo ranks search in shards while two builders refresh the index; one is killed, and two ranks go on."""

import re
import signal
import time

import pytest
from launching import finish, start_ranks, start_trainer
from tiny_worlds import uneven_world

from realm_hf.runs.records import read_log

pytestmark = pytest.mark.multiprocess

SETTINGS = {
    "max_steps": 12,
    "per_device_train_batch_size": 2,  # eight a step, whatever the number of ranks
    "save_steps": 4,
    "index_factory": "exact-sharded",
    "refresh_steps": 3,
    "learning_rate": 1e-3,
    "float64": True,
    "distinct": True,
    "dropout": 0.1,  # the masks follow the micro-batch's place in the global batch
    "refresh": "async",
    "builder_device": "cpu,cpu",
    # An index is waited for one step after its snapshot: what is trained on does not depend on the builders' speed.
    "max_staleness": 3,
    "on_stale": "wait",
}


def losses(run):
    return [record["loss"] for record in read_log(run / "log.jsonl") if "loss" in record]


def swaps(run):
    events = [event for record in read_log(run / "log.jsonl") for event in record.get("events", [])]
    return [(event["snapshot_step"], event["swapped_at_step"]) for event in events]


def test_four_ranks_are_one_until_one_is_killed_and_two_go_on_from_its_checkpoint(tmp_path, record_property):
    world, run, one = tmp_path / "world", tmp_path / "four", tmp_path / "one"
    uneven_world(world)
    single = start_trainer(world, one, gradient_accumulation_steps=4, **SETTINGS)
    four = start_ranks(world, run, 4, die_in="11.0", die_on=2, **SETTINGS)
    assert four[2].wait(300) == -signal.SIGKILL
    died = time.monotonic()
    for rank in (0, 1, 3):
        assert four[rank].wait(60) not in (0, None), "within a minute, and not as if all were well"
        assert "Another rank is lost: it ended, or did not come to" in four[rank].output
    seconds = time.monotonic() - died
    finish([single], timeout=300)
    before = losses(run)
    assert len(before) == 10

    finish(start_ranks(world, run, 2, gradient_accumulation_steps=2, resume=True, **SETTINGS), timeout=300)
    assert re.search(r'"world_size": 2', (run / "checkpoints" / "step-12" / "state.json").read_text())
    expected = losses(one)
    largest = max(abs(a - b) for a, b in zip(before + losses(run), expected[:10] + expected, strict=True))
    record_property("seconds until the other ranks ended", seconds)
    record_property("largest difference of a loss", largest)
    assert largest < 1e-9
    assert swaps(run) == swaps(one) == [(0, 0), (3, 4), (6, 7), (9, 10), (12, 12)]
