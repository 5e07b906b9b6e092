"""Best weights stay as long as any checkpoint may name them, and no course of training replaces another's."""

import pytest
import torch
from tiny_worlds import tiny_model

from realm_hf import RealmForPreTraining
from realm_hf.runs.term import Term
from realm_hf.storage.sealed_json import write_sealed_json
from realm_hf.training.best_model import BestModel


def term(run):
    new = Term.claim(run, 0, lambda number: {"number": number})
    new.retire_earlier()
    return new


def weights(folder):
    return next(RealmForPreTraining.from_pretrained(folder).parameters())


def best_of(run, step, seed, value=0.5):
    best = BestModel(run)
    best.consider(step, value, "step-0-aaaaaaaa")
    best.save(tiny_model(seed=seed), term(run))
    return best


def checkpoint(run, name, best):
    folder = run / "checkpoints" / name
    folder.mkdir(parents=True)
    write_sealed_json(folder / "state.json", {"step": 5, "best": best})
    return folder


def test_another_course_keeps_its_best_beside_what_was_best_at_that_step(tmp_path):
    left = best_of(tmp_path, 4, seed=0)
    checkpoint(tmp_path, "aside/step-5-term-1", left.state())
    new = best_of(tmp_path, 4, seed=1)
    assert sorted(folder.name for folder in (tmp_path / "best").iterdir()) == ["step-4", "step-4-term-2"]
    for state, seed in ((left.state(), 0), (new.state(), 1)):
        resumed = BestModel(tmp_path)
        resumed.restore(state)
        assert torch.equal(weights(resumed.folder), next(tiny_model(seed=seed).parameters()))


def test_state_of_earlier_versions_names_the_step_alone(tmp_path):
    state = best_of(tmp_path, 4, seed=0).state()
    del state["folder"]
    checkpoint(tmp_path, "step-5", state)
    best_of(tmp_path, 6, seed=1)
    resumed = BestModel(tmp_path)
    resumed.restore(state)
    assert (resumed.step, resumed.folder) == (4, tmp_path / "best" / "step-4")


@pytest.mark.parametrize("content", [b"\xff", b"[]", b'{"best": {"step": 4}, "sha256_of_the_rest": "0"}'])
def test_nothing_is_removed_while_a_checkpoint_cannot_be_read(tmp_path, content):
    folder = checkpoint(tmp_path, "step-5", {})
    best_of(tmp_path, 4, seed=0)
    (folder / "state.json").write_bytes(content)
    best_of(tmp_path, 6, seed=1)
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"step-4", "step-6"}
    (folder / "state.json").unlink()
    best_of(tmp_path, 8, seed=1)
    assert {path.name for path in (tmp_path / "best").iterdir()} == {"step-8"}
