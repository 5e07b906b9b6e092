"""Schedule and optimizer: what is stepped by how much."""

import pytest
import torch
from tiny_worlds import tiny_model

from realm_hf.models.precision import native_bfloat16
from realm_hf.training.arguments import RealmTrainingArguments
from realm_hf.training.optimization import adamw, learning_rate


def test_rate_rises_to_its_peak_and_falls_to_nothing():
    args = RealmTrainingArguments(output_dir="x", learning_rate=1.0, warmup_steps=4, max_steps=12)
    rates = [learning_rate(args, step) for step in range(1, 14)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4:12] == pytest.approx([1.0, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8])
    assert rates[12] == 0.0


def test_rate_without_warm_up_starts_at_its_peak():
    args = RealmTrainingArguments(output_dir="x", learning_rate=2.0, max_steps=2)
    assert [learning_rate(args, step) for step in (1, 2)] == [2.0, 1.0]


def test_weight_decay_spares_biases_and_layer_norms_and_nothing_frozen_is_stepped():
    model = tiny_model()
    optimizer = adamw(model, RealmTrainingArguments(output_dir="x", weight_decay=0.1))
    names = {parameter: name for name, parameter in model.named_parameters()}
    decay = {names[p]: group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert decay.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    spared = {name for name, rate in decay.items() if rate == 0.0}
    assert spared == {name for name in decay if name.endswith("bias") or "LayerNorm" in name}
    assert "embedder.cls.predictions.bias" not in decay


def test_the_towers_may_have_a_rate_of_their_own():
    model = tiny_model()
    args = RealmTrainingArguments(output_dir="x", learning_rate=3e-4)
    optimizer = adamw(model, args, {model.embedder: 3e-5, model.query_embedder: 3e-5})
    names = {parameter: name for name, parameter in model.named_parameters()}
    scales = {names[p]: group["scale"] for group in optimizer.param_groups for p in group["params"]}
    assert scales.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
    for name, scale in scales.items():
        assert scale == pytest.approx(0.1 if "embedder." in name else 1.0), name


def test_bfloat16_is_native_only_where_the_device_says_so(monkeypatch):
    for amx, avx in ((False, False), (True, False), (False, True)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert native_bfloat16(torch.device("cpu")) is (amx or avx)
