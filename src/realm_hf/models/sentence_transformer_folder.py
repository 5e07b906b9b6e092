"""Embedders as folders of sentence-transformers, written and read without that library.

    FOLDER/modules.json                       the modules, in order: Transformer, Pooling, Dense, LayerNorm, Normalize
    FOLDER/config_sentence_transformers.json  dot product as similarity
    FOLDER/config.json, model.safetensors     the encoder, with its tokenizer

Its layer normalization has epsilon 1e-5 and no setting for it. An embedder's is smaller, so that the layer before is
written larger by a power of two, which changes no bit of a mantissa: (s x - s m) / sqrt(s^2 v + 1e-5) is
(x - m) / sqrt(v + 1e-5 / s^2). Reading divides by the same power.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn

_PACKAGE = "sentence_transformers.models."  # the names that all its versions resolve
_NORM_EPSILON = 1e-5  # of torch's LayerNorm
_POOLINGS = ("cls", "mean")
_LEGACY_POOLINGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


@dataclass
class FolderModules:
    """
    What an embedder does after its encoder.

    Args:
        pooling (`str`): `"cls"` or `"mean"`.
        pooler (`nn.Linear`, *optional*): A layer with tanh on what was pooled: BERT's pooler.
        dense (`nn.Linear`, *optional*): The projection.
        norm (`nn.LayerNorm`, *optional*): Its normalization, with the epsilon of the folder.
        normalize (`bool`, *optional*, defaults to `False`): Whether embeddings have length 1.
        encoder (`Path`, *optional*): Where the encoder lies.
        max_length (`int`, *optional*): Where texts are cut.
    """

    pooling: str
    pooler: nn.Linear | None = None
    dense: nn.Linear | None = None
    norm: nn.LayerNorm | None = None
    normalize: bool = False
    encoder: Path = field(default_factory=Path)
    max_length: int | None = None


def norm_scale(epsilon: float) -> float:
    """The power of two that a layer before a normalization with this epsilon is written larger by."""
    return 2.0 ** round(math.log2(math.sqrt(_NORM_EPSILON / epsilon)))


def is_sentence_transformer(folder: Path) -> bool:
    """Whether a folder is one of sentence-transformers."""
    return (folder / "modules.json").is_file()


def write_modules(folder: Path, modules: FolderModules, *, prefix: str = "") -> list[tuple[str, str]]:
    """
    Write all modules but the encoder.

    Args:
        folder (`Path`): Where to.
        modules ([`FolderModules`]): What to write; the scale of a layer before a normalization is the caller's.
        prefix (`str`, *optional*, defaults to `""`): Of the folders' names: `"query_"`.

    Returns:
        `list[tuple[str, str]]`: Kind and folder of each module behind the encoder, in order.
    """
    written: list[tuple[str, str]] = []

    def add(kind: str, content: dict[str, Any] | None, weights: dict[str, torch.Tensor] | None = None) -> None:
        name = f"{prefix}{len(written) + 1}_{kind}"
        (folder / name).mkdir(parents=True)
        if content is not None:
            _write(folder / name / "config.json", content)
        if weights is not None:
            kept = {key: tensor.detach().float().cpu().contiguous().clone() for key, tensor in weights.items()}
            save_file(kept, folder / name / "model.safetensors", {"format": "pt"})
        written.append((kind, name))

    first = modules.pooler or modules.dense or modules.norm
    size = first.weight.shape[-1] if first is not None else modules_size(modules)
    add(
        "Pooling",
        {
            "word_embedding_dimension": size,
            **{name: kind == modules.pooling for name, kind in _LEGACY_POOLINGS.items()},
        },
    )
    for layer, activation in ((modules.pooler, "activation.Tanh"), (modules.dense, "linear.Identity")):
        if layer is not None:
            add(
                "Dense",
                {
                    "in_features": layer.in_features,
                    "out_features": layer.out_features,
                    "bias": True,
                    "activation_function": f"torch.nn.modules.{activation}",
                },
                {"linear.weight": layer.weight, "linear.bias": layer.bias},
            )
    if modules.norm is not None:
        weights: dict[str, torch.Tensor] = {"norm.weight": modules.norm.weight, "norm.bias": modules.norm.bias}
        add("LayerNorm", {"dimension": len(modules.norm.weight)}, weights)
    if modules.normalize:
        add("Normalize", None)
    return written


def modules_size(modules: FolderModules) -> int:
    """Size of the encoder's hidden states, from its configuration."""
    config = json.loads((modules.encoder / "config.json").read_text(encoding="utf-8"))
    return int(config.get("hidden_size", config.get("dim", 0)))


def write_description(folder: Path, modules: list[tuple[str, str]]) -> None:
    """Write what makes a folder one of sentence-transformers: its modules, kind and path each, and the similarity."""
    described = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_PACKAGE}{kind}"}
        for number, (kind, path) in enumerate(modules)
    ]
    _write(folder / "modules.json", described)
    _write(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": {"query": "", "document": ""},
            "default_prompt_name": None,
            "similarity_fn_name": "dot",
        },
    )


