"""What the models return. B queries, K candidates, M masked positions, L tokens, D = `retriever_proj_size`."""

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


__all__ = ["RealmEmbedderOutput", "RealmForPreTrainingOutput", "RealmScorerOutput"]
