"""From a tower's hidden states to an embedding: pooling, projection, normalization."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.bert.modeling_bert import BertLMPredictionHead

from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.losses import full_precision


def mean_of_tokens(hidden_states: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """
    The mean of the hidden states of all tokens, special tokens included, in at least float32.

    Args:
        hidden_states (`torch.Tensor` of shape `(N, L, H)`): The last layer's.
        attention_mask (`torch.Tensor` of shape `(N, L)` or `(N, 1, 1, L)`, *optional*): Not 0 at tokens; without it
            there is no padding.

    Returns:
        `torch.Tensor` of shape `(N, H)`.
    """
    states = full_precision(hidden_states)
    if attention_mask is None:
        return states.mean(dim=1)
    counted = (attention_mask.flatten(1) != 0).to(states.dtype)
    return torch.einsum("nlh,nl->nh", states, counted) / counted.sum(dim=1, keepdim=True).clamp(min=1.0)


class RealmScorerProjection(nn.Module):
    """
    From what was pooled to the embedding: dense, layer normalization (in float32), dropout (section 3.2), unless the
    configuration leaves out some of it.

    Args:
        config ([`RealmConfig`]): The configuration.
    """

    def __init__(self, config: RealmConfig) -> None:
        super().__init__()
        # Files of BERT's embedders hold it; those of other encoders never did.
        self.predictions = BertLMPredictionHead(config) if config.embedder_config is None else None
        self.dense: nn.Linear | None = None
        self.LayerNorm: nn.LayerNorm | None = None
        if config.projection != "none":
            self.dense = nn.Linear(config.hidden_size, config.retriever_proj_size)
        elif config.retriever_proj_size != config.hidden_size:
            raise ValueError(
                f"projection is 'none', so that embeddings have the {config.hidden_size} dimensions of hidden states, "
                f"but retriever_proj_size is {config.retriever_proj_size}: give {config.hidden_size}."
            )
        if config.projection == "layer_norm":
            self.LayerNorm = nn.LayerNorm(config.retriever_proj_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.projection_dropout)
        self.normalize = config.normalize

    def forward(self, pooled: torch.Tensor) -> torch.Tensor:
        """From `(N, hidden_size)` to `(N, retriever_proj_size)`."""
        projected = full_precision(pooled if self.dense is None else self.dense(pooled))
        norm = self.LayerNorm
        with torch.autocast(projected.device.type, enabled=False):
            if norm is not None:
                projected = F.layer_norm(
                    projected, norm.normalized_shape, full_precision(norm.weight), full_precision(norm.bias), norm.eps
                )
            if self.normalize:
                projected = F.normalize(projected, dim=-1)
            return self.dropout(projected)


__all__ = ["RealmScorerProjection", "mean_of_tokens"]
