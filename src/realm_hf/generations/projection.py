"""A tower's projection fitted on passages: fewer dimensions, of which none is drawn at random."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from realm_hf.data.passages.tokens import PassageTokens
from realm_hf.generations.embedding import evaluating, pad_passages
from realm_hf.models.modeling_embedder import RealmEmbedder
from realm_hf.models.ragged_encoding import CHUNK_TOKENS, plan_chunks
from realm_hf.models.transfer import to_device

__all__ = ["Components", "fit_projection", "principal_components", "set_projection"]


@torch.inference_mode()
def fit_projection(
    towers: RealmEmbedder | Sequence[RealmEmbedder], passages: PassageTokens, *, samples: int = 20_000, seed: int = 0
) -> float:
    """
    Set a tower's linear layer to the principal components of what it pools from passages, as a matrix and a bias.

    A random projection of 384 dimensions to 128 loses what the pooled vectors know in proportion; their principal
    components keep most of it, because the vectors of sentence encoders fill few directions.

    Args:
        towers ([`RealmEmbedder`] or sequence of them): Fitted on what the first of them pools, and set in all: query
            and passage tower must stay comparable.
        passages ([`PassageStore`] or [`PassagesInMemory`]): What is embedded.
        samples (`int`, *optional*, defaults to 20,000): Passages that are looked at, drawn at random.
        seed (`int`, *optional*, defaults to 0): Of that draw.

    Returns:
        `float`: The share of the variance that is kept.

    Raises:
        ValueError: The tower has no linear layer, or there are fewer passages than dimensions.
    """
    towers = [towers] if isinstance(towers, RealmEmbedder) else list(towers)
    dense, dimension = towers[0].cls.dense, towers[0].config.retriever_proj_size
    if dense is None:
        raise ValueError("The tower's projection is 'none', so that there is nothing to fit.")
    count = min(samples, len(passages))
    if count < dimension:
        raise ValueError(
            f"{count} passages cannot fit {dimension} dimensions: give at least as many, or a smaller "
            "retriever_proj_size."
        )
    rows = np.sort(np.random.default_rng(seed).choice(len(passages), count, replace=False))
    components = principal_components(_pooled(towers[0], passages, rows), dimension)
    for tower in towers:
        set_projection(tower, components)
    return components.kept


@dataclass(frozen=True)
class Components:
    """
    The principal components of vectors.

    Args:
        directions (`np.ndarray`, float64 `[D, H]`): Orthonormal, those of the largest variance first.
        mean (`np.ndarray`, float64 `[H]`): Of the vectors.
        kept (`float`): The share of the variance that lies in them.
    """

    directions: np.ndarray
    mean: np.ndarray
    kept: float


def principal_components(vectors: np.ndarray, dimension: int) -> Components:
    """
    The directions in which vectors differ most.

    Args:
        vectors (`np.ndarray` of shape `[R, H]`): At least `dimension` of them.
        dimension (`int`): How many directions, D.
    """
    # float64: the covariance of unit vectors has small eigenvalues that float32 mixes up.
    vectors = np.asarray(vectors, np.float64)
    mean = vectors.mean(axis=0)
    values, found = np.linalg.eigh(np.cov((vectors - mean).T))
    directions = found[:, ::-1][:, :dimension].T.copy()
    # The sign of a component is arbitrary; the largest entry says it, so that machines agree.
    directions *= np.sign(directions[np.arange(dimension), np.abs(directions).argmax(axis=1)])[:, None]
    return Components(directions, mean, float(values[::-1][:dimension].sum() / values.sum()))


@torch.no_grad()
def set_projection(tower: RealmEmbedder, components: Components) -> None:
    """
    Make principal components a tower's linear layer.

    Args:
        tower ([`RealmEmbedder`]): With a linear layer of that size.
        components ([`Components`]): Of what it pools.
    """
    layer = tower.cls.dense
    assert isinstance(layer, nn.Linear)
    layer.weight.copy_(torch.from_numpy(components.directions))
    layer.bias.copy_(torch.from_numpy(-components.directions @ components.mean))


def _pooled(tower: RealmEmbedder, passages: PassageTokens, rows: np.ndarray) -> np.ndarray:
    """What the projection would read, float64 `[R, H]`."""
    smallest, largest = CHUNK_TOKENS.get(tower.device.type, CHUNK_TOKENS["cuda"])
    result = np.empty((len(rows), tower.config.hidden_size))
    with evaluating(tower):
        for chunk in plan_chunks(passages.lengths[rows].tolist(), largest, smallest):
            padded = to_device(pad_passages(tower, passages, rows[chunk]), tower.device)
            result[chunk] = tower.pooled(**padded).double().cpu().numpy()
    return result
