"""The warm start: cached gradients are the whole batch's, false negatives do not count, and it learns on real text."""

import numpy as np
import pytest
import torch
from tiny_worlds import tiny_model, tiny_tokenizer

from realm_hf.models.losses import inverse_cloze_loss
from realm_hf.runs.records import read_log
from realm_hf.training.arguments import InverseClozeTrainingArguments
from realm_hf.training.inverse_cloze import InverseClozeTrainer


def trainer(passages, folder, model=None, **overrides):
    settings = {
        "max_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "max_query_length": 48,
        "disable_tqdm": True,
        "max_grad_norm": 0.0,
    }
    args = InverseClozeTrainingArguments(output_dir=str(folder), **{**settings, **overrides})
    return InverseClozeTrainer(model or tiny_model(), args, train_dataset=passages, processing_class=tiny_tokenizer())


def gradients(trainer):
    trainer.module.train()
    computed = trainer.accumulate(1)
    loss = computed.record(computed.sums.tolist())["loss"]
    return loss, {name: p.grad for name, p in trainer.model.embedder.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("dropout", [0.0, 0.2])
def test_gradient_caching_equals_one_graph_over_the_whole_batch(countries, tmp_path, dropout):
    chunked = trainer(
        countries,
        tmp_path / "a",
        tiny_model(dropout=dropout),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
    )
    loss, found = gradients(chunked)
    # The same chunks, dropout masks and loss, with all graphs alive at once.
    whole = trainer(
        countries,
        tmp_path / "b",
        tiny_model(dropout=dropout),
        per_device_train_batch_size=4,
        gradient_accumulation_steps=3,
    )
    whole.module.train()
    parts, groups = [], []
    for index in range(3):
        chunk = whole._collate(np.arange(4 * index, 4 * index + 4))
        with whole.micro_batch(1, index, last=True):
            parts.append(whole._embed(whole.module, chunk))
        groups.append(chunk["groups"])
    expected, _ = inverse_cloze_loss(*torch.cat(parts, dim=1), torch.cat(groups, dim=1)[0], whole.scale)
    expected.backward()
    assert loss == pytest.approx(float(expected.detach()), abs=1e-6)
    for name, parameter in whole.model.embedder.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(found[name], parameter.grad, atol=1e-6, rtol=1e-4, msg=name)
    assert len(found) > 20


def test_accumulation_adds_negatives(countries, tmp_path):
    small = trainer(countries, tmp_path / "a", per_device_train_batch_size=4)
    large = trainer(countries, tmp_path / "b", per_device_train_batch_size=4, gradient_accumulation_steps=8)
    # At initialisation all passages score alike: the loss is the log of how many there are.
    assert gradients(small)[0] == pytest.approx(np.log(4), abs=0.05)
    assert gradients(large)[0] == pytest.approx(np.log(32), abs=0.05)


def test_equal_passages_are_no_negatives_of_each_other():
    queries = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]])
    passages = queries.clone()
    loss, accuracy = inverse_cloze_loss(queries, passages, torch.tensor([7, 7, 8]), scale=2.0)
    # Each of the twins sees itself (score 2) and the third (score 0); the third sees both twins.
    twin, third = -2 + np.log(np.exp(2) + 1), -2 + np.log(np.exp(2) + 2)
    assert float(loss) == pytest.approx((2 * twin + third) / 3, abs=1e-6)
    assert float(accuracy) == 1.0
    distinct, _ = inverse_cloze_loss(queries, passages, torch.tensor([7, 9, 8]), scale=2.0)
    assert float(distinct) > float(loss)


def test_warm_start_lowers_its_loss_and_finds_more_passages(countries, tmp_path):
    made = trainer(
        countries,
        tmp_path,
        max_steps=50,
        per_device_train_batch_size=32,
        learning_rate=3e-3,
        warmup_steps=5,
        max_grad_norm=1.0,
    )
    before = {name: p.detach().clone() for name, p in made.model.named_parameters() if p.requires_grad}
    made.train()
    log = read_log(tmp_path / "log.jsonl")
    losses = [r["loss"] for r in log if "loss" in r]
    accuracies = [r["accuracy"] for r in log if "loss" in r]
    assert np.mean(losses[-10:]) < np.mean(losses[:5]) - 0.5
    assert np.mean(accuracies[-10:]) > np.mean(accuracies[:5]) + 0.08
    moved = {name: not torch.equal(before[name], p) for name, p in made.model.named_parameters() if p.requires_grad}
    assert all(moved[name] for name in moved if name.startswith("embedder.")), "every tower parameter moves"
    assert not any(moved[name] for name in moved if name.startswith("encoder.")), "the encoder rests"


def test_resumed_warm_start_repeats_the_losses(countries, tmp_path):
    settings = {"max_steps": 6, "save_steps": 3, "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2}
    whole = trainer(countries, tmp_path / "whole", tiny_model(dropout=0.1), **settings)
    whole.train()
    resumed = trainer(countries, tmp_path / "whole", tiny_model(seed=9, dropout=0.1), **settings)
    losses = [r["loss"] for r in read_log(tmp_path / "whole" / "log.jsonl") if "loss" in r]
    resumed.train(resume_from_checkpoint=tmp_path / "whole" / "checkpoints" / "step-3")
    assert [r["loss"] for r in read_log(tmp_path / "whole" / "log.jsonl") if "loss" in r] == losses
    assert len(losses) == 6
