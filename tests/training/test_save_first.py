"""What comes after the last step may fail: the checkpoint and the model are there, and a resume does the rest."""

import json

import pytest
from three_trainers import trainer_of

from realm_hf import RealmForOpenQA, RealmForPreTraining, RealmRetriever
from realm_hf.generations.store import GenerationStore
from realm_hf.training import pretraining
from realm_hf.training.checkpoints import list_checkpoints
from realm_hf.training.index_service import IndexService


def full_disk(*_):
    raise OSError(28, "No space left on device")


def refused(*_):
    raise RuntimeError("FlashAttention only supports fp16 and bf16")


@pytest.mark.parametrize("where", ["index", "examples"])
def test_pre_training_that_fails_after_its_last_step_has_checkpoint_and_model(world, tmp_path, monkeypatch, where):
    with monkeypatch.context() as broken:
        if where == "index":
            broken.setattr(IndexService, "final", full_disk)
        else:
            broken.setattr(pretraining, "explain", refused)
        with pytest.raises((OSError, RuntimeError), match=r"No space left|FlashAttention"):
            trainer_of("pre-training", world, tmp_path, max_steps=3).train()
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "checkpoints")] == [3]
    RealmForPreTraining.from_pretrained(tmp_path / "model")
    assert not (tmp_path / "examples.json").exists()

    done = trainer_of("pre-training", world, tmp_path, max_steps=3).train(resume_from_checkpoint=True)
    assert (done.step, done.interrupted) == (3, False)
    assert json.loads((tmp_path / "examples.json").read_text())
    final = json.loads((tmp_path / "summary.json").read_text())["final_generation"]
    assert final == GenerationStore(tmp_path / "index").list()[-1].name
    assert GenerationStore(tmp_path / "index").list()[-1].snapshot_step == 3


def test_fine_tuning_that_fails_after_its_last_step_has_checkpoint_and_model(world, tmp_path, monkeypatch):
    settings = {"max_steps": 3, "refresh": "sync", "refresh_steps": 2}
    with monkeypatch.context() as broken:
        broken.setattr(IndexService, "final", full_disk)
        with pytest.raises(OSError, match="No space left"):
            trainer_of("fine-tuning", world, tmp_path, **settings).train()
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "checkpoints")] == [3]
    RealmForOpenQA.from_pretrained(tmp_path / "model")
    assert not (tmp_path / "model" / "retriever.json").exists()
    assert trainer_of("fine-tuning", world, tmp_path, **settings).train(resume_from_checkpoint=True).step == 3
    RealmRetriever.from_pretrained(tmp_path / "model")


def test_finished_run_that_is_resumed_builds_no_index_again(world, tmp_path):
    trainer_of("pre-training", world, tmp_path, max_steps=3).train()
    before = [info.name for info in GenerationStore(tmp_path / "index").list()]
    trainer_of("pre-training", world, tmp_path, max_steps=3).train(resume_from_checkpoint=True)
    assert [info.name for info in GenerationStore(tmp_path / "index").list()] == before
