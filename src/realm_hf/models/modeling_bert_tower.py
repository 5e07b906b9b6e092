"""transformers' `BertModel` with a last layer that computes only the rows somebody reads.

An embedder reads [CLS] and a masked language model reads the masked positions, so in the last layer only those rows
need a query, an attention output and a feed-forward pass; keys and values still come from every token, so the result
is exact. It saves most of one layer: about a seventh of a six-layer tower. Everything else, and every state-dict key,
is `BertModel`'s.
"""

from collections.abc import Callable
from typing import Any, ClassVar, cast

import torch
import torch.nn.functional as F
from torch import nn
from transformers.activations import GELUActivation, NewGELUActivation
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

from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.host_facts import RowFacts
from realm_hf.models.transfer import to_device

# What `torch.compile` makes of a linear layer and its activation. It is private to torch, so that it is taken only
# with this signature, that of torch 2.8 to 2.13; elsewhere the two are computed one after the other.
_FUSED_SIGNATURE = (
    "mkldnn::_linear_pointwise(Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm) -> Tensor Y"
)


def fused_linear(operators: Any = torch.ops.mkldnn) -> Callable[..., torch.Tensor] | None:
    """
    OneDNN's linear layer with its activation, in one kernel.

    Args:
        operators (`Any`, *optional*, defaults to `torch.ops.mkldnn`): Where torch keeps it.

    Returns:
        `Callable[..., torch.Tensor]`, *optional*: `None` where torch has none, or one with another signature.
    """
    packet = getattr(operators, "_linear_pointwise", None) if torch.backends.mkldnn.is_available() else None
    operator = getattr(packet, "default", None)
    return operator if operator is not None and str(operator._schema) == _FUSED_SIGNATURE else None


_linear_and_activation = fused_linear()


