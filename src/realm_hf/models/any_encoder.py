"""What a configuration of transformers says of an encoder: what it is, and what REALM asks of it."""

from collections.abc import Mapping
from typing import Any, cast

from transformers import CONFIG_MAPPING, PreTrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    MODEL_MAPPING_NAMES,
)

_COUNTED_BEHIND_PADDING = frozenset(
    {
        "camembert",
        "data2vec-text",
        "esm",
        "ibert",
        "longformer",
        "mpnet",
        "roberta",
        "roberta-prelayernorm",
        "xlm-roberta",
        "xlm-roberta-xl",
        "xmod",
    }
)
"""Encoders whose first position has the number behind `pad_token_id`: of 514 positions, 512 are for tokens."""


def encoder_configuration(given: PreTrainedConfig | Mapping[str, Any]) -> PreTrainedConfig:
    """
    The configuration of an encoder.

    Args:
        given (`PreTrainedConfig` or `dict`): A configuration, or its entries with `model_type` among them.

    Raises:
        `ValueError`: transformers has no such encoder, or it is a decoder.
    """
    if isinstance(given, PreTrainedConfig):
        config = given
    else:
        kind = str(given.get("model_type"))
        if kind not in CONFIG_MAPPING:
            raise ValueError(f"An encoder has model_type {kind!r}, which transformers does not know: give one it has.")
        config = CONFIG_MAPPING[kind].from_dict(dict(given))
    check_is_encoder(config, "An encoder")
    return config


def check_is_encoder(config: PreTrainedConfig, name: str) -> None:
    """
    Refuse a configuration that is not an encoder's.

    Args:
        config (`PreTrainedConfig`): Of any model.
        name (`str`): What to call it.

    Raises:
        `ValueError`: it is a decoder, has one, or is no model of text that transformers has.
    """
    kind = config.model_type
    only_generates = kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if getattr(config, "is_decoder", False) or config.is_encoder_decoder or only_generates:
        raise ValueError(
            f"{name} is of type {kind!r}, a decoder: each of its tokens sees only those before it. Give an encoder, "
            "such as RoBERTa, MPNet, DeBERTa, ELECTRA or ModernBERT."
        )
    if kind not in MODEL_MAPPING_NAMES or not hasattr(config, "vocab_size"):
        raise ValueError(f"{name} is of type {kind!r}, which is no text encoder of transformers: give one of those.")


def has_masked_language_model(config: PreTrainedConfig) -> bool:
    """Whether transformers has a masked language model of this type, which the knowledge-augmented encoder is."""
    return config.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def positions_of(config: PreTrainedConfig) -> int:
    """Most tokens of an input, special tokens included."""
    most = int(cast(Any, config).max_position_embeddings)
    behind = (
        config.model_type in _COUNTED_BEHIND_PADDING and getattr(config, "position_embedding_type", "") != "rotary"
    )
    return most - int(cast(Any, config).pad_token_id) - 1 if behind else most


def fields_of_encoder(config: PreTrainedConfig) -> dict[str, Any]:
    """What an encoder says of itself, under the names that BERT has for it."""
    encoder: Any = config
    return {
        "vocab_size": encoder.vocab_size,
        "hidden_size": encoder.hidden_size,
        "num_hidden_layers": encoder.num_hidden_layers,
        "num_attention_heads": encoder.num_attention_heads,
        # DistilBERT calls it hidden_dim.
        "intermediate_size": getattr(encoder, "intermediate_size", getattr(encoder, "hidden_dim", 0)),
        "pad_token_id": encoder.pad_token_id,
    }


__all__ = [
    "check_is_encoder",
    "encoder_configuration",
    "fields_of_encoder",
    "has_masked_language_model",
    "positions_of",
]
