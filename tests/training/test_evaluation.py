"""Held-out figures equal what one counts by hand."""

import numpy as np
import pytest
import torch

from realm_hf.models.modeling_outputs import RealmForPreTrainingOutput
from realm_hf.training.evaluation import batch_sums, means
from realm_hf.training.swap_probes import overlap


def test_sums_leave_out_examples_without_label_and_absent_candidates():
    half = float(np.log(0.5))
    output = RealmForPreTrainingOutput(
        loss=torch.tensor(3.0),
        candidate_log_probs=torch.tensor([[half, half, -torch.inf], [0.0, -torch.inf, -torch.inf]]),
        marginal_utility=torch.tensor([2.0, 0.0]),
        null_mass=torch.tensor([0.5, 1.0]),
    )
    sums = batch_sums(output, torch.tensor([[5, 6], [-100, -100]]))
    assert sums.tolist() == pytest.approx([3.0, 2.0, 0.5, np.log(2), 1.0, 2.0], abs=1e-6)
    assert means((2 * sums).tolist(), "eval_") == pytest.approx(
        {"eval_loss": 6.0, "eval_retrieval_utility": 2.0, "eval_null_mass": 0.5, "eval_entropy": np.log(2)}, abs=1e-6
    )


def test_overlap_is_the_mean_share_of_passages_found_again():
    first = np.array([[1, 2, -2], [3, 4, 5], [-2, -2, -2]])
    second = np.array([[2, 9, -2], [5, 4, 3], [1, 2, 3]])
    assert overlap(first, second) == pytest.approx((0.5 + 1.0 + 1.0) / 3)
