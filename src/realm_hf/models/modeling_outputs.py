"""What the models return.

B queries or questions, K candidates, M masked positions, L tokens, D = `retriever_proj_size`. Of a question's beam of
S passages R are read; P joint inputs of question and passage hold T spans.
"""

from dataclasses import dataclass

import torch
from transformers.utils.generic import ModelOutput


@dataclass
class RealmEmbedderOutput(ModelOutput):
    """
    Output of [`RealmEmbedder`].

    Args:
        projected_score (`torch.FloatTensor` of shape `(N, D)`):
            The embeddings: layer-normalised, at least float32.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, with `output_hidden_states=True`):
            Input of the first layer and output of every layer, `(N, L, hidden_size)` each.
        attentions (`tuple(torch.FloatTensor)`, *optional*, with `output_attentions=True`):
            Attention weights of every layer, `(N, num_heads, L, L)` each.
    """

    projected_score: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class RealmScorerOutput(ModelOutput):
    """
    Output of [`RealmScorer`].

    Args:
        relevance_score (`torch.FloatTensor` of shape `(B, K)`):
            f(x, z), the scaled inner products, before any softmax.
        query_score (`torch.FloatTensor` of shape `(B, D)`):
            Embeddings of the queries.
        candidate_score (`torch.FloatTensor` of shape `(B, K, D)`):
            Embeddings of the candidates.
    """

    relevance_score: torch.Tensor | None = None
    query_score: torch.Tensor | None = None
    candidate_score: torch.Tensor | None = None


@dataclass
class RealmForPreTrainingOutput(ModelOutput):
    """
    Output of [`RealmForPreTraining`]. All tensors are at least float32, also under autocast.

    Args:
        loss (`torch.FloatTensor` of shape `()`):
            Minus the sum of `marginal_log_probs`, divided by `num_items` or, without it, by the local number of masked
            tokens (`"token"`) or of examples that have one (`"span"`).
        retrieval_score (`torch.FloatTensor` of shape `(B, K)`):
            f(x, z), the scaled inner products, part of the graph; minus infinity where there is no candidate.
        candidate_log_probs (`torch.FloatTensor` of shape `(B, K)`):
            log p(z|x) over the row's candidates; minus infinity where there is none.
        gold_log_probs (`torch.FloatTensor` of shape `(B, K, M)`):
            log p(y_m|z, x) of the right tokens; 0 where there is no label or no candidate.
        marginal_log_probs (`torch.FloatTensor` of shape `(B, M)` for `"token"`, `(B,)` for `"span"`):
            log p(y_m|x) or log p(y|x); 0 where there is no label.
        retrieval_utility (`torch.FloatTensor` of shape `(B, K)`, detached):
            RU(z|x) = log p(y|z, x) - log p(y|null, x), summed over the masked tokens, in nats; 0 where there is no
            label or no candidate, NaN in a row whose candidate 0 is not the null passage.
        marginal_utility (`torch.FloatTensor` of shape `(B,)`, detached):
            log p(y|x) - log p(y|null, x), summed over the masked tokens, in nats: what retrieval is worth to the row.
            0 and NaN as above.
        null_mass (`torch.FloatTensor` of shape `(B,)`, detached):
            p(null|x); 0 in a row whose candidate 0 is not the null passage.
        query_score (`torch.FloatTensor` of shape `(B, D)`):
            Embeddings of the queries, part of the graph.
    """

    loss: torch.Tensor | None = None
    retrieval_score: torch.Tensor | None = None
    candidate_log_probs: torch.Tensor | None = None
    gold_log_probs: torch.Tensor | None = None
    marginal_log_probs: torch.Tensor | None = None
    retrieval_utility: torch.Tensor | None = None
    marginal_utility: torch.Tensor | None = None
    null_mass: torch.Tensor | None = None
    query_score: torch.Tensor | None = None


@dataclass(frozen=True)
class SpanScores:
    """
    The reader's answer spans: only valid ones, without padding, by joint input, then start, then width.

    Args:
        logits (`torch.FloatTensor` of shape `(T,)`):
            The reader's own logits, at least float32; the relevance score of the passage is not in them.
        pair (`torch.LongTensor` of shape `(T,)`): The joint input, in `[0, P)`, that the span stands in.
        start (`torch.LongTensor` of shape `(T,)`): First wordpiece in the joint input.
        end (`torch.LongTensor` of shape `(T,)`): Last wordpiece in the joint input, inclusive.
    """

    logits: torch.Tensor
    pair: torch.Tensor
    start: torch.Tensor
    end: torch.Tensor


@dataclass
class RealmReaderOutput(ModelOutput):
    """
    Output of [`RealmReader`] for one question, with the shapes of transformers 4.57.6; for a batch of B questions all
    but `loss` have a leading dimension B instead, and `start_pos` and `end_pos` are `(B,)`.

    A *candidate* is a span of the padded input: all spans of one wordpiece by start, then all of two, and so on.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, with labels):
            `retriever_loss + reader_loss`, for a batch its mean; a question without an answer counts as 0.
        retriever_loss (`torch.FloatTensor` of shape `()`, *optional*, with labels):
            -log of the summed probability of passages with an answer; 0 if there is none.
        reader_loss (`torch.FloatTensor` of shape `()`, *optional*, with labels):
            -log of the summed probability of spans that are an answer; 0 if there is none.
        retriever_correct (`torch.BoolTensor` of shape `(S,)`, *optional*, with labels): `has_answers`.
        reader_correct (`torch.BoolTensor` of shape `(R, num_candidates)`, *optional*, with labels):
            Whether a candidate is an answer.
        block_idx (`torch.LongTensor` of shape `()`): The passage, in `[0, R)`, of the best span.
        candidate (`torch.LongTensor` of shape `()`): The best span as a candidate.
        start_pos (`torch.LongTensor` of shape `(1,)`):
            First wordpiece of the best span. 0, like the other three, if a question has no valid span.
        end_pos (`torch.LongTensor` of shape `(1,)`): Last wordpiece of the best span, inclusive.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, with `output_hidden_states=True`):
            Input of the first layer and output of every layer, `(R, L, hidden_size)` each (`(B * R, ...)`).
        attentions (`tuple(torch.FloatTensor)`, *optional*, with `output_attentions=True`):
            Attention weights of every layer, `(R, num_heads, L, L)` each (`(B * R, ...)`).
    """

    loss: torch.Tensor | None = None
    retriever_loss: torch.Tensor | None = None
    reader_loss: torch.Tensor | None = None
    retriever_correct: torch.Tensor | None = None
    reader_correct: torch.Tensor | None = None
    block_idx: torch.Tensor | None = None
    candidate: torch.Tensor | None = None
    start_pos: torch.Tensor | None = None
    end_pos: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


@dataclass
class RealmForOpenQAOutput(ModelOutput):
    """
    Output of [`RealmForOpenQA`].

    Args:
        reader_output ([`RealmReaderOutput`]): For one question with the shapes of one, else of a batch.
        predicted_answer_ids (`torch.LongTensor` of shape `(answer_length,)`, or a list of B of them):
            Token ids of the best span.
    """

    reader_output: RealmReaderOutput | None = None
    predicted_answer_ids: torch.Tensor | list[torch.Tensor] | None = None


__all__ = [
    "RealmEmbedderOutput",
    "RealmForOpenQAOutput",
    "RealmForPreTrainingOutput",
    "RealmReaderOutput",
    "RealmScorerOutput",
    "SpanScores",
]
