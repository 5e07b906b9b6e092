"""The model of the rows: a BERT of 4 layers of 256, without dropout so that both sides can be compared.

Everything else is as published: the activation is `gelu_new`, the projection has 128 dimensions.
"""

from pathlib import Path
from typing import Any

import torch
from harness.rows import Settings
from safetensors.torch import save_file

from realm_hf import RealmConfig

SHAPE = {
    "vocab_size": 30_522,
    "hidden_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 1024,
    "max_position_embeddings": 512,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}


def shape(settings: Settings, **fields: int) -> dict[str, Any]:
    """Fields of the configuration, for both sides; tiny for a quick run."""
    small = {"hidden_size": 32, "num_hidden_layers": 2, "intermediate_size": 64} if settings.quick else {}
    return {**SHAPE, **small, **fields}


def make_config(settings: Settings, **fields: int) -> RealmConfig:
    """The configuration of our side."""
    return RealmConfig(**shape(settings, **fields))


def save_weights(model: torch.nn.Module, file: Path) -> None:
    """The state dict, shared tensors written twice: the peer loads it by name."""
    save_file({name: value.detach().clone().contiguous() for name, value in model.state_dict().items()}, file)
