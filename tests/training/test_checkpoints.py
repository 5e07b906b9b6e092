"""Checkpoints come back whole or not at all, and nothing in them can run code."""

import json
import pickle
import shutil

import pytest
import torch
from tiny_worlds import tiny_model

from realm_hf import RealmForPreTraining
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.training.checkpoints import (
    find_checkpoint,
    list_checkpoints,
    micro_batch_seed,
    optimizer_moments,
    prune_checkpoints,
    read_checkpoint,
    save_checkpoint,
    set_later_aside,
)


@pytest.fixture
def trained():
    """A model whose encoder has taken two AdamW steps, while its towers have no optimizer state yet."""
    model = tiny_model()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(2):
        for parameter in model.encoder.parameters():
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
        optimizer.step()
    return model, optimizer


def save(root, trained, step=3, **state):
    state = {"step": step, "cursor": 40, "world_size": 1, "seed": 0, **state}
    model, optimizer = trained
    moments = optimizer_moments(model, optimizer)
    return save_checkpoint(root, model, moments, state=state, tensors={"rows.4": torch.arange(6)})


def as_the_first_protocol_wrote_it(path):
    """Without the hashes, of which earlier versions knew nothing: sizes only, state.json not sealed."""
    state = json.loads((path / "state.json").read_text())
    for name in ("sha256", "sha256_of_the_rest", "term"):
        state.pop(name, None)
    (path / "state.json").write_text(json.dumps({**state, "protocol": 1}, indent=2, ensure_ascii=False) + "\n")
    return path


STATE = {"step": 6, "cursor": 40, "world_size": 1, "seed": 0, "term": 2, "generation": "step-4-1a2b3c4d"}


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[-9] ^= 4
    file.write_bytes(content)


def rewrite(marker, **changes):
    state = json.loads(marker.read_text()) | changes
    marker.write_text(json.dumps({name: value for name, value in state.items() if value != "gone"}))


DAMAGES = {
    "state is no UTF-8": lambda path: (path / "state.json").write_bytes(b'{"step": "\xff\xfe"}'),
    "state is nested": lambda path: (path / "state.json").write_text('{"a": ' + "[" * 100_000 + "]" * 100_000 + "}"),
    "state is nested a little": lambda path: rewrite(path / "state.json", ahead=json.loads("[" * 900 + "]" * 900)),
    "state is a list": lambda path: (path / "state.json").write_text("[1]"),
    **{f"{name} is missing": lambda path, name=name: rewrite(path / "state.json", **{name: "gone"}) for name in STATE},
    **{f"{name} is null": lambda path, name=name: rewrite(path / "state.json", **{name: None}) for name in STATE},
    "files are missing": lambda path: rewrite(path / "state.json", files="gone"),
    "another generation": lambda path: rewrite(path / "state.json", generation="step-4-1a2b3c4e"),
    "bit of the weights": lambda path: flip_a_bit(path / "model" / "model.safetensors"),
    "bit of the configuration": lambda path: flip_a_bit(path / "model" / "config.json"),
    "bit of the optimizer": lambda path: flip_a_bit(path / "optimizer.safetensors"),
    "bit of the candidates": lambda path: flip_a_bit(path / "ahead.safetensors"),
}


def test_weights_moments_and_state_come_back_exactly(tmp_path, trained):
    checkpoint = read_checkpoint(save(tmp_path, trained))
    assert (checkpoint.step, checkpoint.state["cursor"]) == (3, 40)
    assert torch.equal(checkpoint.tensors()["rows.4"], torch.arange(6))
    model, optimizer = trained
    other = tiny_model(seed=5)
    fresh = torch.optim.AdamW([p for p in other.parameters() if p.requires_grad], lr=1e-2)
    checkpoint.load_model(other)
    checkpoint.load_optimizer(fresh, other)
    theirs = dict(other.named_parameters())
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, theirs[name]), name
        before, after = optimizer.state.get(parameter, {}), fresh.state.get(theirs[name], {})
        assert before.keys() == after.keys()
        assert all(torch.equal(before[kind], after[kind]) for kind in before), name
    # And both go on alike.
    for m, o in ((model, optimizer), (other, fresh)):
        for parameter in m.parameters():
            parameter.grad = torch.full_like(parameter, 0.1) if parameter.requires_grad else None
        o.step()
    assert all(torch.equal(p, theirs[name]) for name, p in model.named_parameters())