def gather_rows(hidden_states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """`hidden_states` `(N, L, H)` at positions `rows` `(N, R)`: `(N, R, H)`."""
    return hidden_states.gather(1, rows.unsqueeze(-1).expand(-1, -1, hidden_states.size(-1)))


def word_inputs(
    tower: nn.Module, input_ids: torch.Tensor, facts: RowFacts
) -> tuple[torch.Tensor, Callable[[torch.Tensor], dict[str, torch.Tensor]]]:
    """
    What chunks of a batch are cut from, and what a chunk is to the tower: rows of [`distinct_words`] where the tower
    takes embeddings of words, else the token ids themselves.

    Args:
        tower (`nn.Module`): A tower.
        input_ids (`torch.LongTensor` of shape `(N, L)`): Token ids.
        facts ([`~host_facts.RowFacts`]): Which of them occur.

    Returns:
        `tuple[torch.Tensor, Callable]`: Numbers `(N, L)`; and from some of them to the tower's arguments.
    """
    if not getattr(tower, "takes_prepared_inputs", False):
        return input_ids, lambda ids: {"input_ids": ids}
    words, rows = distinct_words(cast(BertModel, tower), input_ids, facts)
    return rows, lambda some: {"inputs_embeds": F.embedding(some, words)}


def distinct_words(tower: BertModel, input_ids: torch.Tensor, facts: RowFacts) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The word embeddings of the tokens that occur, each once.

    The gradient of a lookup is as large as the vocabulary (31 MB for 30,522 x 256), however few tokens were looked up.
    Chunks of a batch that look up here pay for it once together instead of once each.

    Args:
        tower (`BertModel`): Whose embeddings.
        input_ids (`torch.LongTensor` of any shape): Token ids.
        facts ([`~host_facts.RowFacts`]): Which of them occur.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: Embeddings `(U, H)`, with gradient, and `input_ids` as rows of them.
    """
    embeddings = tower.embeddings.word_embeddings
    distinct = to_device({"words": facts.words}, input_ids.device)["words"]
    row_of_word = distinct.new_zeros(embeddings.num_embeddings)
    row_of_word[distinct] = torch.arange(len(distinct), device=distinct.device)
    return embeddings(distinct), row_of_word[input_ids]


def padding_mask(tower: nn.Module, attention_mask: torch.Tensor | None) -> torch.Tensor | None:
    """
    `attention_mask` `(N, L)` in the form that attention takes: transformers makes the same, but first asks the device
    whether there is any padding, and waits for the answer. `None`, for rows without padding, stays, and so does the
    mask of a tower of another encoder.
    """
    prepared = getattr(tower, "takes_prepared_inputs", False)
    if attention_mask is None or not prepared or cast(BertModel, tower).config._attn_implementation != "sdpa":
        return attention_mask
    return attention_mask.bool()[:, None, None, :]


class RealmIntermediate(BertIntermediate):
    """
    A feed-forward layer's first half, in fewer passes over the largest tensor of a layer.

    GELU is one kernel: transformers computes `gelu_new`, the activation of every published REALM, in eight. Where
    nobody asks for a gradient, on a CPU in float32, it is part of the matrix product (oneDNN): encoding passages takes
    a tenth less. The function is the same, up to rounding.

    Args:
        original (`BertIntermediate`): Whose weights these are.
    """

    def __init__(self, original: BertIntermediate) -> None:
        nn.Module.__init__(self)
        self.dense = original.dense
        activation = original.intermediate_act_fn
        if isinstance(activation, NewGELUActivation):
            activation = nn.GELU(approximate="tanh")
        elif isinstance(activation, GELUActivation):
            activation = nn.GELU()
        self.intermediate_act_fn = activation

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """`hidden_states` `(N, L, H)` to `(N, L, intermediate_size)`."""
        activation, dense = self.intermediate_act_fn, self.dense
        if (
            _linear_and_activation is None
            or not isinstance(activation, nn.GELU)
            or not _can_be_fused(dense, hidden_states)
        ):
            return super().forward(hidden_states)
        return _linear_and_activation(hidden_states, dense.weight, dense.bias, "gelu", [], activation.approximate)


def _can_be_fused(dense: nn.Module, inputs: torch.Tensor) -> bool:
    """Whether oneDNN's kernel may stand for a linear layer and its activation: it has no gradient, and knows nothing
    of hooks, adapters, sharding, autocast or tracing.
    """
    return (
        not torch.is_grad_enabled()
        and bool(torch.backends.mkldnn.enabled)
        and type(dense) is nn.Linear
        and type(dense.weight) is nn.Parameter
        and inputs.device.type == dense.weight.device.type == "cpu"
        and inputs.dtype == dense.weight.dtype == torch.float32
        and not torch.is_autocast_enabled("cpu")
        and not (dense._forward_hooks or dense._forward_pre_hooks or "forward" in dense.__dict__)
        and not (torch.jit.is_tracing() or torch.compiler.is_compiling())  # type: ignore[attr-defined]
    )


class RealmLastLayer(BertLayer):
    """A `BertLayer` that, given `output_rows`, returns only those rows."""

    def forward(
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
        for layer in self.layer:
            layer.intermediate = RealmIntermediate(cast(BertIntermediate, layer.intermediate))

    def forward(
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
    takes_prepared_inputs: ClassVar[bool] = True
    """Whether words may come as `inputs_embeds`, looked up outside, and masks as attention takes them."""
    _no_split_modules = ["BertEmbeddings", "BertLayer", "RealmLastLayer"]  # noqa: RUF012

    def __init__(self, config: RealmConfig, pooler_is_read: bool = True) -> None:
        BertPreTrainedModel.__init__(self, config)
        self.gradient_checkpointing = False
        self.embeddings = BertEmbeddings(config)
        self.encoder = RealmBertEncoder(config)
        self.pooler = BertPooler(config) if pooler_is_read else UnreadPooler(config)
        self.post_init()


__all__ = [
    "RealmBertModel",
    "UnreadPooler",
    "UnreadPredictionHead",
    "distinct_words",
    "gather_rows",
    "padding_mask",
    "word_inputs",
]
