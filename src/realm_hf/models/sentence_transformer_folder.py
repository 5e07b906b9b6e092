"""Embedders as folders of sentence-transformers, written without that library; [`sentence_transformer_reading`] reads.

    FOLDER/modules.json                       the modules, in order: Transformer, Pooling, Dense, LayerNorm, Normalize
    FOLDER/config_sentence_transformers.json  prompts; dot product as similarity
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
from safetensors.torch import save_file
from torch import nn
from transformers import BertTokenizer, PreTrainedTokenizerBase

from realm_hf.models.tokenization_realm import RealmTokenizer

_PACKAGE = "sentence_transformers.models."  # the names that all its versions resolve
NORM_EPSILON = 1e-5  # of torch's LayerNorm
POOLING_FLAGS = {"pooling_mode_cls_token": "cls", "pooling_mode_mean_tokens": "mean"}


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
        max_length (`int`, *optional*): Where texts are cut, in tokens.
        prompts (`dict[str, str]`, *optional*): `"query_prompt"` and `"document_prompt"`, those that are not empty.
        document_format (`str`, *optional*, defaults to `"pair"`): How titles are read; see [`RealmConfig`].
    """

    pooling: str
    pooler: nn.Linear | None = None
    dense: nn.Linear | None = None
    norm: nn.LayerNorm | None = None
    normalize: bool = False
    encoder: Path = field(default_factory=Path)
    max_length: int | None = None
    prompts: dict[str, str] = field(default_factory=dict)
    document_format: str = "pair"


def norm_scale(epsilon: float) -> float:
    """The power of two that a layer before a normalization with this epsilon is written larger by."""
    return 2.0 ** round(math.log2(math.sqrt(NORM_EPSILON / epsilon)))


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
            **{name: kind == modules.pooling for name, kind in POOLING_FLAGS.items()},
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


def write_description(
    folder: Path, modules: list[tuple[str, str]], prompts: dict[str, str], document_format: str = "pair"
) -> None:
    """
    Write what makes a folder one of sentence-transformers.

    Args:
        folder (`Path`): Where to.
        modules (`list[tuple[str, str]]`): Kind and path of each, in order.
        prompts (`dict[str, str]`): Of `"query"` and `"document"`; `encode_query` and `encode_document` use them.
        document_format (`str`, *optional*, defaults to `"pair"`): How titles are read, where it is not `"pair"`; that
            library passes over it.
    """
    described = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_PACKAGE}{kind}"}
        for number, (kind, path) in enumerate(modules)
    ]
    _write(folder / "modules.json", described)
    _write(
        folder / "config_sentence_transformers.json",
        {
            "model_type": "SentenceTransformer",
            "prompts": prompts,
            "default_prompt_name": None,
            "similarity_fn_name": "dot",
            **({} if document_format == "pair" else {"document_format": document_format}),
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


def save_plain_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save a tokenizer under the name of a class that transformers has, so that it loads without this package."""
    tokenizer.save_pretrained(folder)
    if isinstance(tokenizer, RealmTokenizer):
        file = folder / "tokenizer_config.json"
        _write(file, {**json.loads(file.read_text(encoding="utf-8")), "tokenizer_class": BertTokenizer.__name__})


def _write(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


__all__ = [
    "FolderModules",
    "norm_scale",
    "save_plain_tokenizer",
    "write_description",
    "write_encoder_settings",
    "write_modules",
    "write_router",
]
