"""Two gloo processes train as one: the same losses and weights, one generation at a time, whatever each rank masks."""

import json
import time
from collections import Counter

import pytest
from launching import finish, start_ranks, start_trainer
from safetensors.torch import load_file
from tiny_worlds import fact_world, uneven_world

from realm_hf.runs.records import read_log
from realm_hf.training.checkpoints import list_checkpoints

pytestmark = pytest.mark.multiprocess

STEPS = 8


def losses(run):
    return [record["loss"] for record in read_log(run / "log.jsonl") if "loss" in record]


def rank_log(run, rank):
    return [json.loads(line) for line in (run / f"rank{rank}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def uneven(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uneven")
    uneven_world(folder)
    return folder


@pytest.mark.parametrize(("marginalization", "index"), [("token", "auto"), ("span", "exact-sharded")])
def test_two_ranks_with_accumulation_equal_one_process_with_the_same_global_batch(
    uneven, tmp_path, marginalization, index
):
    settings = {
        "max_steps": STEPS,
        "per_device_train_batch_size": 2,
        "refresh_steps": 3,
        "save_steps": 0,
        "learning_rate": 1e-3,
        "marginalization": marginalization,
        "index_factory": index,  # "exact-sharded": two ranks search together what one process searches alone
        "float64": True,  # equality is the point: in float32 Adam makes much of the last digits
        "distinct": True,  # else near-ties in the search flip with the shape of the batch
        "dropout": 0.1,  # the masks follow the micro-batch's place in the global batch
    }
    two_ranks = start_ranks(uneven, tmp_path / "two", 2, gradient_accumulation_steps=2, **settings)
    finish([*two_ranks, start_trainer(uneven, tmp_path / "one", gradient_accumulation_steps=4, **settings)])

    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-9)
    one, two = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name in one:
        assert (one[name] - two[name]).abs().max() < 1e-9, name
    # The case is what it claims to be: different examples, unequal counts, and at times one rank has none.
    masked = [[record["masked"] for record in rank_log(tmp_path / "two", rank)] for rank in (0, 1)]
    assert len(masked[0]) == len(masked[1]) == STEPS
    assert any(a == 0 < b or b == 0 < a for a, b in zip(*masked, strict=True))
    assert max(abs(a - b) for a, b in zip(*masked, strict=True)) >= 8
    generations = [[record["generation"] for record in rank_log(tmp_path / "two", rank)] for rank in (0, 1)]
    assert generations[0] == generations[1]


def test_two_ranks_keep_the_candidates_of_one_process_by_the_towers_of_the_step(uneven, tmp_path):
    settings = {
        "max_steps": 4,
        "per_device_train_batch_size": 2,
        "refresh": "off",
        "save_steps": 0,
        "rerank_depth": 10,
    }
    exact = {"learning_rate": 1e-2, "float64": True, "distinct": True, "dropout": 0.1}
    two_ranks = start_ranks(uneven, tmp_path / "two", 2, **settings, **exact)
    plain = {**settings, "rerank_depth": None}
    one, without = (
        start_trainer(uneven, tmp_path / name, gradient_accumulation_steps=2, **given, **exact)
        for name, given in (("one", settings), ("without", plain))
    )
    finish([*two_ranks, one, without])
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-6)
    assert losses(tmp_path / "one") != pytest.approx(losses(tmp_path / "without"), abs=1e-3)


def test_a_rank_that_dies_while_all_search_together_ends_the_other_in_words(uneven, tmp_path):
    settings = {"max_steps": 4000, "per_device_train_batch_size": 2, "save_steps": 0, "refresh_steps": 2}
    ranks = start_ranks(uneven, tmp_path / "run", 2, index_factory="exact-sharded", **settings)
    deadline = time.monotonic() + 240
    while len(losses(tmp_path / "run")) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    ranks[1].kill()
    assert ranks[0].wait(60) != 0
    assert "Another rank is lost: it ended, or did not come to " in ranks[0].output
    generations = {record["generation"] for record in rank_log(tmp_path / "run", 0)}
    assert len(generations) > 1, "it died before the first swap"


def test_ranks_always_search_one_generation_while_it_is_refreshed_asynchronously(tmp_path):
    fact_world(tmp_path / "world")
    ranks = start_ranks(
        tmp_path / "world",
        tmp_path / "run",
        2,
        max_steps=24,
        per_device_train_batch_size=2,
        refresh="async",
        refresh_steps=5,
        max_staleness=10,
        on_stale="wait",
        save_steps=0,
    )
    finish(ranks)
    searched = [[record["generation"] for record in rank_log(tmp_path / "run", rank)] for rank in (0, 1)]
    assert searched[0] == searched[1]
    counts = Counter(searched[0])
    assert len(counts) >= 2 and sum(counts.values()) == 24


def test_sigterm_to_one_rank_stops_both_at_the_same_step_with_one_checkpoint(uneven, tmp_path):
    run = tmp_path / "run"
    ranks = start_ranks(uneven, run, 2, max_steps=4000, per_device_train_batch_size=2, save_steps=0)
    deadline = time.monotonic() + 120
    while len(losses(run)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    ranks[1].terminate()
    printed = finish(ranks)
    last = len(losses(run))
    assert f"stopped at step {last}" in printed[0]
    assert [checkpoint.step for checkpoint in list_checkpoints(run / "checkpoints")] == [last]
    assert len(rank_log(run, 0)) == len(rank_log(run, 1)) == last
