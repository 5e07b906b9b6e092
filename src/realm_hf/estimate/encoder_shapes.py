"""The shape of any encoder of transformers, counted from its modules: no formula knows all kinds of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModel, AutoModelForMaskedLM, PreTrainedConfig

from realm_hf.estimate.shapes import ModelShape
from realm_hf.models.any_encoder import fields_of_encoder, has_masked_language_model
from realm_hf.models.modeling_any_tower import without_pooler

__all__ = ["shape_of_encoder"]


def shape_of_encoder(config: PreTrainedConfig) -> ModelShape:
    """
    Count an encoder's weights; none is made.

    Args:
        config (`PreTrainedConfig`): Of an encoder of transformers.

    Returns:
        [`ModelShape`]: Attention is counted as BERT's: over all tokens, without products of relative positions.
    """
    with torch.device("meta"):
        model: Any = (
            AutoModelForMaskedLM.from_config(config)
            if has_masked_language_model(config)
            else AutoModel.from_config(config, **without_pooler(config))
        )
    encoder = model.base_model
    matrices = _matrices(encoder)
    head = _matrices(model) - matrices
    if encoder is not model and model.get_output_embeddings() is None:
        head += (
            model.get_input_embeddings().weight.numel()
        )  # A head that multiplies by the word embeddings themselves.
    sizes = fields_of_encoder(config)
    return ModelShape(
        **{name: sizes[name] for name in ("hidden_size", "num_hidden_layers", "intermediate_size", "vocab_size")},
        layer_weights=matrices,
        other_weights=sum(weight.numel() for weight in encoder.parameters()) - matrices,
        head_weights=head,
    )


def _matrices(module: nn.Module) -> int:
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))
