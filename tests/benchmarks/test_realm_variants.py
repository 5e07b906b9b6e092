"""REALM with one thing taken away: the posterior's order, the null passage, the exclusion."""

import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from harness import realm_variants
from harness.realm_variants import WithoutExclusion, dealt_anew, shuffled_loss

from realm_hf.models.losses import marginal_log_likelihood


def figures(scores, gold):
    return SimpleNamespace(candidate_log_probs=scores.log_softmax(-1), gold_log_probs=gold)


@pytest.fixture
def drawn():
    torch.manual_seed(0)
    scores = torch.randn(3, 5, dtype=torch.float64)
    scores[1, 4] = -torch.inf  # absent
    gold = -torch.rand(3, 5, 2, dtype=torch.float64)
    labels = torch.tensor([[True, True], [True, False], [False, False]])
    return scores.requires_grad_(), gold.requires_grad_(), labels


def test_unshuffled_the_loss_has_the_gradient_of_the_marginal(drawn, monkeypatch):
    scores, gold, labels = drawn
    marginal = -marginal_log_likelihood(scores.log_softmax(-1), gold, labels, "span").sum() / 2
    right = torch.autograd.grad(marginal, (scores, gold))
    monkeypatch.setattr(realm_variants, "dealt_anew", lambda posterior, present: posterior)
    found = torch.autograd.grad(shuffled_loss(figures(scores, gold), labels, 2), (scores, gold))
    for expected, gradient in zip(right, found, strict=True):
        torch.testing.assert_close(gradient, expected)


def test_shuffled_the_retriever_alone_gets_another_gradient(drawn):
    scores, gold, labels = drawn
    marginal = -marginal_log_likelihood(scores.log_softmax(-1), gold, labels, "span").sum()
    right = torch.autograd.grad(marginal, (scores, gold))
    found = torch.autograd.grad(shuffled_loss(figures(scores, gold), labels, 1), (scores, gold))
    torch.testing.assert_close(found[1], right[1])
    assert not torch.allclose(found[0], right[0])
    # The null passage keeps its share, and a row without a label says nothing.
    torch.testing.assert_close(found[0][:, 0], right[0][:, 0])
    assert found[0][2].abs().max() == 0


def test_candidates_change_places_by_chance_and_absent_ones_never():
    torch.manual_seed(1)
    posterior = torch.tensor([[0.4, 0.3, 0.2, 0.1, 0.0]]).expand(4000, 5)
    present = torch.tensor([[True, True, True, True, False]]).expand(4000, 5)
    dealt = dealt_anew(posterior, present)
    assert (dealt[:, 0] == 0.4).all() and (dealt[:, 4] == 0).all()
    assert (dealt[:, 1:4].sort(-1).values == torch.tensor([0.1, 0.2, 0.3])).all()
    # No candidate is told anything of itself: the mean is the same for all.
    torch.testing.assert_close(dealt[:, 1:4].mean(0), torch.full((3,), 0.2), atol=0.01, rtol=0)


def test_without_exclusion_a_source_is_asked_for_the_sentence_itself_but_not_for_copies():
    class Source:
        def candidates(self, knowledge, queries, k, *, exclude):
            return exclude

    class Exclude:
        over_retrieve, filtered = 3, np.array([True, False])

        def groups(self, rows):
            return rows // 2

        def unwanted(self, query, rows):
            raise AssertionError("is not asked")

    left = WithoutExclusion(Source()).candidates(None, None, 1, exclude=Exclude())
    assert left.over_retrieve == 3 and not left.filtered.any() and len(left.filtered) == 2
    assert not left.unwanted(0, np.arange(4)).any()
    np.testing.assert_array_equal(left.groups(np.arange(4)), [0, 0, 1, 1])
