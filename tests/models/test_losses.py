"""The likelihoods against values worked out by hand."""

import math

import pytest
import torch

from realm_hf.models.losses import (
    gold_log_probs,
    inverse_cloze_loss,
    marginal_log_likelihood,
    relevance_scores,
    retrieval_utility,
    retriever_marginal_loss,
    span_log_softmax,
    span_marginal_loss,
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


def test_a_float64_query_keeps_its_precision_against_stored_float32_vectors():
    query, stored = torch.tensor([[1 + 2**-40, 1.0]], dtype=torch.float64), torch.tensor([[[1.0, -1.0]]])
    assert relevance_scores(query, stored).tolist() == [[2**-40]]


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


# Two questions: three spans of the first, one of the second.
SPANS = log([0.2, 0.3, 0.5, 0.7])
OF_QUESTION = torch.tensor([0, 0, 0, 1])


def test_one_softmax_runs_over_all_spans_of_a_question():
    shifted = SPANS + torch.tensor([4.0, 4.0, 4.0, -1.0])
    torch.testing.assert_close(span_log_softmax(shifted, OF_QUESTION, 2), log([0.2, 0.3, 0.5, 1.0]))


def test_spans_of_a_question_need_not_stand_together():
    order = torch.tensor([2, 3, 0, 1])
    found = span_log_softmax(SPANS[order], OF_QUESTION[order], 2)
    torch.testing.assert_close(found, span_log_softmax(SPANS, OF_QUESTION, 2)[order])


def test_the_reader_loss_sums_the_probabilities_of_all_right_spans():
    correct = torch.tensor([True, False, True, True])
    torch.testing.assert_close(span_marginal_loss(SPANS + 3.0, correct, OF_QUESTION, 2), -log([0.7, 1.0]))


def test_an_answerless_question_and_one_without_spans_lose_nothing_and_give_no_gradient():
    logits = SPANS.clone().requires_grad_()
    losses = span_marginal_loss(logits, torch.tensor([False, False, False, True]), OF_QUESTION, 3)
    assert losses[[0, 2]].tolist() == [0.0, 0.0]
    losses.sum().backward()
    assert torch.equal(logits.grad, torch.zeros(4, dtype=torch.float64))


def test_the_reader_loss_pulls_each_span_by_prior_minus_posterior():
    logits = SPANS.clone().requires_grad_()
    span_marginal_loss(logits, torch.tensor([True, False, True, False]), OF_QUESTION, 3).sum().backward()
    posterior = torch.tensor([0.2 / 0.7, 0.0, 0.5 / 0.7, 0.0], dtype=torch.float64)
    torch.testing.assert_close(logits.grad[:3], SPANS.exp()[:3] - posterior[:3])
    assert logits.grad[3] == 0


def test_a_batch_of_span_losses_equals_single_ones():
    generator = torch.Generator().manual_seed(0)
    logits = 30 * torch.randn(400, generator=generator)
    question = torch.randint(0, 7, (400,), generator=generator)
    correct = torch.rand(400, generator=generator) < 0.02
    batch = span_marginal_loss(logits, correct, question, 7)
    for number in range(7):
        own = question == number
        right = own & correct
        expected = logits[own].logsumexp(0) - logits[right].logsumexp(0) if right.any() else torch.tensor(0.0)
        torch.testing.assert_close(batch[number], expected, atol=1e-5, rtol=0)
    log_probs = span_log_softmax(logits, question, 7)
    sums = torch.zeros(7).index_add(0, question, log_probs.exp())
    torch.testing.assert_close(sums, torch.ones(7), atol=1e-5, rtol=0)


def test_huge_logits_neither_overflow_nor_vanish():
    logits = torch.tensor([1e4, 1e4 - 2.0, -1e4])
    found = span_marginal_loss(logits, torch.tensor([False, True, False]), torch.zeros(3, dtype=torch.long), 1)
    torch.testing.assert_close(found, torch.tensor([2.0 + math.log1p(math.exp(-2.0))]), atol=1e-3, rtol=0)


def test_half_precision_logits_are_summed_in_float32():
    logits = torch.zeros(3000, dtype=torch.bfloat16)
    question = torch.zeros(3000, dtype=torch.long)
    found = span_marginal_loss(logits, torch.arange(3000) < 1, question, 1)
    assert found.dtype == torch.float32
    # bfloat16 would stop counting at 256.
    torch.testing.assert_close(found, torch.tensor([math.log(3000)]))


def test_the_retriever_loss_sums_the_probabilities_of_all_passages_with_an_answer():
    scores = log([[0.1, 0.2, 0.7], [0.5, 0.25, 0.25]])
    correct = torch.tensor([[True, True, False], [False, False, False]])
    torch.testing.assert_close(retriever_marginal_loss(scores, correct), torch.stack([-log(0.3), log(1.0)]))


def test_an_absent_passage_of_the_beam_changes_neither_loss_nor_gradient():
    scores = log([[0.3, 0.7]]).requires_grad_()
    padded = torch.tensor([[math.log(0.3), math.log(0.7), 9.0]], dtype=torch.float64, requires_grad=True)
    present = torch.tensor([[True, True, False]])
    correct = torch.tensor([[True, False, True]])
    expected = retriever_marginal_loss(scores, correct[:, :2])
    found = retriever_marginal_loss(padded.masked_fill(~present, -torch.inf), correct)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(padded.grad, torch.cat([scores.grad, torch.zeros(1, 1, dtype=torch.float64)], dim=1))


def test_a_beam_without_any_passage_loses_nothing():
    found = retriever_marginal_loss(torch.full((2, 3), -torch.inf), torch.ones(2, 3).bool())
    assert found.tolist() == [0.0, 0.0]
