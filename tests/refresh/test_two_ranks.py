"""Two processes (gloo): always one generation, and an index built together equals one built alone."""

import json
from typing import Any

import numpy as np
import pytest
from launching import finish, start_programs

from realm_hf.data.passages.store import PassageStore
from realm_hf.generations.store import GenerationStore
from realm_hf.refresh.build import build_generation, builds_of
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.snapshots import load_snapshot, read_snapshot, write_snapshot

pytestmark = pytest.mark.multiprocess


@pytest.fixture(scope="module")
def shared_run(tmp_path_factory, tiny_passages, tokenizer) -> RunDirectory:
    import torch

    from realm_hf import RealmConfig, RealmEmbedder

    torch.manual_seed(0)
    config = RealmConfig(
        vocab_size=2048, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    run = RunDirectory.create(tmp_path_factory.mktemp("two") / "run", passages=tiny_passages, tokenizer=tokenizer)
    write_snapshot(run, RealmEmbedder(config), 1, 0)
    return run


@pytest.fixture(scope="module")
def told(shared_run) -> list[dict[str, Any]]:
    """What each rank saw."""
    folder = shared_run.root.parent
    finish(start_programs("two_ranks_worker", [folder, shared_run.root], folder), timeout=180)
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(2)]


def test_both_hold_the_same_generation_at_every_step(told):
    assert told[0]["served"] == told[1]["served"]
    assert told[0]["swap_steps"] == told[1]["swap_steps"]
    assert list(dict.fromkeys(told[0]["served"])) == ["g0", "g1", "g3"], "g2 fails on rank 1, so no rank serves it"


def test_what_one_rank_cannot_open_is_dropped_by_all_and_quarantined_once(told):
    assert told[0]["failures"] == told[1]["failures"] == [["g2", {"1": "OSError: g2 is truncated"}]]
    assert (told[0]["quarantined"], told[1]["quarantined"]) == (["g2"], [])
    assert told[0]["closed"] == ["g0", "g1", "g2"], "rank 0 had opened g2, and closes it"
    assert told[1]["closed"] == ["g0", "g1"]


def test_no_rank_waits_for_a_slow_one_inside_a_step(told):
    # Rank 1 takes 0.6 s to open.
    assert max(rank["slowest_step_seconds"] for rank in told) < 0.5


def test_a_flag_on_one_rank_is_seen_by_all(told):
    assert told[0]["any_rank"] == told[1]["any_rank"] == [True, False]


def test_ranks_that_embed_a_share_each_build_what_one_process_builds(told, shared_run):
    assert told[1]["built"] is None, "only rank 0 writes"
    embedder = load_snapshot(shared_run, "step-1-e0")
    alone = build_generation(
        shared_run,
        write_snapshot(shared_run, embedder, 3, 0),
        embedder,
        passages=PassageStore.load(shared_run.passages),
        store=GenerationStore(shared_run.index),
    )
    assert alone is not None
    store = GenerationStore(shared_run.index)
    with store.open(told[0]["built"]) as together, store.open(alone.name) as single:
        np.testing.assert_allclose(together.embeddings, single.embeddings, atol=1e-6)
        assert together.info.embedder_fingerprint == single.info.embedder_fingerprint
    assert not list(builds_of(store).iterdir()), "the parts are removed once they are joined"


def test_a_builder_under_a_launcher_builds_once_and_not_once_a_rank(told, shared_run):
    assert [rank["exit_code"] for rank in told] == [0, 0]
    assert [info.snapshot_step for info in GenerationStore(shared_run.index).list()].count(4) == 1


def test_a_sharded_embedder_is_copied_whole_on_rank_0(told, shared_run):
    assert told[0]["sharded"] == read_snapshot(shared_run, "step-1-e0").fingerprint
    assert told[1]["sharded"] is None
