"""Collection goes on beside a checkpoint that cannot be read, and takes nothing that it may name."""

import json

import pytest

from realm_hf.storage.sealed_json import SEAL, write_sealed_json

UNREADABLE = {
    "no UTF-8": b'{"generation": "\xff"}',
    "nested": b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "a list": b"[]",
    "empty": b"",
    "a changed name": json.dumps({"generation": "step-4-bbbbbbbb", SEAL: "0" * 64}).encode(),
}


@pytest.fixture
def named(run):
    """Generations and snapshots of steps 0, 4, 6 and 8; the checkpoint of step 9 names those of step 8."""
    for step in (0, 4, 6, 8):
        (run.index / f"step-{step}-aaaaaaaa").mkdir()
        (run.snapshots / f"step-{step}-e1").mkdir()
    for step in (5, 9):
        (run.checkpoints / f"step-{step}").mkdir()
    write_sealed_json(run.checkpoints / "step-9" / "state.json", {"generation": "step-8-aaaaaaaa", "step": 9})
    return run


@pytest.mark.parametrize("how", UNREADABLE)
def test_all_that_an_unreadable_checkpoint_may_name_is_kept_and_nothing_later(named, caplog, how):
    (named.checkpoints / "step-5" / "state.json").write_bytes(UNREADABLE[how])
    assert named.named_by_checkpoints() == {
        "step-8-aaaaaaaa",
        *("step-0-aaaaaaaa", "step-4-aaaaaaaa", "step-0-e1", "step-4-e1"),
    }
    assert f"Until {named.checkpoints / 'step-5'} is removed" in caplog.text


def test_a_checkpoint_without_a_state_names_nothing(named):
    assert named.named_by_checkpoints() == {"step-8-aaaaaaaa"}
