"""What the loop promises whatever it trains: batches, precision and resuming change nothing that they should not."""

import json
import shutil

import numpy as np
import pytest
import torch
from tiny_worlds import load_world, tiny_model, tiny_tokenizer
from transformers import TrainerCallback

from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.records import read_log
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.checkpoints import list_checkpoints
from realm_hf.training.pretraining import RealmTrainer


def pretrainer(world, run, model=None, **overrides):
    settings = {
        "max_steps": 3,
        "per_device_train_batch_size": 4,
        "num_candidates": 3,
        "max_query_length": 24,
        "max_candidate_length": 32,
        "learning_rate": 1e-3,
        "refresh": "sync",
        "refresh_steps": 2,
        "probe_queries": 0,
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
    }
    args = RealmTrainingArguments(output_dir=str(run), **{**settings, **overrides})
    passages, sentences = load_world(world)
    return RealmTrainer(
        model or tiny_model(),
        args,
        train_dataset=sentences.train,
        processing_class=tiny_tokenizer(),
        passages=passages,
    )


def losses(run):
    return [record["loss"] for record in read_log(run / "log.jsonl") if "loss" in record]


@pytest.fixture(scope="module")
def reference(world, tmp_path_factory):
    run = tmp_path_factory.mktemp("reference")
    pretrainer(world, run).train()
    return losses(run)


def test_one_batch_of_four_equals_four_batches_of_one(world, tmp_path, reference):
    pretrainer(world, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=4).train()
    assert losses(tmp_path) == pytest.approx(reference, abs=1e-5)


def test_gradient_checkpointing_changes_no_loss(world, tmp_path, reference):
    made = pretrainer(world, tmp_path, gradient_checkpointing=True)
    assert made.model.embedder.realm.is_gradient_checkpointing and made.model.encoder.realm.is_gradient_checkpointing
    made.train()
    assert losses(tmp_path) == pytest.approx(reference, abs=1e-6)


def test_bfloat16_trains_close_to_float32_with_float32_weights(world, tmp_path, reference):
    made = pretrainer(world, tmp_path, bf16=True)
    made.train()
    assert losses(tmp_path) == pytest.approx(reference, rel=0.01)
    assert losses(tmp_path) != reference
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}


def test_a_search_in_the_background_leaves_the_bfloat16_copies_of_weights_to_the_step(world, tmp_path):
    """Made anew in mid-step, they take gradients apart from the first ones: bits that hang on the search's moment."""
    made = pretrainer(world, tmp_path, bf16=True, max_steps=1)
    copies = []

    class Search(TrainerCallback):
        def on_train_end(self, args, state, control, trainer, **kwargs):
            tower = trainer.model.embedder.realm.pooler.dense
            with trainer.autocast():
                for step in (2, 3):
                    # The product's backward -> the transposition's -> the copy's.
                    copies.append(tower(torch.ones(1, 32)).grad_fn.next_functions[2][0].next_functions[0][0])
                    trainer.ahead.request(step, np.arange(4).reshape(1, 4), 3)
                    trainer.ahead.take(step)

    made.callbacks.append(Search())
    made.train()
    assert copies[0].name() == "ToCopyBackward0"
    assert copies[0] is copies[1]


def test_evaluation_between_steps_changes_no_loss(world, tmp_path):
    for name, evaluated in (("a", 0), ("b", 1)):
        passages, sentences = load_world(world)
        args = pretrainer(world, tmp_path / name, eval_steps=evaluated).args
        model = tiny_model(dropout=0.2)
        RealmTrainer(
            model,
            args,
            train_dataset=sentences.train,
            eval_dataset=sentences.heldout,
            processing_class=tiny_tokenizer(),
            passages=passages,
        ).train()
    assert losses(tmp_path / "a") == losses(tmp_path / "b")


