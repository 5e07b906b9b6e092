"""A builder's device that cannot be used is told at the start, with what to give instead."""

import pytest
import torch
from tiny_worlds import load_world, tiny_model, tiny_tokenizer

from realm_hf.refresh import builder
from realm_hf.refresh.builder_device import build_bytes, check_builder_device, check_room
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.optimization import make_accelerator
from realm_hf.training.pretraining import RealmTrainer

NO_CUDA = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA devices")


@pytest.mark.parametrize(
    "device", ["gpu", "cuda:one", pytest.param("cuda:1", marks=NO_CUDA), "meta", pytest.param("mps", marks=NO_CUDA)]
)
def test_a_wrong_name_and_a_device_that_is_not_there_are_refused_in_words(device):
    with pytest.raises(
        ValueError, match=rf"builder's device .*'{device}'.*Give a free one instead, such as cuda:1, or cpu"
    ):
        check_builder_device(device)


def test_the_processor_needs_no_trial(monkeypatch):
    monkeypatch.setattr("subprocess.run", lambda *a, **k: pytest.fail("a process was started"))
    check_builder_device("cpu", needed_bytes=1 << 60)


def test_a_full_card_is_refused_with_what_is_free_and_what_a_build_takes():
    with pytest.raises(ValueError, match=r"'cuda:1', of whose memory 0\.5 GiB are free, but a build takes about 3\.0"):
        check_room("cuda:1", free_bytes=1 << 29, needed_bytes=3 << 30)
    check_room("cuda:1", free_bytes=4 << 30, needed_bytes=3 << 30)
    check_room("mps", free_bytes=-1, needed_bytes=3 << 30)


def test_a_build_takes_its_weights_and_one_batch():
    tower = tiny_model().embedder
    weights = 4 * sum(parameter.numel() for parameter in tower.parameters())
    assert build_bytes(tower, max_tokens_per_batch=1000) == weights + 4 * 1000 * (4 * 32 + 2 * 64)
    assert build_bytes(tower, None) > build_bytes(tower, max_tokens_per_batch=1000)


@NO_CUDA
def test_a_run_is_refused_before_its_corpus_is_prepared(tmp_path):
    args = RealmTrainingArguments(output_dir=str(tmp_path), use_cpu=True, builder_device="cuda:7")
    with pytest.raises(ValueError, match="torch sees 0 CUDA device"):
        make_accelerator(args)


def test_a_run_with_an_accelerator_of_its_own_is_refused_before_its_first_index(world, tmp_path):
    accelerator = make_accelerator(RealmTrainingArguments(output_dir=str(tmp_path), use_cpu=True))
    args = RealmTrainingArguments(output_dir=str(tmp_path), use_cpu=True, builder_device="meta", disable_tqdm=True)
    passages, sentences = load_world(world)
    trainer = RealmTrainer(
        tiny_model(),
        args,
        train_dataset=sentences.train,
        processing_class=tiny_tokenizer(),
        passages=passages,
        accelerator=accelerator,
    )
    with pytest.raises(ValueError, match="nothing can be computed there"):
        trainer.train()
    assert not list((tmp_path / "index").glob("step-*"))


def test_modes_without_a_builder_process_do_not_ask(tmp_path):
    make_accelerator(
        RealmTrainingArguments(output_dir=str(tmp_path), use_cpu=True, builder_device="gpu", refresh="sync")
    )


def test_a_builder_started_by_hand_says_it_too(run, caplog):
    assert builder.main([str(run.root), "--device", "gpu"]) == builder.EXIT_UNUSABLE
    assert "'gpu', which is none" in caplog.text
