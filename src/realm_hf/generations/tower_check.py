"""Did this passage tower make these embeddings? Asked before an edit, before publishing, and by `realm-hf verify`.

A few passages are embedded again, and each embedding is compared with the stored one by how far it moved, as a share
of its length. Differences of single coordinates were rejected as the measure: what they may be depends on the
coordinate's size and on how many there are.

How far an honest tower moves an embedding depends on the numbers that were computed in. Measured on 200 passages, with
towers of MiniLM's size (pre-trained, and random with weights of 0.02 and 0.1) and tiny ones:

    float32, other batches           at most 0.000002    14 times float32's step of 2^-23
    float16 rows                     at most 0.0004      a third of float16's step of 2^-10
    tf32                             at most 0.003       3 times its step of 2^-10
    bfloat16, by autocast            at most 0.025       3 times its step of 2^-7
    bfloat16, weights cast as well   at most 0.030       4 times
    another tower                    at least 1.2
    the same, trained for 5 steps    0.012 to 0.05       35 steps: at least 0.3

So one factor on the step allows for all: twice what was found.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from realm_hf.generations.embedding import embed_passages

if TYPE_CHECKING:
    from realm_hf.data.passages.tokens import PassageTokens
    from realm_hf.models.modeling_embedder import RealmEmbedder

__all__ = ["tower_movements", "tower_tolerance"]

_STEPS = {"float32": 2.0**-23, "tf32": 2.0**-10, "bfloat16": 2.0**-7}
_STEPS_ALLOWED = 8
_LEAST = 2.0**-10  # rows may be stored as float16, and another device sums in another order


def tower_tolerance(encode_dtype: str = "bfloat16") -> float:
    """
    The largest movement of [`tower_movements`] that rounding explains.

    Args:
        encode_dtype (`str`, *optional*, defaults to `"bfloat16"`): The numbers that the embeddings were computed in,
            where they are known; else the coarsest there are.

    Returns:
        `float`: 0.001 for `"float32"`, 0.008 for `"tf32"` and 0.06 for `"bfloat16"`.
    """
    return max(_STEPS_ALLOWED * _STEPS[encode_dtype], _LEAST)


def tower_movements(
    tower: RealmEmbedder, passages: PassageTokens, stored: np.ndarray, *, rows: slice | np.ndarray = slice(None)
) -> np.ndarray:
    """
    How far a tower moves stored embeddings when it embeds their passages again.

    Args:
        tower ([`RealmEmbedder`]): The passage tower; it runs where it is, without dropout.
        passages ([`PassageStore`] or [`PassagesInMemory`]): The passages.
        stored (`np.ndarray` of shape `[n, D]`): The embeddings of `rows`.
        rows (`slice` or `np.ndarray` of row numbers, *optional*): Which passages; all by default.

    Returns:
        `np.ndarray` of shape `[n]`: The length of each difference as a share of the stored embedding's length.

    Raises:
        ValueError: A passage is too long for the tower, or its embedding holds NaN or infinity.
    """
    stored = np.asarray(stored, np.float32)
    again = embed_passages(tower, passages, rows=rows)
    return np.linalg.norm(again - stored, axis=1) / np.linalg.norm(stored, axis=1).clip(1e-12)