def test_finished_run_goes_on_when_it_is_given_more_steps(world, tmp_path):
    pretrainer(world, tmp_path, max_steps=2).train()
    assert pretrainer(world, tmp_path, max_steps=2).train(resume_from_checkpoint=True).step == 2
    assert pretrainer(world, tmp_path, max_steps=5).train(resume_from_checkpoint=True).step == 5
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl") if "loss" in r] == [1, 2, 3, 4, 5]
    assert [checkpoint.step for checkpoint in list_checkpoints(tmp_path / "checkpoints")] == [2, 5]


def test_resume_with_another_batch_goes_on_at_the_next_example(world, tmp_path):
    pretrainer(world, tmp_path, max_steps=2).train()
    seen = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, trainer, **kwargs):
            seen.append(trainer._positions(3))

    made = pretrainer(world, tmp_path, max_steps=3, per_device_train_batch_size=2, allow_changed_arguments=True)
    made.callbacks.append(Watch())
    made.train(resume_from_checkpoint=True)
    assert np.array_equal(seen[0], [[8, 9]])
    assert len(losses(tmp_path)) == 3


def test_going_back_leaves_the_later_checkpoints_and_saves_its_own(world, tmp_path, caplog):
    settings = {"save_steps": 1, "save_total_limit": 2, "allow_changed_arguments": True}
    pretrainer(world, tmp_path, max_steps=4, save_steps=1, save_total_limit=None).train()
    left = (tmp_path / "checkpoints" / "step-3" / "model" / "model.safetensors").read_bytes()
    other = pretrainer(world, tmp_path, max_steps=3, learning_rate=3e-3, **settings)
    other.train(resume_from_checkpoint=tmp_path / "checkpoints" / "step-1")
    present = list_checkpoints(tmp_path / "checkpoints")
    assert [(checkpoint.step, checkpoint.term) for checkpoint in present] == [(2, 2), (3, 2)]
    assert (present[-1].path / "model" / "model.safetensors").read_bytes() != left
    aside = tmp_path / "checkpoints" / "aside"
    assert sorted(path.name for path in aside.iterdir()) == ["step-2-term-1", "step-3-term-1", "step-4-term-1"]
    assert (aside / "step-3-term-1" / "model" / "model.safetensors").read_bytes() == left
    assert "step-2, step-3, step-4 set aside" in caplog.text
    # And back to the course that was left.
    again = pretrainer(world, tmp_path, max_steps=5, **settings)
    assert again.train(resume_from_checkpoint=aside / "step-4-term-1").step == 5
    assert [(c.step, c.term) for c in list_checkpoints(tmp_path / "checkpoints")] == [(5, 3)]


def test_run_that_went_back_and_was_stopped_before_its_first_checkpoint_goes_back_again(world, tmp_path):
    pretrainer(world, tmp_path, max_steps=3, save_steps=1, save_total_limit=None).train()

    class Break(TrainerCallback):
        def on_step_end(self, args, state, control, trainer, record, **kwargs):
            raise KeyboardInterrupt

    broken = pretrainer(world, tmp_path, max_steps=3)
    broken.callbacks.append(Break())
    with pytest.raises(KeyboardInterrupt):
        broken.train(resume_from_checkpoint=tmp_path / "checkpoints" / "step-1")
    seen = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, trainer, **kwargs):
            seen.append(trainer.step)

    made = pretrainer(world, tmp_path, max_steps=3)
    made.callbacks.append(Watch())
    made.train(resume_from_checkpoint=True)
    assert seen == [1]
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl") if "loss" in r] == [1, 2, 3]


def test_damaged_newest_checkpoint_costs_the_steps_since_the_one_before_and_is_kept(world, tmp_path, caplog):
    pretrainer(world, tmp_path, save_steps=1, save_total_limit=None).train()
    weights = tmp_path / "checkpoints" / "step-3" / "optimizer.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    reference = losses(tmp_path)
    pretrainer(world, tmp_path).train(resume_from_checkpoint=True)
    assert "does not have its recorded sha256" in caplog.text and "newest sound checkpoint is" in caplog.text
    assert losses(tmp_path) == reference
    aside = tmp_path / "checkpoints" / "aside" / "step-3-term-1"
    assert (aside / "optimizer.safetensors").read_bytes() == content
    assert list_checkpoints(tmp_path / "checkpoints")[-1].damage() is None


