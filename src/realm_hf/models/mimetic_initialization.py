"""A start from nothing whose attention already reads the neighbours of a mask.

A BERT with BERT's own initialization learns the frequency of words first and then, for millions of tokens, nothing
else: the residual stream at a mask is the mask's own embedding, and what attention adds to it is a hundredth of that.
Two things that trained transformers have are given to it here. Products of query and key, and of value and output, are
close to a multiple of the identity: mimetic initialization (Trockman and Kolter 2023, arXiv 2305.09828). And the first
layers have heads that attend to one place before or behind (Clark et al. 2019, "What Does BERT Look At?", section 3).

A head finds the place by rotation. Positions are points on P / 2 circles, as sinusoidal embeddings are (Vaswani et al.
2017, section 3.5), in P dimensions that words leave free; turning the query by one step makes it equal to the key of
the place behind. The frequencies lie unevenly between 0 and pi, so that no distance but 0 is in phase in all of them.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from transformers import PreTrainedModel

__all__ = ["KINDS", "initialize_mimetic"]

#: Types of encoders whose embeddings and attention are BERT's, under the same names.
KINDS = ("bert", "roberta")

# What of a token's value reaches its reader in each layer; below 1, so that four layers do not drown the token itself.
VALUE_SHARE = 0.7
# How far a place heads look, in the order in which heads are given to them.
DISTANCES = (-1, 1, -2, 2)
# Logit by which the place that a head looks for stands above every other: e^11 against some hundred others.
SHARPNESS = 11.0


def place_frequencies(size: int) -> torch.Tensor:
    """The `size / 2` angles, in radians a position, by which positions turn; `[size / 2]`."""
    count = size // 2
    # Even steps would meet again after 2 P positions.
    return math.pi * ((torch.arange(count, dtype=torch.float32) + 0.5) / max(count, 1)) ** 1.2


def place_embeddings(count: int, size: int) -> torch.Tensor:
    """Cosine and sine of `count` positions at `size / 2` frequencies, `[count, size]`; rows of norm sqrt(size)."""
    angles = torch.arange(count, dtype=torch.float32)[:, None] * place_frequencies(size)
    return math.sqrt(2) * torch.stack([torch.cos(angles), torch.sin(angles)], -1).flatten(1)


def turned(size: int, distance: int) -> torch.Tensor:
    """The rotation `[size, size]` that takes the embedding of a position to that of the one `distance` after it."""
    angles = distance * place_frequencies(size)
    rotation = torch.zeros(size, size)
    even = 2 * torch.arange(size // 2)
    rotation[even, even] = rotation[even + 1, even + 1] = torch.cos(angles)
    rotation[even, even + 1], rotation[even + 1, even] = -torch.sin(angles), torch.sin(angles)
    return rotation


def _orthonormal(size: int, generator: torch.Generator) -> torch.Tensor:
    return torch.linalg.qr(torch.randn(size, size, generator=generator)).Q


@torch.no_grad()
def initialize_mimetic(tower: PreTrainedModel, seed: int = 0) -> None:
    """
    Set embeddings' places and attention of a tower that was never trained; feed-forward layers stay.

    The first layer's heads look one or two places before and behind; half of the second's do; the others, and those of
    later layers, at what is like themselves.

    Args:
        tower (`PreTrainedModel`): A `BertModel` or `RobertaModel` as it was made, of hidden size H with A heads.
            Positions take P dimensions: H / A, at most H / 4, an even number.
        seed (`int`, *optional*, defaults to 0): Of the random rotations.
    """
    generator = torch.Generator().manual_seed(seed)
    model: Any = tower
    size, scale = model.config.hidden_size, model.config.initializer_range
    heads = model.config.num_attention_heads
    width = size // heads
    places = min(width, size // 4) // 2 * 2
    embeddings = model.embeddings
    # Words and places are of one scale, in dimensions of their own: a place is found whatever stands there.
    embeddings.word_embeddings.weight[:, :places] = 0
    embeddings.token_type_embeddings.weight[:, :places] = 0
    table = embeddings.position_embeddings.weight
    table.zero_()[:, :places] = scale * place_embeddings(len(table), places)
    # After layer normalization a place has norm sqrt(P): its product with itself is gain^2 P / sqrt(H / A).
    gain = math.sqrt(SHARPNESS * math.sqrt(width) / places) if places else 0.0
    for depth, layer in enumerate(model.encoder.layer):
        attention = layer.attention
        look, carry = _orthonormal(size, generator), _orthonormal(size, generator)
        queries, keys = look.clone(), look
        near = (heads, heads // 2)[depth] if depth < 2 and places else 0
        for head in range(near):
            rows = slice(head * width, head * width + places)
            basis = gain * _orthonormal(places, generator)
            for weights in (queries, keys):
                weights[head * width : (head + 1) * width] = 0
            keys[rows, :places] = basis
            queries[rows, :places] = basis @ turned(places, DISTANCES[head % len(DISTANCES)])
        attention.self.query.weight.copy_(queries)
        attention.self.key.weight.copy_(keys)
        attention.self.value.weight.copy_(carry)
        attention.output.dense.weight.copy_(VALUE_SHARE * carry.T)