def write_router(folder: Path, routes: dict[str, list[tuple[str, str]]]) -> None:
    """Write the file of a router: of each route the modules, kind and folder each."""
    content = {
        "types": {path: f"{_PACKAGE}{kind}" for route in routes.values() for kind, path in route},
        "structure": {name: [path for _, path in route] for name, route in routes.items()},
        "parameters": {"default_route": "document", "allow_empty_key": True},
    }
    _write(folder / "router_config.json", content)


def write_encoder_settings(folder: Path, max_length: int) -> None:
    """Write where the encoder's texts are cut."""
    _write(folder / "sentence_bert_config.json", {"max_seq_length": max_length, "do_lower_case": False})


def read_modules(folder: Path) -> FolderModules:
    """
    Read a folder of sentence-transformers with one encoder.

    Raises:
        `ValueError`: It has a module that an embedder has no place for, or in another order.
    """
    listed = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    kinds = [str(module["type"]).rsplit(".", 1)[-1] for module in listed]
    paths = [folder / module["path"] for module in listed]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise _unreadable(folder, kinds, "it must begin with Transformer and Pooling")
    pooling = json.loads((paths[1] / "config.json").read_text(encoding="utf-8"))
    found = FolderModules(pooling=_pooling_of(folder, kinds, pooling), encoder=paths[0])
    settings = paths[0] / "sentence_bert_config.json"
    if settings.is_file():
        found.max_length = json.loads(settings.read_text(encoding="utf-8")).get("max_seq_length")
    for kind, path in zip(kinds[2:], paths[2:], strict=True):
        if found.normalize or (found.norm is not None and kind != "Normalize"):
            raise _unreadable(folder, kinds, f"nothing but Normalize may follow, and {kind} does")
        if kind == "Normalize":
            found.normalize = True
        elif kind == "LayerNorm":
            found.norm = _read_norm(path)
        elif kind == "Dense":
            _read_dense(folder, kinds, path, found)
        else:
            raise _unreadable(folder, kinds, f"an embedder has no {kind}")
    if found.norm is not None and found.dense is None:
        found.dense = _identity(len(found.norm.weight))
    return found


def _identity(size: int) -> nn.Linear:
    """The layer that an embedder has before its normalization, where the folder has none."""
    layer = nn.Linear(size, size)
    with torch.no_grad():
        layer.weight.copy_(torch.eye(size))
        layer.bias.zero_()
    return layer


def _pooling_of(folder: Path, kinds: list[str], content: dict[str, Any]) -> str:
    named = content.get("pooling_mode")
    if named is None:
        active = [name for name, value in content.items() if name.startswith("pooling_mode_") and value]
        named = _LEGACY_POOLINGS.get(active[0], active[0]) if len(active) == 1 else active
    if named not in _POOLINGS:
        raise _unreadable(folder, kinds, f"its pooling is {named}, and an embedder's 'cls' or 'mean'")
    return str(named)


def _read_dense(folder: Path, kinds: list[str], path: Path, found: FolderModules) -> None:
    content = json.loads((path / "config.json").read_text(encoding="utf-8"))
    weights = _weights(path)
    layer = nn.Linear(int(content["in_features"]), int(content["out_features"]))
    bias = weights.get("linear.bias")
    with torch.no_grad():
        layer.weight.copy_(weights["linear.weight"])
        layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)
    activation = str(content.get("activation_function", "torch.nn.modules.activation.Tanh")).rsplit(".", 1)[-1]
    if activation == "Tanh" and found.pooler is None and found.dense is None and found.pooling == "cls":
        found.pooler = layer
    elif activation == "Identity" and found.dense is None:
        found.dense = layer
    else:
        raise _unreadable(folder, kinds, f"an embedder has no such Dense (activation {activation}) at that place")


def _read_norm(path: Path) -> nn.LayerNorm:
    weights = _weights(path)
    norm = nn.LayerNorm(len(weights["norm.weight"]), eps=_NORM_EPSILON)
    with torch.no_grad():
        norm.weight.copy_(weights["norm.weight"])
        norm.bias.copy_(weights["norm.bias"])
    return norm


def _weights(path: Path) -> dict[str, torch.Tensor]:
    file = path / "model.safetensors"
    if not file.is_file():
        raise ValueError(f"{path} has no model.safetensors: pickled weights are not loaded; save it anew.")
    return load_file(file)


def _unreadable(folder: Path, kinds: list[str], why: str) -> ValueError:
    return ValueError(
        f"{folder} is a folder of sentence-transformers with {', '.join(kinds)}: {why}. Transformer, Pooling and, "
        "each at most once, Dense (without activation), LayerNorm and Normalize are read."
    )


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


__all__ = [
    "FolderModules",
    "is_sentence_transformer",
    "norm_scale",
    "read_modules",
    "write_description",
    "write_encoder_settings",
    "write_modules",
    "write_router",
]