def test_run_of_the_first_protocol_goes_on(world, tmp_path):
    """As the versions before terms wrote it: no terms, no hashes."""
    pretrainer(world, tmp_path, max_steps=2).train()
    marker = tmp_path / "checkpoints" / "step-2" / "state.json"
    state = json.loads(marker.read_text())
    for name in ("sha256", "sha256_of_the_rest", "term"):
        del state[name]
    marker.write_text(json.dumps({**state, "protocol": 1}, indent=2, ensure_ascii=False) + "\n")
    shutil.rmtree(tmp_path / "terms")
    assert pretrainer(world, tmp_path, max_steps=4).train(resume_from_checkpoint=True).step == 4
    assert [(c.step, c.term) for c in list_checkpoints(tmp_path / "checkpoints")] == [(2, 0), (4, 2)]
    assert [r["step"] for r in read_log(tmp_path / "log.jsonl") if "loss" in r] == [1, 2, 3, 4]


def test_missing_generation_is_built_anew_on_resume(world, tmp_path, caplog):
    pretrainer(world, tmp_path, max_steps=3, save_steps=1, save_total_limit=None).train()
    shutil.rmtree(tmp_path / "index")
    made = pretrainer(world, tmp_path, max_steps=3)
    result = made.train(resume_from_checkpoint=tmp_path / "checkpoints" / "step-1")
    assert result.step == 3
    assert "cannot be served again" in caplog.text
    rebuilt = [e for r in read_log(tmp_path / "log.jsonl") if r["step"] == 1 for e in r.get("events", [])]
    assert [event["snapshot_step"] for event in rebuilt] == [1]


def test_resume_with_another_seed_is_refused(world, tmp_path):
    pretrainer(world, tmp_path, max_steps=1).train()
    with pytest.raises(RunDirectoryError, match="seed 42 then, 7 now"):
        pretrainer(world, tmp_path, max_steps=2, seed=7).train(resume_from_checkpoint=True)


def test_error_in_a_step_gives_the_run_back(world, tmp_path):
    class Broken(TrainerCallback):
        def on_step_end(self, args, state, control, trainer, record, **kwargs):
            raise ArithmeticError("on purpose")

    made = pretrainer(world, tmp_path)
    made.callbacks.append(Broken())
    with pytest.raises(ArithmeticError, match="on purpose"):
        made.train()
    assert not (tmp_path / "trainer.lock").exists()
    assert pretrainer(world, tmp_path).train().step == 3


def test_error_of_the_search_is_raised_by_the_step_that_needs_it(world, tmp_path, monkeypatch):
    made = pretrainer(world, tmp_path)

    def broken(*_, **__):
        raise ArithmeticError("search failed")

    monkeypatch.setattr("realm_hf.training.prefetch.LiveIndex.retrieve", broken)
    with pytest.raises(ArithmeticError, match="search failed"):
        made.train()


def test_hooks_are_called_in_their_order(world, tmp_path):
    called = []

    class Record(TrainerCallback):
        def on_train_begin(self, args, state, control, trainer, **kwargs):
            called.append("begin")

        def on_step_end(self, args, state, control, trainer, record, **kwargs):
            called.append(f"step {record['step']}")
            record["mine"] = 5

        def on_save(self, args, state, control, checkpoint, **kwargs):
            called.append(f"save {checkpoint.name}")

        def on_train_end(self, args, state, control, trainer, **kwargs):
            called.append("end")

    made = pretrainer(world, tmp_path, max_steps=2, save_steps=1)
    made.callbacks.append(Record())
    made.train()
    assert called == ["begin", "step 1", "save step-1", "step 2", "save step-2", "end"]
    assert [r["mine"] for r in read_log(tmp_path / "log.jsonl") if "loss" in r] == [5, 5]
