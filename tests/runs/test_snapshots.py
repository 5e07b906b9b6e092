"""Snapshots: complete or absent, the newest of the present epoch, exactly the weights that were trained."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from realm_hf import RealmEmbedder
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.snapshots import (
    collect_snapshots,
    copy_embedder_state,
    latest_snapshot,
    list_snapshots,
    load_snapshot,
    write_snapshot,
)


def some_input() -> dict[str, torch.Tensor]:
    ids = torch.arange(5, 29).reshape(2, 12)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "token_type_ids": torch.zeros_like(ids)}


def test_a_loaded_snapshot_embeds_as_the_embedder_did(run, embedder):
    info = write_snapshot(run, embedder, step=7, epoch=0)
    loaded = load_snapshot(run, info.name)
    assert torch.equal(loaded(**some_input()).projected_score, embedder(**some_input()).projected_score)
    assert not loaded.training
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert loaded.config.to_diff_dict() == embedder.config.to_diff_dict()


def test_the_head_that_nothing_reads_is_left_out(run, embedder):
    info = write_snapshot(run, embedder, step=7, epoch=0)
    read = sum(p.numel() for name, p in embedder.named_parameters() if not name.startswith("cls.predictions."))
    assert 4 * read <= info.bytes < 4 * read + 8192


def test_loading_draws_no_random_number_and_leaves_no_weight_as_memory_was(run, embedder):
    info = write_snapshot(run, embedder, step=7, epoch=0)
    before = torch.get_rng_state()
    loaded = load_snapshot(run, info.name)
    assert torch.equal(torch.get_rng_state(), before)
    written = {
        name: tensor for name, tensor in embedder.state_dict().items() if not name.startswith("cls.predictions.")
    }
    for name, tensor in loaded.state_dict().items():
        assert torch.equal(tensor, written.get(name, torch.zeros_like(tensor))), name
    for name, buffer in loaded.named_buffers():
        assert torch.equal(buffer, embedder.get_buffer(name)), name


def test_loading_in_a_thread_leaves_the_tensors_of_other_threads_alone(run, embedder):
    info = write_snapshot(run, embedder, step=7, epoch=0)
    expected = torch.randn(64, 8, generator=torch.Generator().manual_seed(3))
    with ThreadPoolExecutor(max_workers=1) as pool:
        loading = pool.submit(lambda: [load_snapshot(run, info.name) for _ in range(5)])
        torch.manual_seed(3)
        made = [torch.randn(64, 8)]
        while not loading.done():
            made.append(torch.ones(2))
    assert torch.equal(made[0], expected)
    assert {tensor.device.type for tensor in made} == {"cpu"}
    assert {p.device.type for tower in loading.result() for p in tower.parameters()} == {"cpu"}


def test_a_copied_state_does_not_follow_training(embedder):
    state = copy_embedder_state(embedder)
    before = state["cls.dense.weight"].clone()
    with torch.no_grad():
        embedder.cls.dense.weight.add_(1.0)
    assert torch.equal(state["cls.dense.weight"], before)


def test_the_fingerprint_follows_the_weights(run, embedder):
    first = write_snapshot(run, embedder, step=1, epoch=0)
    assert write_snapshot(run, embedder, step=2, epoch=0).fingerprint == first.fingerprint
    with torch.no_grad():
        embedder.cls.dense.bias[0] += 1e-3
    assert write_snapshot(run, embedder, step=3, epoch=0).fingerprint != first.fingerprint


def test_a_written_snapshot_is_never_overwritten(run, embedder):
    first = write_snapshot(run, embedder, step=1, epoch=0)
    with torch.no_grad():
        embedder.cls.dense.bias.zero_().add_(2.0)
    assert write_snapshot(run, embedder, step=1, epoch=0) == first


def test_newest_is_by_number_and_only_of_the_present_epoch(run, embedder):
    run.lock()
    for step in (9, 10, 100):
        write_snapshot(run, embedder, step, epoch=0)
    assert latest_snapshot(run) is None, "those of a trainer that was replaced do not count"
    for step in (9, 10):
        write_snapshot(run, embedder, step, epoch=1)
    newest = latest_snapshot(run)
    assert newest is not None
    assert (newest.step, newest.epoch) == (10, 1)
    assert [(s.epoch, s.step) for s in list_snapshots(run)] == [(0, 9), (0, 10), (0, 100), (1, 9), (1, 10)]


def test_an_unfinished_snapshot_is_not_seen(run, embedder):
    (run.snapshots / ".tmp-step-8-e0-12345678").mkdir()
    assert latest_snapshot(run) is None
    assert list_snapshots(run) == []


def test_a_changed_byte_is_noticed(run, embedder):
    info = write_snapshot(run, embedder, step=1, epoch=0)
    path = run.snapshots / info.name / "embedder.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(RunDirectoryError, match="the file is damaged"):
        load_snapshot(run, info)


def test_weights_that_do_not_fit_the_configuration_are_named(run, embedder):
    state = copy_embedder_state(embedder)
    state["cls.dense.extra"] = torch.zeros(1)
    del state["cls.dense.bias"]
    info = write_snapshot(run, embedder, 1, 0, state=state)
    with pytest.raises(RunDirectoryError, match=r"missing \['cls\.dense\.bias'\], unexpected \['cls\.dense\.extra'\]"):
        load_snapshot(run, info)


def test_diverged_weights_are_refused(run, embedder):
    with torch.no_grad():
        embedder.cls.dense.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"cls\.dense\.weight holds NaN or infinity at step 5"):
        write_snapshot(run, embedder, 5, 0)
    assert not list(run.snapshots.iterdir())


def test_collection_keeps_the_newest_the_kept_and_what_checkpoints_name(run, embedder):
    for step in range(1, 6):
        write_snapshot(run, embedder, step, epoch=0)
    (run.checkpoints / "step-2").mkdir()
    (run.checkpoints / "step-2" / "state.json").write_text(json.dumps({"snapshot": "step-2-e0"}), encoding="utf-8")
    removed = collect_snapshots(run, keep=["step-4-e0"])
    assert sorted(removed) == ["step-1-e0", "step-3-e0"]
    assert [s.step for s in list_snapshots(run)] == [2, 4, 5]


def test_bfloat16_weights_survive(run, tiny_config):
    embedder = RealmEmbedder(tiny_config).to(torch.bfloat16)
    info = write_snapshot(run, embedder, 1, 0)
    loaded = load_snapshot(run, info)
    assert torch.equal(loaded.cls.dense.weight, embedder.cls.dense.weight.float())
