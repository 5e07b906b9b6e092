"""Names of the original TensorFlow release in this package's words.

The release keeps its weights as TensorFlow checkpoints: pre-training under `module/...` (retriever) and `bert/`,
`cls/` (encoder), fine-tuning under `reader/...` and `module/module/module/...`, the index as `block_emb`. Only names
and the direction of matrices differ. Reading the files is left to whoever has a reader: none that is kept up works
without TensorFlow.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np
import torch

from realm_hf.legacy.checkpoint import EMBEDDINGS_NAME

__all__ = ["from_tensorflow", "parameter_name"]

_OPTIMIZER = re.compile(r"(^|/)(adam_[vm]|AdamWeightDecayOptimizer(_1)?|global_step)(/|$)")
# What a checkpoint calls the parts of each tower; the first that fits is taken.
_EMBEDDER = [
    (re.compile(r"^module/module/module/(?:module/)?bert/"), "realm/"),
    (re.compile(r"^module/module/module/(?:module/)?cls/predictions/"), "cls/predictions/"),
    (re.compile(r"^module/module/(?:module/)?(LayerNorm|dense)/"), r"cls/\1/"),
]
_READER = [
    (re.compile(r"^reader/module/bert/"), "realm/"),
    (re.compile(r"^reader/module/cls/"), "cls/"),
    (re.compile(r"^reader/dense/"), "qa_outputs/dense_intermediate/"),
    (re.compile(r"^reader/dense_1/"), "qa_outputs/dense_output/"),
    (re.compile(r"^reader/layer_normalization/"), "qa_outputs/layer_normalization/"),
]
_ENCODER = [(re.compile(r"^bert/"), "realm/"), (re.compile(r"^cls/predictions/"), "cls/predictions/")]
_TOWERS = {
    "RealmEmbedder": [("", _EMBEDDER)],
    "RealmScorer": [("embedder/", _EMBEDDER)],
    "RealmKnowledgeAugEncoder": [("", _ENCODER)],
    "RealmReader": [("", _READER)],
    "RealmForOpenQA": [("embedder/", _EMBEDDER), ("reader/", _READER), ("reader/", _ENCODER)],
}
_LEAVES = {"kernel": "weight", "gamma": "weight", "beta": "bias", "output_bias": "bias"}


def parameter_name(name: str, kind: str) -> str | None:
    """
    The parameter that a TensorFlow variable is.

    Args:
        name (`str`): The variable's name, without `:0`.
        kind (`str`): The model's class: `"RealmEmbedder"`, `"RealmScorer"`, `"RealmKnowledgeAugEncoder"`,
            `"RealmReader"` or `"RealmForOpenQA"`.

    Returns:
        `str`, or `None` if that model has no such parameter: an optimizer's state, another tower's weight, BERT's
        next-sentence head.

    Example:
    ```python
    >>> parameter_name("reader/module/bert/encoder/layer_3/attention/self/query/kernel", "RealmReader")
    'realm.encoder.layer.3.attention.self.query.weight'
    ```
    """
    if name == EMBEDDINGS_NAME and kind == "RealmForOpenQA":
        return name
    if _OPTIMIZER.search(name):
        return None
    for prefix, rules in _TOWERS[kind]:
        for pattern, replacement in rules:
            mapped, fits = pattern.subn(replacement, name)
            if fits:
                return _dotted(prefix + mapped)
    return None


def from_tensorflow(variables: Mapping[str, np.ndarray], kind: str) -> dict[str, torch.Tensor]:
    """
    A state dict from the variables of a TensorFlow checkpoint; matrices are transposed where `kernel` says so.

    Args:
        variables (`Mapping[str, np.ndarray]`): Name to value, from any reader of such checkpoints.
        kind (`str`): The model's class, as for [`parameter_name`].

    Returns:
        `dict[str, torch.Tensor]`: For `load_state_dict(..., strict=False)`: tied weights are there once, and a
        scorer's query tower is its embedder.
    """
    state = {}
    for name, value in variables.items():
        mapped = parameter_name(name, kind)
        if mapped is not None:
            array = np.asarray(value)
            state[mapped] = torch.from_numpy(np.ascontiguousarray(array.T if name.endswith("/kernel") else array))
    return state


def _dotted(path: str) -> str:
    parts = [re.sub(r"^([A-Za-z]+)_(\d+)$", r"\1.\2", _LEAVES.get(part, part)) for part in path.split("/")]
    if parts[-1].endswith("_embeddings"):
        parts.append("weight")
    return ".".join(parts)
