"""Where a device has no float64 (Apple's GPUs), none is made there: what needs it is computed on the CPU."""

import other_device
import pytest
import torch
from tiny_answerers import tiny_answerer
from tiny_worlds import load_world

from realm_hf.models import precision
from realm_hf.models.losses import inverse_cloze_loss
from realm_hf.training.open_qa_step import StepOutput


@pytest.fixture
def device(monkeypatch):
    """The pretended device, on which a float64 tensor is an error as it is on MPS."""
    carry_out = other_device._carry_out

    def checked(func, args, kwargs):
        found = carry_out(func, args, kwargs)
        for made in torch.utils._pytree.tree_leaves(found):
            if isinstance(made, torch.Tensor) and made.device == other_device.DEVICE and made.dtype == torch.float64:
                raise TypeError(f"{func}: the device does not support float64")
        return found

    monkeypatch.setattr(other_device, "_carry_out", checked)
    monkeypatch.setattr(precision, "_WITHOUT_FLOAT64", {other_device.DEVICE.type})
    with other_device.in_use():
        yield other_device.DEVICE


def test_the_pretended_device_refuses_float64(device):
    with pytest.raises(TypeError, match="does not support float64"):
        torch.ones(3, device=device).double()
    assert precision.in_float64(torch.ones(3, device=device)).device.type == "cpu"


@pytest.mark.parametrize("with_null", [False, True])
def test_answers_and_their_probabilities_are_those_of_the_cpu(device, world, with_null):
    passages, _ = load_world(world)
    here, there = tiny_answerer(passages), tiny_answerer(passages)
    if with_null:
        here.retriever.embedder, there.retriever.embedder = here.model.embedder, here.model.embedder
    torch.nn.Module.to(there.model, device)
    asked = [f"what does {passages.text(row).split(' sells')[0]} sell?" for row in range(4)]
    for mine, other in zip(here(asked), there(asked), strict=True):
        assert mine.text == other.text
        assert mine.probability == pytest.approx(other.probability, abs=1e-5)
        assert mine.null_probability == pytest.approx(other.null_probability, abs=1e-5)


def test_the_sums_of_a_fine_tuning_step(device):
    losses, flags = torch.tensor([0.5, 1.5], device=device), torch.tensor([True, False], device=device)
    found = StepOutput(losses.sum(), losses, losses, flags, flags, flags).sums()
    assert found.dtype == torch.float32 and found.tolist() == [2.0, 2.0, 2.0, 1.0, 1.0, 1.0]


def test_the_accuracy_of_the_warm_start(device):
    queries, groups = torch.randn(4, 8), torch.arange(4)
    expected = inverse_cloze_loss(queries, queries, groups)
    found = inverse_cloze_loss(queries.to(device), queries.to(device), groups.to(device))
    assert [value.item() for value in found] == pytest.approx([value.item() for value in expected])
