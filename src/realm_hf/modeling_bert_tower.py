"""transformers' `BertModel` with a last layer that computes only the rows somebody reads.

An embedder reads [CLS] and a masked language model reads the masked positions, so in the last layer only those rows
need a query, an attention output and a feed-forward pass; keys and values still come from every token, so the result
is exact. It saves most of one layer: about a seventh of a six-layer tower. Everything else, and every state-dict key,
is `BertModel`'s.
"""

from typing import Any

import torch
from torch import nn
from transformers.activations import NewGELUActivation
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.bert.modeling_bert import (
    BertEmbeddings,
    BertEncoder,
    BertIntermediate,
    BertLayer,
    BertModel,
    BertOnlyMLMHead,
    BertPooler,
    BertPreTrainedModel,
    eager_attention_forward,
)
from transformers.pytorch_utils import apply_chunking_to_forward

from .configuration_realm import RealmConfig


def gather_rows(hidden_states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`hidden_states` `(N, L, H)` at positions `rows` `(N, R)`: `(N, R, H)`."""
    return hidden_states.gather(1, rows.unsqueeze(-1).expand(-1, -1, hidden_states.size(-1)))


def distinct_words(tower: BertModel, input_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The word embeddings of the tokens that occur, each once.

    The gradient of a lookup is as large as the vocabulary (31 MB for 30,522 x 256), however few tokens were looked up.
    Chunks of a batch that look up here pay for it once together instead of once each.

    Args:
        tower (`BertModel`): Whose embeddings.
        input_ids (`torch.LongTensor` of any shape): Token ids.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Embeddings `(U, H)`, with gradient, and `input_ids` as rows of them.
    """
    distinct, rows = input_ids.unique(return_inverse=True)
    return tower.embeddings.word_embeddings(distinct), rows


class RealmLastLayer(BertLayer):
    """A `BertLayer` that, given `output_rows`, returns only those rows."""

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_rows: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> torch.Tensor:
        """
        Run the layer.

        Args:
            hidden_states (`torch.Tensor` of shape `(N, L, H)`): Input of the layer.
            attention_mask (`torch.Tensor`, *optional*): As prepared by `BertModel` for its attention implementation.
            output_rows (`torch.LongTensor` of shape `(N, R)`, *optional*): Positions to return; all if not given.
            kwargs (*optional*): As in `BertLayer`.

        Returns:
            `torch.Tensor` of shape `(N, R, H)` (or `(N, L, H)`): Output of the layer at those positions.
        """
        if output_rows is None:
            return super().forward(hidden_states, attention_mask, **kwargs)
        attention = self.attention.self
        implementation = attention.config._attn_implementation
        if implementation not in ("sdpa", "eager"):
            # Flash and flex attention take masks that assume as many queries as keys.
            return gather_rows(super().forward(hidden_states, attention_mask, **kwargs), output_rows)

        def heads(projected: torch.Tensor) -> torch.Tensor:
            return projected.unflatten(-1, (-1, attention.attention_head_size)).transpose(1, 2)

        wanted = gather_rows(hidden_states, output_rows)
        if attention_mask is not None:
            # Padding masks are the same for every query, so the first query's row serves all.
            attention_mask = attention_mask[:, :, :1].expand(-1, -1, wanted.size(1), -1)
        context, _ = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)(
            attention,
            heads(attention.query(wanted)),
            heads(attention.key(hidden_states)),
            heads(attention.value(hidden_states)),
            attention_mask,
            dropout=attention.dropout.p if self.training else 0.0,
            scaling=attention.scaling,
            **kwargs,
        )
        attended = self.attention.output(context.flatten(-2), wanted)
        return apply_chunking_to_forward(
            self.feed_forward_chunk, self.chunk_size_feed_forward, self.seq_len_dim, attended
        )


class RealmBertEncoder(BertEncoder):
    """`BertEncoder` whose last layer takes `output_rows`."""

    def __init__(self, config: RealmConfig) -> None:
        super().__init__(config)
        self.layer[-1] = RealmLastLayer(config, layer_idx=config.num_hidden_layers - 1)

    def forward(  # type: ignore[override]
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_rows: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPastAndCrossAttentions:
        """Run all layers; arguments as in [`RealmLastLayer`]."""
        # A bidirectional encoder keeps no cache and attends to nothing but itself.
        for unused in ("encoder_hidden_states", "encoder_attention_mask", "past_key_values", "use_cache"):
            kwargs.pop(unused, None)
        for layer in self.layer[:-1]:
            hidden_states = layer(hidden_states, attention_mask, **kwargs)
        hidden_states = self.layer[-1](hidden_states, attention_mask, output_rows=output_rows, **kwargs)
        return BaseModelOutputWithPastAndCrossAttentions(last_hidden_state=hidden_states)


class UnreadPooler(BertPooler):
    """A pooler that checkpoints contain and nobody reads: its weights are kept, its output is not computed."""

    def forward(self, hidden_states: torch.Tensor) -> None:  # type: ignore[override]
        """Compute nothing."""


class UnreadPredictionHead(BertOnlyMLMHead):
    """A prediction head that checkpoints contain and nobody reads."""

    def forward(self, sequence_output: torch.Tensor) -> None:  # type: ignore[override]
        """Compute nothing."""


def fuse_activations(encoder: BertEncoder) -> None:
    """
    Compute `gelu_new`, the activation of every published REALM, in one kernel instead of eight passes over the largest
    tensor of a layer. The function is the same, up to rounding.
    """
    for module in encoder.modules():
        if isinstance(module, BertIntermediate) and isinstance(module.intermediate_act_fn, NewGELUActivation):
            module.intermediate_act_fn = nn.GELU(approximate="tanh")


class RealmBertModel(BertModel):
    """
    The BERT tower of every REALM model.

    `forward` takes what `BertModel.forward` takes and `output_rows` of shape `(N, R)`: with it, `last_hidden_state`
    has shape `(N, R, hidden_size)` and the pooler reads the first of those rows.

    Args:
        config ([`RealmConfig`]): The configuration.
        pooler_is_read (`bool`, *optional*, defaults to `True`):
            Whether the model around this tower reads the pooler. If not, its weights exist for the checkpoint's sake.
    """

    config: RealmConfig
    _no_split_modules = ["BertEmbeddings", "BertLayer", "RealmLastLayer"]  # noqa: RUF012

    def __init__(self, config: RealmConfig, pooler_is_read: bool = True) -> None:
        BertPreTrainedModel.__init__(self, config)
        self.gradient_checkpointing = False
        self.embeddings = BertEmbeddings(config)
        self.encoder = RealmBertEncoder(config)
        fuse_activations(self.encoder)
        self.pooler = BertPooler(config) if pooler_is_read else UnreadPooler(config)
        self.post_init()


__all__ = ["RealmBertModel", "UnreadPooler", "UnreadPredictionHead", "distinct_words", "gather_rows"]
