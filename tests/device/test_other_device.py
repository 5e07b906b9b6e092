"""The pretend device: it tells tensors of two devices apart, counts what makes the host wait, and catches bugs."""

import pytest
import torch
from device_paths import gradients, on
from other_device import DEVICE, TensorsOnTwoDevices, counted, to_cpu

import realm_hf.models.modeling_bert_tower
import realm_hf.models.modeling_realm
import realm_hf.models.ragged_encoding
from realm_hf.models.losses import relevance_scores
from realm_hf.models.modeling_bert_tower import gather_rows
from realm_hf.models.transfer import to_device


@pytest.fixture(autouse=True)
def _in_use():
    with on(DEVICE):
        yield


def test_tensors_of_two_devices_are_an_error_and_a_number_is_none():
    there = torch.ones(3, device=DEVICE)
    for operation in (lambda: there + torch.ones(3), lambda: torch.ones(3, 3) @ there, lambda: there[torch.arange(2)]):
        with pytest.raises(TensorsOnTwoDevices, match="on the CPU"):
            operation()
    assert to_cpu(there * torch.tensor(2.0)).tolist() == [2, 2, 2]


@pytest.mark.parametrize(
    ("kind", "waits"),
    [
        ("read", lambda x: x.sum().item()),
        ("read", lambda x: x.cpu()),
        ("read", lambda x: x.tolist()),
        ("read", lambda x: bool((x > 1).any())),
        ("copy", lambda x: torch.ones(3).to(DEVICE)),
        ("copy", lambda x: torch.tensor([1, 2], device=DEVICE)),
        ("size", lambda x: x.nonzero()),
        ("size", lambda x: x.unique()),
        ("mask", lambda x: x[x > 1]),
    ],
)
def test_what_the_host_waits_for_is_counted_once(kind, waits):
    there = torch.arange(3.0, device=DEVICE)
    with counted() as syncs:
        waits(there)
    assert dict(syncs.kinds) == {kind: 1}


def test_what_nobody_waits_for_is_not_counted():
    there = torch.arange(3.0, device=DEVICE)
    with counted() as syncs:
        torch.ones(3).to(DEVICE, non_blocking=True)
        there.masked_fill(there > 1, 0.0)[torch.tensor(1)] = 5.0
        torch.where(there > 1, there, 0.0).cumsum(0)
        to_device({"a": torch.arange(4), "b": torch.ones(2, 3).bool()}, DEVICE)
    assert syncs.total == 0, str(syncs)
    assert syncs.operations > 5


def test_a_module_moves_with_its_ties_and_its_optimizer_and_learns_there():
    module = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    module[1].weight = module[0].weight
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.1, fused=True)
    before = module[0].weight.detach().clone()
    module.to(DEVICE)
    assert module[1].weight is module[0].weight and module[0].weight.device == DEVICE
    module(torch.ones(2, 3, device=DEVICE)).sum().backward()
    optimizer.step()
    assert (to_cpu(module[0].weight) - before).abs().min() > 0.05


def test_autocast_multiplies_in_bfloat16_and_normalises_in_float32():
    weight, inputs = torch.ones(3, 3, device=DEVICE), torch.ones(2, 3, device=DEVICE)
    with torch.autocast(DEVICE.type, torch.bfloat16):
        product = torch.nn.functional.linear(inputs, weight)
        normed = torch.nn.functional.layer_norm(product, (3,))
    assert (product.dtype, normed.dtype) == (torch.bfloat16, torch.float32)


# Bugs that only another device shows, put where they could be made


def _index_left_on_the_host(arrays, device):
    return to_device(arrays, "cpu")


def _rows_looked_up_on_the_host(hidden, rows):
    return gather_rows(hidden, rows.cpu())


def _scores_with_a_tensor_of_the_host(query, candidates, scale=1.0):
    return relevance_scores(query, candidates, scale) + torch.zeros(candidates.shape[:2])


@pytest.mark.parametrize(
    ("module", "name", "bug"),
    [
        (realm_hf.models.ragged_encoding, "to_device", _index_left_on_the_host),
        (realm_hf.models.modeling_bert_tower, "gather_rows", _rows_looked_up_on_the_host),
        (realm_hf.models.modeling_realm, "relevance_scores", _scores_with_a_tensor_of_the_host),
    ],
)
def test_a_planted_device_bug_is_caught_here_and_not_on_the_cpu(world, tmp_path, monkeypatch, module, name, bug):
    monkeypatch.setattr(module, name, bug)
    gradients(torch.device("cpu"), world, tmp_path)
    with pytest.raises(TensorsOnTwoDevices):
        gradients(DEVICE, world, tmp_path)


def test_a_planted_synchronisation_is_counted_with_its_line(world, tmp_path, monkeypatch):
    def looked_at(query, candidates, scale=1.0):
        scores = relevance_scores(query, candidates, scale)
        assert scores.max().item() < 1e6
        return scores

    before = gradients(DEVICE, world, tmp_path).syncs
    monkeypatch.setattr(realm_hf.models.modeling_realm, "relevance_scores", looked_at)
    found = gradients(DEVICE, world, tmp_path).syncs
    assert found.total == before.total + 1
    ((kind, line),) = (found.places - before.places).keys()
    assert kind == "read" and line.startswith("models/modeling_realm.py:")
