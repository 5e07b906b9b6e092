"""The likelihoods of REALM and ORQA as pure functions of tensors.

Numbers refer to Guu et al., "REALM: Retrieval-Augmented Language Model Pre-Training" (ICML 2020), unless ORQA is
named. B queries, K candidates, M masked positions, D embedding size. Everything is computed in at least float32: inner
products of layer-normalised 128-dimensional embeddings reach 128, where bfloat16 has steps of 0.5.
"""

from typing import Literal

import torch
import torch.nn.functional as F

Marginalization = Literal["token", "span"]


def full_precision(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` in float32 if it is float16 or bfloat16, else unchanged (float64 stays)."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def relevance_scores(query: torch.Tensor, candidates: torch.Tensor, scale: float = 1.0) -> torch.Tensor:
    """
    f(x, z) = scale * Embed(x) . Embed(z) (section 3.2).

    Args:
        query (`torch.Tensor` of shape `(B, D)`): Embeddings of the queries.
        candidates (`torch.Tensor` of shape `(B, K, D)`): Embeddings of each query's candidates.
        scale (`float`, *optional*, defaults to 1.0): Factor on the inner product.

    Returns:
        `torch.Tensor` of shape `(B, K)`: The scores.
    """
    with torch.autocast(query.device.type, enabled=False):
        query, candidates = full_precision(query), full_precision(candidates)
        # What an index stores is float32; the tower's own query may be float64.
        wider = torch.promote_types(query.dtype, candidates.dtype)
        return torch.einsum("bd,bkd->bk", query.to(wider), candidates.to(wider)) * scale


def gold_log_probs(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """
    The log probability of each right token.

    Args:
        logits (`torch.Tensor` of shape `(..., V)`): Scores of all tokens of the vocabulary.
        labels (`torch.LongTensor` of shape `(...)`): The right tokens; -100 where there is none.

    Returns:
        `torch.Tensor` of shape `(...)`: log p(label), in at least float32; 0 where the label is -100.
    """
    with torch.autocast(logits.device.type, enabled=False):
        flat = F.cross_entropy(full_precision(logits).flatten(0, -2), labels.flatten(), reduction="none")
    return -flat.view(labels.shape)


def marginal_log_likelihood(
    candidate_log_probs: torch.Tensor,
    gold_log_probs: torch.Tensor,
    label_mask: torch.Tensor,
    marginalization: Marginalization = "token",
) -> torch.Tensor:
    """
    The marginal: log p(y|x) = log sum over z of p(y|z, x) p(z|x) (equation 1).

    `"span"` is the paper's: p(y|z, x) is the product over the masked tokens. `"token"` is the released code's: each
    masked token is marginalised by itself, so different tokens may lean on different candidates.

    Args:
        candidate_log_probs (`torch.Tensor` of shape `(B, K)`): log p(z|x); minus infinity where there is no candidate.
        gold_log_probs (`torch.Tensor` of shape `(B, K, M)`): log p(y_m|z, x); finite everywhere.
        label_mask (`torch.Tensor` of shape `(B, M)`, bool): True where position m has a label.
        marginalization (`str`, *optional*, defaults to `"token"`): `"token"` or `"span"`.

    Returns:
        `torch.Tensor` of shape `(B, M)` for `"token"`, `(B,)` for `"span"`: The log likelihoods; 0 where there is no
        label.

    Raises:
        `ValueError`: `marginalization` is neither choice.
    """
    gold = gold_log_probs * label_mask.unsqueeze(1)
    if marginalization == "token":
        marginal, counted = torch.logsumexp(candidate_log_probs.unsqueeze(-1) + gold, dim=1), label_mask
    elif marginalization == "span":
        marginal, counted = torch.logsumexp(candidate_log_probs + gold.sum(-1), dim=1), label_mask.any(-1)
    else:
        raise ValueError(f"`marginalization` is {marginalization!r}: choose 'token' or 'span'.")
    return marginal.masked_fill(~counted, 0.0)


def retrieval_utility(
    gold_log_probs: torch.Tensor, candidate_log_probs: torch.Tensor, label_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    RU(z|x) = log p(y|z, x) - log p(y|null, x) (appendix on retrieval utility), and the same for the marginal.

    Candidate 0 of every row must be the null passage. Both are sums over the masked tokens, in nats, and carry no
    gradient. The marginal is the `"span"` one whatever the loss uses, so that figures of both can be compared.

    Args:
        gold_log_probs (`torch.Tensor` of shape `(B, K, M)`): log p(y_m|z, x).
        candidate_log_probs (`torch.Tensor` of shape `(B, K)`): log p(z|x); minus infinity where there is no candidate.
        label_mask (`torch.Tensor` of shape `(B, M)`, bool): True where position m has a label.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]` of shapes `(B, K)` and `(B,)`: Utility of each candidate (0 where there is
        none) and of the marginal.
    """
    gold, candidate = gold_log_probs.detach(), candidate_log_probs.detach()
    null = (gold[:, 0] * label_mask).sum(-1)
    per_candidate = (gold * label_mask.unsqueeze(1)).sum(-1) - null.unsqueeze(1)
    marginal = marginal_log_likelihood(candidate, gold, label_mask, "span")
    return per_candidate.masked_fill(candidate.isneginf(), 0.0), marginal - null


def inverse_cloze_loss(
    queries: torch.Tensor,
    passages: torch.Tensor,
    groups: torch.Tensor,
    scale: float = 1.0,
    sources: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Cross entropy of finding each query's own passage among all passages of the batch (ORQA, section 5; REALM's warm
    start, section 3.4), without false negatives.

    Args:
        queries (`torch.Tensor` of shape `(B, D)`): Embeddings of the queries.
        passages (`torch.Tensor` of shape `(P, D)`): Embeddings of the passages, P >= B: row i < B is that of query i,
            the others are further negatives.
        groups (`torch.Tensor` of shape `(P,)`, long): Passages of one group have the same text: none is a wrong answer
            to another's query. Below 0 there is no passage.
        scale (`float`, *optional*, defaults to 1.0): Factor on the inner products.
        sources (`torch.Tensor` of shape `(B,)`, long, *optional*): Group of the passage that each query was cut from,
            where that is not its own: it answers, too.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The mean loss in nats, and the share of queries whose own passage scores
        highest.
    """
    with torch.autocast(queries.device.type, enabled=False):
        scores = full_precision(queries) @ full_precision(passages).T * scale
        labels = torch.arange(len(queries), device=queries.device)
        left_out = groups[: len(queries), None] == groups[None]
        if sources is not None:
            left_out = left_out | (sources[:, None] == groups[None])
        left_out = (left_out | (groups < 0)[None]) & (
            labels[:, None] != torch.arange(len(groups), device=groups.device)
        )
        scores = scores.masked_fill(left_out, -torch.inf)
        accuracy = (scores.detach().argmax(dim=1) == labels).float().mean()
        return F.cross_entropy(scores, labels), accuracy


def _logsumexp_by(values: torch.Tensor, groups: torch.Tensor, num_groups: int) -> torch.Tensor:
    """One logsumexp per group, `(G,)`, of `values` `(T,)` in at least float32; minus infinity for an empty group."""
    lowest = values.new_full((num_groups,), -torch.inf)
    largest = lowest.scatter_reduce(0, groups, values.detach(), "amax")
    largest = largest.masked_fill(largest.isneginf(), 0.0)
    total = values.new_zeros(num_groups).index_add(0, groups, (values - largest[groups]).exp())
    empty = total == 0
    # A logarithm of 0 would put NaN into the gradient of groups that have values.
    return (total.masked_fill(empty, 1.0).log() + largest).masked_fill(empty, -torch.inf)


def span_log_softmax(logits: torch.Tensor, question: torch.Tensor, num_questions: int) -> torch.Tensor:
    """
    The log probability of each answer span: one softmax over all spans of all passages of its question.

    ORQA and its released `orqa_model.py`: P(span, passage) is proportional to
    exp(reader logit + relevance score of the passage), so the caller adds the passage's score to every logit first.

    Args:
        logits (`torch.Tensor` of shape `(T,)`): Reader logit plus relevance score of each span.
        question (`torch.LongTensor` of shape `(T,)`): The question of each span, in `[0, num_questions)`.
        num_questions (`int`): B; questions may have no span.

    Returns:
        `torch.Tensor` of shape `(T,)`: The log probabilities, in at least float32.
    """
    with torch.autocast(logits.device.type, enabled=False):
        scores = full_precision(logits)
        return scores - _logsumexp_by(scores, question, num_questions)[question]


def span_marginal_loss(
    logits: torch.Tensor, correct: torch.Tensor, question: torch.Tensor, num_questions: int
) -> torch.Tensor:
    """
    The reader's loss: -log of the summed probability of all right spans (ORQA, "Learning", L_full).

    Args:
        logits (`torch.Tensor` of shape `(T,)`): Reader logit plus relevance score of each span.
        correct (`torch.BoolTensor` of shape `(T,)`): Whether the span is an answer.
        question (`torch.LongTensor` of shape `(T,)`): The question of each span, in `[0, num_questions)`.
        num_questions (`int`): B; questions may have no span.

    Returns:
        `torch.Tensor` of shape `(B,)`: The losses in nats, in at least float32; 0, without gradient, for a question
        without a right span.
    """
    with torch.autocast(logits.device.type, enabled=False):
        scores = full_precision(logits)
        # Wrong spans weigh nothing: which are right need not be known on the host.
        right = _logsumexp_by(scores.masked_fill(~correct, -torch.inf), question, num_questions)
        answerless = right.isneginf()
        loss = _logsumexp_by(scores, question, num_questions) - right
        return torch.where(answerless, torch.zeros_like(loss), loss)


def retriever_marginal_loss(scores: torch.Tensor, correct: torch.Tensor) -> torch.Tensor:
    """
    The retriever's loss: -log of the summed probability of all passages with an answer (ORQA, "Learning", L_early).

    Args:
        scores (`torch.Tensor` of shape `(B, S)`): Relevance scores of the beam; minus infinity where there is no
            passage.
        correct (`torch.BoolTensor` of shape `(B, S)`): Whether the passage contains an answer.

    Returns:
        `torch.Tensor` of shape `(B,)`: The losses in nats, in at least float32; 0, without gradient, for a question
        whose beam has no answer.
    """
    with torch.autocast(scores.device.type, enabled=False):
        scores = full_precision(scores)
        count, beam = scores.shape
        question = torch.arange(count, device=scores.device).unsqueeze(1).expand(count, beam)
        return span_marginal_loss(scores.flatten(), correct.flatten(), question.flatten(), count)


__all__ = [
    "Marginalization",
    "full_precision",
    "gold_log_probs",
    "inverse_cloze_loss",
    "marginal_log_likelihood",
    "relevance_scores",
    "retrieval_utility",
    "retriever_marginal_loss",
    "span_log_softmax",
    "span_marginal_loss",
]
