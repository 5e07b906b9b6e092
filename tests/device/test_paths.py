"""Every way through the package on a device that is no CPU: the CPU's numbers, and few synchronisations."""

import shutil

import numpy as np
import pytest
import torch
from device_paths import CPU, PATHS, both, fine_tuning, gradients, inverse_cloze, on, pre_training
from other_device import DEVICE, to_cpu
from tiny_answerers import tiny_answerer
from tiny_worlds import load_world, tiny_model, tiny_tokenizer, uneven_world
from torch.distributed.utils import _to_kwargs

from realm_hf import RealmScorer
from realm_hf.models.host_facts import RowFacts

TOLERANCE = 1e-5
# Of docs/results/devices.md. A batch of a corpus, and a batch of questions, end in what the host asked for.
BUDGETS = {
    "pre-training, a step": 1,
    "inverse cloze, a step of two chunks": 1,
    "fine-tuning, a step": 2,
    "answering, a batch of questions": 6,
    "encoding, a corpus of 60 passages": 4,
}


@pytest.fixture(scope="module", params=PATHS)
def outcomes(request, world, tmp_path_factory):
    """Name of a path, and its outcomes on the CPU and there."""
    return request.param, *both(PATHS[request.param], world, tmp_path_factory.mktemp("paths"))


def test_each_path_gives_the_numbers_of_the_cpu(outcomes):
    _, expected, found = outcomes
    assert found.syncs.operations > 100
    assert expected.syncs.operations == 0
    assert found.worst_difference(expected) < TOLERANCE


def test_each_path_keeps_within_its_budget_of_synchronisations(outcomes):
    name, _, found = outcomes
    assert found.syncs.total <= BUDGETS[name], str(found.syncs)


# The trainers end to end: an index that is refreshed, checkpoints, an evaluation, a model at the end


def test_pre_training_refreshes_saves_resumes_and_ends_as_on_the_cpu(world, tmp_path):
    settings = {"refresh_steps": 2, "save_steps": 2, "gradient_accumulation_steps": 2, "gradient_checkpointing": True}
    expected, found = both(pre_training, world, tmp_path, **settings)
    assert found.worst_difference(expected) < TOLERANCE
    run = tmp_path / DEVICE.type
    shutil.rmtree(run / "checkpoints" / "step-3")
    with on(DEVICE):
        resumed = pre_training(DEVICE, world, run, resume_from_checkpoint="true", **settings)
    assert resumed.worst_difference(found) < TOLERANCE


def test_micro_batches_without_any_example_pre_train_as_on_the_cpu(tmp_path):
    uneven_world(tmp_path / "world")
    settings = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 3, "query_encoder": "live"}
    expected, found = both(pre_training, tmp_path / "world", tmp_path, **settings)
    assert found.worst_difference(expected) < TOLERANCE


def test_fine_tuning_with_an_index_that_is_refreshed_ends_as_on_the_cpu(world, tmp_path):
    expected, found = both(fine_tuning, world, tmp_path, refresh="sync", refresh_steps=2, save_steps=2)
    assert found.worst_difference(expected) < TOLERANCE


@pytest.mark.parametrize("path", [pre_training, inverse_cloze, fine_tuning])
def test_each_trainer_runs_in_bfloat16_there(path, world, tmp_path):
    with on(DEVICE):
        exact, rough = (path(DEVICE, world, tmp_path / str(bf16), bf16=bf16).values["loss"] for bf16 in (False, True))
    np.testing.assert_allclose(rough, exact, rtol=0.05)
    assert (rough != exact).any()


# One batch


@pytest.mark.parametrize(
    "overrides", [{"marginalization": "span"}, {"share_embedders": False}, {"hidden_act": "relu"}], ids=str
)
def test_no_setting_of_the_model_waits_within_a_batch_or_changes_its_gradients(world, tmp_path, overrides):
    expected, found = both(gradients, world, tmp_path, **overrides)
    assert found.worst_difference(expected) < TOLERANCE
    assert found.syncs.total == 0, str(found.syncs)


def test_a_batch_in_bfloat16_has_the_loss_of_the_cpu_in_bfloat16(world, tmp_path):
    expected, found = both(gradients, world, tmp_path, bf16=True)
    # The two autocasts list different operations.
    np.testing.assert_allclose(found.values["loss"], expected.values["loss"], rtol=0.01)
    assert found.syncs.total == 0, str(found.syncs)


def test_a_batch_without_its_facts_is_read_back_to_the_same_numbers(world, tmp_path):
    with on(DEVICE):
        known, read = (gradients(DEVICE, world, tmp_path, with_facts=facts) for facts in (True, False))
    assert read.worst_difference(known) == 0
    assert read.syncs.total > known.syncs.total == 0


def test_facts_pass_through_data_parallel_as_they_are():
    facts = RowFacts.of(torch.tensor([[1, 2, 0]]), torch.tensor([[1, 1, 0]]))
    _, (passed,) = _to_kwargs((), {"ids": torch.ones(2), "facts": facts}, CPU, False)
    assert passed["facts"] is facts


# The models called by themselves, as old scripts call them


def _scored(device, world):
    scorer = RealmScorer(tiny_model().config).eval().to(device)
    inputs = tiny_tokenizer()(["a coast", "an island that sells oil"], padding=True, return_tensors="pt")
    inputs = {name: values.to(device) for name, values in inputs.items()}
    candidates = {f"candidate_{name}": values.unsqueeze(1).repeat(1, 3, 1) for name, values in inputs.items()}
    return scorer(**inputs, **candidates).relevance_score


def _encoded(device, world):
    encoder = tiny_model().encoder.eval().to(device)
    labels = torch.full((2, 6), -100)
    labels[:, 2] = 7
    ids, scores = torch.arange(5, 29).view(4, 6).to(device), torch.zeros(2, 2).to(device)
    return encoder(ids, relevance_score=scores, labels=labels.to(device)).loss


def _answered(device, world):
    passages, _ = load_world(world)
    model = tiny_answerer(passages).model.to(device)
    ids = tiny_tokenizer()(["what does it sell?"], return_tensors="pt").input_ids.to(device)
    return model(ids, answer_ids=[[60, 61]], return_dict=True).reader_output.loss


@pytest.mark.parametrize("call", [_scored, _encoded, _answered])
def test_a_model_called_by_itself_gives_the_numbers_of_the_cpu(call, world):
    torch.manual_seed(0)
    expected = call(CPU, world)
    with on(DEVICE):
        torch.manual_seed(0)
        found = call(DEVICE, world)
        assert found.device == DEVICE
        torch.testing.assert_close(to_cpu(found), expected.detach(), atol=TOLERANCE, rtol=0)
