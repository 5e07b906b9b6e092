"""Every way through the package on a device that is no CPU: the CPU's numbers, and few synchronisations."""

import pytest
from device_paths import PATHS, both

TOLERANCE = 1e-5
# Of docs/results/devices.md. A batch of a corpus, and a batch of questions, end in what the host asked for.
BUDGETS = {
    "pre-training, a step": 2,
    "inverse cloze, a step of two chunks": 2,
    "fine-tuning, a step": 3,
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
