"""A published tower: safetensors only, and only if the weights are those that its configuration asks for.

A configuration that claims a vocabulary of a billion words would be allocated before anybody sees that the file has no
such weights; so shapes are compared first, on a device without memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig

from ..configuration_realm import RealmConfig
from ..hub_files import HubArtefactError
from ..modeling_embedder import RealmEmbedder

__all__ = ["load_tower"]

_LARGEST_NUMBER = 1 << 31


def load_tower(paths: Mapping[str, Path], where: str, folder: str = "embedder") -> RealmEmbedder:
    """
    Load a tower in evaluation mode.

    Args:
        paths (`Mapping[str, Path]`): Its files, by their names in the repository.
        where (`str`): The source, for messages.
        folder (`str`, *optional*, defaults to `"embedder"`): Its folder there: the passage tower's, or
            `"query_embedder"`.

    Raises:
        HubArtefactError: If there are other files than configuration and safetensors, if they do not fit together, or
            if they are damaged.
    """
    which = "query" if folder == "query_embedder" else "passage"
    described, weights = f"{folder}/config.json", f"{folder}/model.safetensors"
    if set(paths) != {described, weights}:
        raise HubArtefactError(
            f"The {which} tower of {where} must be config.json and model.safetensors, but it is {sorted(paths)}: "
            "pickled weights are not loaded."
        )
    try:
        config = _read_config(paths[described])
        with safe_open(paths[weights], framework="pt") as file:
            found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if config.num_hidden_layers > len(found):
            raise ValueError(f"it claims {config.num_hidden_layers} layers, and has {len(found)} tensors")
        with torch.device("meta"):
            expected = {name: list(tensor.shape) for name, tensor in RealmEmbedder(config).state_dict().items()}
        for name, shape in found.items():
            if expected.get(name) != shape:
                raise ValueError(f"tensor {name!r} has shape {shape}, its configuration asks for {expected.get(name)}")
        tied = {"cls.predictions.decoder.bias", "cls.predictions.bias", "cls.predictions.decoder.weight"}
        missing = sorted(set(expected) - set(found) - tied - {"realm.embeddings.position_ids"})
        if missing:
            raise ValueError(f"it lacks {missing[0]!r} and {len(missing) - 1} more")
        return RealmEmbedder.from_pretrained(paths[described].parent, config=config, use_safetensors=True).eval()
    except (ValueError, OSError, RuntimeError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise HubArtefactError(f"The {which} tower of {where} cannot be loaded: {error}") from error


def _read_config(path: Path) -> RealmConfig:
    content = json.loads(path.read_text(encoding="utf-8"))
    if content.get("model_type") != "realm":
        raise ValueError(f"its model_type is {content.get('model_type')!r}, not 'realm'")
    for name, value in content.items():
        if isinstance(value, int | float) and abs(value) > _LARGEST_NUMBER:
            raise ValueError(f"{name} is {value}")
    config = AutoConfig.from_pretrained(path.parent, trust_remote_code=False)
    if not isinstance(config, RealmConfig):
        raise TypeError(f"its configuration is a {type(config).__name__}")
    return config
