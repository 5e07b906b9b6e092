"""The towers of a publication: safetensors only, and only if the weights are those that the configuration asks for.

A configuration that claims a vocabulary of a billion words would be allocated before anybody sees that the file has no
such weights; so shapes are compared first, on a device without memory. And of its entries only those are read that
say what a tower computes: labels, quantizers, and attention from another repository are not among them.
"""

from __future__ import annotations

import json
import math
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig

from realm_hf.hub.belonging import check_fingerprint
from realm_hf.hub.hub_files import HubFiles
from realm_hf.hub.manifest import HubManifest
from realm_hf.hub.own_copies import own_copy
from realm_hf.hub.published_encoders import LARGEST_NUMBER, MOST_LAYERS, read_encoder
from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.fingerprints import state_fingerprint
from realm_hf.models.modeling_embedder import RealmEmbedder
from realm_hf.models.tower_files import TowerSource, load_model_tower
from realm_hf.untrusted.checks import HubArtefactError, human_bytes
from realm_hf.untrusted.refusing import refusing

__all__ = ["load_published_tower", "query_tower_source", "read_tower_configuration"]

_LARGEST_CONFIGURATION, _LARGEST_HEADER = 1 << 20, 8 << 20
_ENTRIES = {field.name for field in fields(RealmConfig)} - {field.name for field in fields(PreTrainedConfig)}
_TYPES = ("float16", "bfloat16", "float32", "float64")


def load_published_tower(
    source: HubFiles, manifest: HubManifest, part: str, *, force: bool = False
) -> RealmEmbedder | None:
    """
    Load a tower of a publication in evaluation mode, from a copy in the cache; `None` if it has none.

    Args:
        source ([`HubFiles`]): Where it is.
        manifest ([`HubManifest`]): Its description.
        part (`str`): The folder: `"embedder"` for the passage tower, `"query_embedder"` for the query tower.
        force (`bool`, *optional*, defaults to `False`): Warn of other weights than the published ones.

    Raises:
        HubArtefactError: There are other files than configuration and safetensors, they are damaged or do not fit
            together, or it is not the tower that belongs to the index.
    """
    if not manifest.below(part):
        return None
    which = "query" if part == "query_embedder" else "passage"
    tower = _read_tower(source, manifest, part, which)
    if tower.config.retriever_proj_size != manifest.dimension:
        raise HubArtefactError(
            f"The {which} tower of {source.label} makes embeddings of {tower.config.retriever_proj_size} numbers, the "
            f"published ones have {manifest.dimension}."
        )
    found = state_fingerprint(tower.state_dict())
    expected = manifest.fingerprints.get(f"{which}_tower")
    check_fingerprint(f"The {which} tower of {source.label}", expected, found, force=force)
    return tower


def query_tower_source(
    source: HubFiles, manifest: HubManifest, model: HubFiles | None, expected: str | None, *, force: bool
) -> TowerSource:
    """
    What loads the query tower when it is first needed: from its own files, as the passage tower, or out of the model.

    Args:
        source ([`HubFiles`]): Where the retriever is.
        manifest ([`HubManifest`]): Its description.
        model ([`HubFiles`], *optional*): The model's repository, if the retriever was found by way of it.
        expected (`str`, *optional*): The fingerprint that the model's query tower was published with.
        force (`bool`): Warn of other weights than the published ones.
    """
    for folder in ("query_embedder", "embedder"):
        if "query_tower" in manifest.fingerprints and manifest.below(folder):
            return partial(load_published_tower, source, manifest, folder, force=force)
    return None if model is None else partial(_load_query_tower_of, model, expected, force)


def _load_query_tower_of(model: HubFiles, expected: str | None, force: bool) -> RealmEmbedder:
    name = str(model.root) if model.repo_id is None else model.repo_id
    hub = {"token": model.token, "cache_dir": model.cache_dir, "local_files_only": model.local_files_only}
    tower = load_model_tower(name, **({} if model.repo_id is None else {"revision": model.revision, **hub}))
    found = state_fingerprint(tower.state_dict())
    check_fingerprint(f"The query tower of {model.label}", expected, found, force=force)
    return tower


def _read_tower(source: HubFiles, manifest: HubManifest, part: str, which: str) -> RealmEmbedder:
    names = manifest.below(part)
    described, weights = f"{part}/config.json", f"{part}/model.safetensors"
    if set(names) != {described, weights}:
        raise HubArtefactError(
            f"The {which} tower of {source.label} must be config.json and model.safetensors, but it is "
            f"{sorted(names)}: pickled weights are not loaded."
        )
    folder = own_copy(source, manifest, part, lambda _: None)
    with refusing(f"The {which} tower of {source.label}"):
        config = read_tower_configuration(folder / Path(described).name)
        _check_weights(folder / Path(weights).name, config)
        return RealmEmbedder.from_pretrained(folder, config=config, use_safetensors=True).eval()


def read_tower_configuration(path: Path) -> RealmConfig:
    """
    The entries of a stranger's `config.json` that say what a tower computes, each within bounds.

    Raises:
        ValueError: Names the entry that is not.
    """
    if path.stat().st_size > _LARGEST_CONFIGURATION:
        raise ValueError(f"its configuration has {human_bytes(path.stat().st_size)}")
    content: Any = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict) or content.get("model_type") != "realm":
        raise ValueError("its model_type is not 'realm'")
    read = {name: content[name] for name in sorted((_ENTRIES - set(RealmConfig.sub_configs)) & set(content))}
    for name, value in read.items():
        number = isinstance(value, int | float)
        ids = name.endswith("_prompt_ids") and isinstance(value, list) and all(type(part) is int for part in value)
        if not (value is None or number or ids or isinstance(value, str)) or (
            number and not (math.isfinite(value) and abs(value) <= LARGEST_NUMBER)
        ):
            raise ValueError(f"{name} is {str(value)[:80]}")
    layers, heads = read.get("num_hidden_layers", 1), read.get("num_attention_heads", 1)
    if not (isinstance(layers, int) and isinstance(heads, int) and 0 < layers <= MOST_LAYERS and heads > 0):
        raise ValueError(f"it has {layers} layers and {heads} heads; there are 1 to {MOST_LAYERS} layers")
    dtype = content.get("dtype", content.get("torch_dtype", "float32"))
    if dtype not in _TYPES:
        raise ValueError(f"dtype is {str(dtype)[:80]}, not one of {_TYPES}")
    encoders: dict[str, Any] = {name: read_encoder(content.get(name), name) for name in RealmConfig.sub_configs}
    return RealmConfig(**read, **encoders, dtype=dtype)


def _check_weights(path: Path, config: RealmConfig) -> None:
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    if header > _LARGEST_HEADER:
        raise ValueError(f"its weights have a header of {header} bytes; at most {_LARGEST_HEADER} are read")
    with safe_open(path, framework="pt") as tensors:
        found = {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
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
