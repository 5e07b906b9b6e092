"""The likelihoods against values worked out by hand."""

import math

import pytest
import torch

from realm_hf.losses import (
    gold_log_probs,
    inverse_cloze_loss,
    marginal_log_likelihood,
    relevance_scores,
    retrieval_utility,
)


def log(values):
    return torch.tensor(values, dtype=torch.float64).log()


# One query, two candidates, two masked tokens.
CANDIDATES = log([[0.25, 0.75]])
GOLD = log([[[0.5, 0.1], [0.2, 0.4]]])
BOTH = torch.tensor([[True, True]])


def test_token_marginal_sums_over_candidates_for_each_token():
    marginal = marginal_log_likelihood(CANDIDATES, GOLD, BOTH, "token")
    expected = log([[0.25 * 0.5 + 0.75 * 0.2, 0.25 * 0.1 + 0.75 * 0.4]])
    torch.testing.assert_close(marginal, expected)


def test_span_marginal_sums_over_candidates_after_the_product_of_tokens():
    marginal = marginal_log_likelihood(CANDIDATES, GOLD, BOTH, "span")
    torch.testing.assert_close(marginal, log([0.25 * 0.5 * 0.1 + 0.75 * 0.2 * 0.4]))


@pytest.mark.parametrize(("marginalization", "expected"), [("token", [[0.275, 1.0]]), ("span", [0.275])])
def test_positions_without_a_label_add_nothing(marginalization, expected):
    marginal = marginal_log_likelihood(CANDIDATES, GOLD, torch.tensor([[True, False]]), marginalization)
    torch.testing.assert_close(marginal, log(expected))


@pytest.mark.parametrize("marginalization", ["token", "span"])
def test_an_example_without_labels_adds_nothing(marginalization):
    marginal = marginal_log_likelihood(CANDIDATES, GOLD, torch.tensor([[False, False]]), marginalization)
    assert torch.equal(marginal, torch.zeros_like(marginal))


@pytest.mark.parametrize("marginalization", ["token", "span"])
def test_an_absent_candidate_changes_neither_value_nor_gradient(marginalization):
    scores = torch.tensor([[0.3, -1.2]], dtype=torch.float64, requires_grad=True)
    padded = torch.tensor([[0.3, -1.2, 5.0]], dtype=torch.float64, requires_grad=True)
    gold = torch.cat([GOLD, torch.zeros(1, 1, 2, dtype=torch.float64)], dim=1)
    masked = padded.masked_fill(torch.tensor([[False, False, True]]), -torch.inf)
    plain = marginal_log_likelihood(scores.log_softmax(-1), GOLD, BOTH, marginalization)
    absent = marginal_log_likelihood(masked.log_softmax(-1), gold, BOTH, marginalization)
    torch.testing.assert_close(absent, plain)
    plain.sum().backward()
    absent.sum().backward()
    torch.testing.assert_close(padded.grad, torch.cat([scores.grad, torch.zeros(1, 1, dtype=torch.float64)], dim=1))


def test_an_unknown_marginalization_is_named():
    with pytest.raises(ValueError, match="'sum': choose 'token' or 'span'"):
        marginal_log_likelihood(CANDIDATES, GOLD, BOTH, "sum")


def test_retrieval_utility_is_the_gain_over_the_null_passage():
    per_candidate, marginal = retrieval_utility(GOLD, CANDIDATES, BOTH)
    torch.testing.assert_close(per_candidate, log([[1.0, 0.08 / 0.05]]))
    torch.testing.assert_close(marginal, log([(0.25 * 0.05 + 0.75 * 0.08) / 0.05]))


def test_gold_log_probs_read_the_label_and_skip_unlabelled_positions():
    logits = torch.tensor([[0.0, math.log(3.0)], [9.0, -9.0]])
    torch.testing.assert_close(gold_log_probs(logits, torch.tensor([1, -100])), torch.tensor([math.log(0.75), 0.0]))


def test_bfloat16_scores_keep_differences_that_bfloat16_would_lose():
    query = torch.full((1, 128), 1.0, dtype=torch.bfloat16)
    candidates = torch.ones(1, 2, 128, dtype=torch.bfloat16)
    candidates[0, 1, 0] = 0.875
    assert relevance_scores(query, candidates).tolist() == [[128.0, 127.875]]


def test_relevance_scores_are_scaled_inner_products():
    query, candidates = torch.tensor([[1.0, 2.0]]), torch.tensor([[[3.0, 4.0], [-1.0, 0.5]]])
    torch.testing.assert_close(relevance_scores(query, candidates, 0.5), torch.tensor([[5.5, 0.0]]))


def test_inverse_cloze_loss_is_the_cross_entropy_over_all_passages():
    queries = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    passages = torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    loss, accuracy = inverse_cloze_loss(queries, passages, torch.tensor([5, 6]), scale=2.0)
    first = -math.log(math.e**2 / (math.e**2 + 1))
    second = -math.log(math.e**4 / (math.e**4 + math.e**4))
    torch.testing.assert_close(float(loss), (first + second) / 2)
    # The second sentence's own passage only ties with the first one.
    assert float(accuracy) == 0.5
