"""Encoders that a stranger's tower may name: kinds that transformers has, each entry of them within bounds.

A kind that is not listed is refused even where transformers has it. Of each kind in the list it was read what its
configuration can make it do: its layers are counted by one entry, and all that is large is a weight, whose shape is
compared before it is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields

from transformers import CONFIG_MAPPING, PreTrainedConfig

from realm_hf.models.any_encoder import check_is_encoder

__all__ = ["LARGEST_NUMBER", "MOST_LAYERS", "read_encoder"]

LARGEST_NUMBER = 1 << 31
MOST_LAYERS = 256
"""Of a tower; BERT's largest has 24. Each takes a hundredth of a second to make, before its weights are compared."""
_MOST_POSITIONS = 1 << 20  # some encoders number them in a buffer, which is no weight
_MOST_INNER, _DEEPEST, _LONGEST_TEXT = 1024, 3, 200

_KINDS = (
    "bert", "camembert", "deberta", "deberta-v2", "distilbert", "electra", "modernbert", "mpnet", "roberta",
    "xlm-roberta",
)  # fmt: skip
_NO_FIELDS = frozenset(
    {
        "attention_head_size", "conv_act", "conv_groups", "conv_kernel_size", "embedding_size", "norm_rel_ebd",
        "position_buckets", "share_att_key", "talking_head",
    }
)  # fmt: skip
"""Entries of DeBERTa that are no fields of its configuration, but change what it computes."""
_LEFT_OUT = frozenset({"sinusoidal_pos_embds"})
"""Computed number by number for as many positions as a file claims; what is computed is then read from the weights."""


def read_encoder(content: object, name: str) -> PreTrainedConfig | None:
    """
    The configuration of an encoder, of the entries that say what it computes.

    Args:
        content (`object`): What stands in a stranger's `config.json`; `None` for no encoder.
        name (`str`): Under which name: `"embedder_config"`.

    Raises:
        ValueError: It is of a kind that is not read from strangers, or an entry is beyond bounds.
    """
    if content is None:
        return None
    kind = content.get("model_type") if isinstance(content, Mapping) else None
    if not isinstance(content, Mapping) or kind not in _KINDS:
        raise ValueError(
            f"{name} is of type {str(kind)[:80]!r}; read from publications are {', '.join(_KINDS)}. Load another one "
            "from its own checkpoint, if you trust it"
        )
    configuration = CONFIG_MAPPING[str(kind)]
    common = {field.name for field in fields(PreTrainedConfig)}
    known = {field.name for field in fields(configuration)} - common | _NO_FIELDS
    read = {entry: content[entry] for entry in sorted((known - _LEFT_OUT) & set(content))}
    for entry, value in read.items():
        _check_plain(value, f"{name}.{entry}", 0)
        if entry.endswith("_layers") and not (type(value) is int and 0 < value <= MOST_LAYERS):
            raise ValueError(f"{name} has {value} layers; there are 1 to {MOST_LAYERS}")
        if entry == "max_position_embeddings" and not (type(value) is int and 0 < value <= _MOST_POSITIONS):
            raise ValueError(f"{name} has {value} positions; there are 1 to {_MOST_POSITIONS}")
    config = configuration.from_dict(read)
    check_is_encoder(config, name)
    return config


def _check_plain(value: object, name: str, depth: int) -> None:
    """Numbers, short texts, and short lists and mappings of them."""
    if isinstance(value, Mapping | list):
        if depth == _DEEPEST or len(value) > _MOST_INNER:
            raise ValueError(f"{name} has {len(value)} entries, {depth + 1} deep")
        for inner in [*value, *value.values()] if isinstance(value, Mapping) else value:
            _check_plain(inner, name, depth + 1)
        return
    number = isinstance(value, int | float)
    if not (value is None or number or isinstance(value, str)):
        raise ValueError(f"{name} is a {type(value).__name__}")
    if number and not (math.isfinite(value) and abs(value) <= LARGEST_NUMBER):  # type: ignore[arg-type]
        raise ValueError(f"{name} is {value}")
    if isinstance(value, str) and len(value) > _LONGEST_TEXT:
        raise ValueError(f"{name} is a text of {len(value)} characters")