def test_model_folder_is_a_pretrained_one(tmp_path, trained):
    loaded, report = RealmForPreTraining.from_pretrained(save(tmp_path, trained) / "model", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    ours = dict(trained[0].named_parameters())
    assert all(torch.equal(p, ours[name]) for name, p in loaded.named_parameters())


def test_no_file_is_a_pickle(tmp_path, trained):
    for file in save(tmp_path, trained).rglob("*"):
        if file.is_file():
            assert file.suffix in (".json", ".safetensors"), file
            with pytest.raises((pickle.UnpicklingError, EOFError, KeyError, ValueError, IndexError)):
                pickle.loads(file.read_bytes())


@pytest.mark.parametrize("damage", ["no marker", "half a marker", "missing file", "truncated file"])
def test_torn_checkpoint_is_never_picked(tmp_path, trained, damage):
    save(tmp_path, trained, step=3)
    newest = save(tmp_path, trained, step=6)
    marker, weights = newest / "state.json", newest / "model" / "model.safetensors"
    if damage == "no marker":
        marker.unlink()
    elif damage == "half a marker":
        marker.write_text(marker.read_text()[:50])
    elif damage == "missing file":
        weights.unlink()
    else:
        with weights.open("r+b") as file:
            file.truncate(weights.stat().st_size - 1)
    assert find_checkpoint(tmp_path, True).step == 3
    with pytest.raises(RunDirectoryError, match=r"step-6 is no complete checkpoint.*step-3"):
        find_checkpoint(tmp_path, newest)


def test_failed_write_leaves_nothing_and_keeps_the_earlier_one(tmp_path, trained, monkeypatch):
    save(tmp_path, trained, step=3)

    def full_disk(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("realm_hf.training.checkpoints.save_file", full_disk)
    with pytest.raises(OSError, match=r"write the checkpoint.*free space"):
        save(tmp_path, trained, step=6)
    assert [path.name for path in tmp_path.iterdir()] == ["step-3"]
    assert find_checkpoint(tmp_path, True).step == 3


@pytest.mark.parametrize("what", DAMAGES)
def test_damaged_checkpoint_is_passed_over_for_the_newest_sound_one_and_refused_if_named(
    tmp_path, trained, caplog, what
):
    save(tmp_path, trained, **{**STATE, "step": 3})
    newest = save(tmp_path, trained, **STATE)
    DAMAGES[what](newest)
    assert find_checkpoint(tmp_path, True).step == 3
    assert f"{newest} is" in caplog.text and "passed over" in caplog.text
    assert f"The newest sound checkpoint is {tmp_path / 'step-3'}" in caplog.text
    with pytest.raises(RunDirectoryError, match=r"step-6 is no complete checkpoint: .*Others.*step-3"):
        find_checkpoint(tmp_path, newest)


@pytest.mark.parametrize("what", ["seed is missing", "cursor is null", "generation is null", "state is no UTF-8"])
def test_damaged_checkpoint_of_the_first_protocol_is_passed_over(tmp_path, trained, what):
    for step in (3, 6):
        path = as_the_first_protocol_wrote_it(save(tmp_path, trained, **{**STATE, "step": step, "snapshot": "s"}))
    DAMAGES[what](path)
    assert find_checkpoint(tmp_path, True).step == 3


def test_checkpoint_of_the_first_protocol_is_resumed_and_older_than_one_of_any_term(tmp_path, trained):
    save(tmp_path, trained, step=9)
    as_the_first_protocol_wrote_it(tmp_path / "step-9")
    old = find_checkpoint(tmp_path, True)
    assert (old.step, old.term, old.damage()) == (9, 0, None)
    old.load_model(tiny_model(seed=5))
    save(tmp_path, trained, step=6, term=1)
    assert [c.step for c in list_checkpoints(tmp_path)] == [9, 6]


def test_cut_header_of_the_first_protocol_is_noticed(tmp_path, trained):
    save(tmp_path, trained, step=3)
    path = as_the_first_protocol_wrote_it(save(tmp_path, trained, step=6))
    weights = path / "model" / "model.safetensors"
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    assert find_checkpoint(tmp_path, True).step == 3


def test_step_that_is_saved_again_holds_the_new_weights_and_the_earlier_ones_are_kept(tmp_path, trained, caplog):
    save(tmp_path, trained, step=9, term=1)
    parameter = next(iter(trained[0].encoder.parameters()))
    before = parameter.detach().clone()
    with torch.no_grad():
        parameter.add_(1.0)
    save(tmp_path, trained, step=9, term=2)

    def weights(path):
        read_checkpoint(path).load_model(other := tiny_model(seed=5))
        return next(iter(other.encoder.parameters()))

    assert torch.equal(weights(tmp_path / "step-9"), before + 1.0)
    assert torch.equal(weights(tmp_path / "aside" / "step-9-term-1"), before)
    assert [c.term for c in list_checkpoints(tmp_path)] == [2]
    assert "step-9 set aside as" in caplog.text


def test_going_back_sets_aside_what_is_later_sound_or_not_and_says_so(tmp_path, trained, caplog):
    for step in (3, 6, 9, 12):
        save(tmp_path, trained, step=step, term=1)
    (tmp_path / "step-12" / "state.json").unlink()
    assert set_later_aside(tmp_path, read_checkpoint(tmp_path / "step-12")) != []
    for step in (3, 6, 9):
        save(tmp_path, trained, step=step, term=2)
    caplog.clear()
    aside = set_later_aside(tmp_path, read_checkpoint(tmp_path / "step-3"))
    assert [path.name for path in aside] == ["step-6-term-2", "step-9-term-2"]
    assert all(str(path) in caplog.text for path in aside)
    assert sorted(path.name for path in (tmp_path / "aside").iterdir()) == [
        "step-12-damaged",
        *(f"step-{step}-term-{term}" for step, terms in ((3, [1]), (6, [1, 2]), (9, [1, 2])) for term in terms),
    ]
    assert find_checkpoint(tmp_path, True).step == 3, "what was left is never the newest"
    assert prune_checkpoints(tmp_path, 1)[0].step == 3
    assert len(list((tmp_path / "aside").iterdir())) == 6, "nor pruned"
    assert set_later_aside(tmp_path, find_checkpoint(tmp_path, aside[1])) == [tmp_path / "aside" / "step-3-term-2"]


def test_limit_keeps_the_newest(tmp_path, trained):
    for step in (3, 12, 6):
        save(tmp_path, trained, step=step)
    assert [c.step for c in prune_checkpoints(tmp_path, None)] == [3, 6, 12]
    assert [c.step for c in prune_checkpoints(tmp_path, 2)] == [6, 12]
    assert [c.step for c in list_checkpoints(tmp_path)] == [6, 12]


def test_fresh_start_over_an_old_run_is_refused(tmp_path, trained):
    assert find_checkpoint(tmp_path, None) is None
    assert find_checkpoint(tmp_path, True) is None
    save(tmp_path, trained)
    with pytest.raises(RunDirectoryError, match=r"up to step 3.*resume_from_checkpoint=true"):
        find_checkpoint(tmp_path, None)


def test_checkpoint_of_another_architecture_is_refused(tmp_path, trained):
    checkpoint = read_checkpoint(save(tmp_path, trained))
    with pytest.raises(RunDirectoryError, match="does not fit the model"):
        checkpoint.load_model(tiny_model(hidden_size=16))


def test_unknown_protocol_is_not_read(tmp_path, trained):
    path = save(tmp_path, trained)
    state = json.loads((path / "state.json").read_text())
    (path / "state.json").write_text(json.dumps({**state, "protocol": 99}))
    assert read_checkpoint(path) is None
    shutil.rmtree(path)
    assert read_checkpoint(path) is None


def test_seeds_of_micro_batches_differ():
    seeds = {micro_batch_seed(seed, step, index) for seed in range(10) for step in range(30) for index in range(8)}
    assert len(seeds) == 10 * 30 * 8
    assert all(0 <= seed < 2**63 for seed in seeds)
