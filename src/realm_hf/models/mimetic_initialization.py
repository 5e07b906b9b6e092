"""A start from nothing whose attention already looks at neighbours.

A BERT with BERT's own initialization learns the frequency of words first and then, for millions of tokens, nothing
else: the residual stream at a mask is the mask's own embedding, and what attention adds to it is a hundredth of that.
Trained transformers have products of query and key, and of value and output, that are close to a multiple of the
identity; to start there is mimetic initialization (Trockman and Kolter 2023, arXiv 2305.09828). With sinusoidal
position embeddings (Vaswani et al. 2017, section 3.5), whose inner products fall with distance, equal queries and keys
look at neighbours from the first step.
"""

from __future__ import annotations

from typing import cast

import torch
from transformers.models.bert.modeling_bert import BertLayer, BertModel

__all__ = ["initialize_mimetic"]

# What of a token's value reaches its reader in each layer; below 1, so that four layers do not drown the token itself.
VALUE_SHARE = 0.7


def sinusoids(count: int, size: int) -> torch.Tensor:
    """Sine and cosine of `count` positions at `size / 2` frequencies, `[count, size]`; their root mean square is
    0.71.
    """
    place = torch.arange(count, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, size, 2, dtype=torch.float32) * (-torch.log(torch.tensor(10_000.0)) / size))
    table = torch.zeros(count, size)
    table[:, 0::2] = torch.sin(place * frequency)
    table[:, 1::2] = torch.cos(place * frequency)[:, : size // 2]
    return table


def _orthonormal(size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator)).Q


@torch.no_grad()
def initialize_mimetic(tower: BertModel, seed: int = 0) -> None:
    """
    Set positions and attention of a tower that was never trained; word embeddings and feed-forward layers stay.

    Args:
        tower (`BertModel`): As it was made, of hidden size H.
        seed (`int`, *optional*, defaults to 0): Of the random rotations.

    Learning rates of 1e-3 and less keep what this gives; at 2e-3 a model of 4 layers of 256 lost it within 100 steps.
    """
    generator = torch.Generator().manual_seed(seed)
    size, scale = tower.config.hidden_size, tower.config.initializer_range
    positions = tower.embeddings.position_embeddings.weight
    # As large as the words' own embeddings: neither drowns the other.
    positions.copy_(scale * sinusoids(*positions.shape))
    for layer in tower.encoder.layer:
        attention = cast(BertLayer, layer).attention
        look, carry = _orthonormal(size, generator), _orthonormal(size, generator)
        attention.self.query.weight.copy_(look)
        attention.self.key.weight.copy_(look)
        attention.self.value.weight.copy_(carry)
        attention.output.dense.weight.copy_(VALUE_SHARE * carry.T)
