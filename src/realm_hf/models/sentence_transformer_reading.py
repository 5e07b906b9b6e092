"""Folders of sentence-transformers, read without that library: what follows the encoder, and the prompts.

An embedder that starts from such a folder is read as the folder says, unless the caller says otherwise.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer
from transformers.utils import logging
from transformers.utils.hub import cached_file

from realm_hf.models.prompts import check_prompts
from realm_hf.models.sentence_transformer_folder import (
    NORM_EPSILON,
    POOLING_FLAGS,
    FolderModules,
    modules_size,
    norm_scale,
)

__all__ = ["Route", "fill_head", "find_folder", "own_reading", "read_modules", "reading_fields"]

logger = logging.get_logger(__name__)

Route = Literal["query", "document"]

_MODULES, _SETTINGS = "modules.json", "config_sentence_transformers.json"
_ENCODER, _TOKENIZER = "sentence_bert_config.json", "tokenizer_config.json"
_ROLES = {"query_prompt": ("query",), "document_prompt": ("document", "passage", "corpus")}
_ABSENT_IS_FINE: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
}


def find_folder(place: str | PathLike[str]) -> Path | None:
    """
    The folder of sentence-transformers at a place; `None` if what lies there is another thing.

    Args:
        place (`str` or `PathLike`): A directory, or a Hub id, whose modules are fetched, without the encoder.
    """
    name = str(place)
    if Path(name).is_dir():
        return Path(name) if (Path(name) / _MODULES).is_file() else None
    found = cached_file(name, _MODULES, **_ABSENT_IS_FINE)
    if found is None:
        return None
    folder = Path(found).parent
    for file in (_SETTINGS, _ENCODER, _TOKENIZER, "config.json"):
        cached_file(name, file, **_ABSENT_IS_FINE)
    for module in _json(folder / _MODULES)[1:]:
        for file in ("config.json", "model.safetensors"):
            cached_file(name, f"{module['path']}/{file}", **_ABSENT_IS_FINE)
    return folder


def read_modules(folder: Path, route: Route | None = None) -> FolderModules:
    """
    Read what follows the encoder in a folder of sentence-transformers, and how its texts are prepared.

    Args:
        folder (`Path`): With `modules.json`.
        route (`str`, *optional*): `"query"` or `"document"`: which tower of a folder with two, a Router.

    Raises:
        `ValueError`: It has a module that an embedder has no place for, or in another order; or it has two towers and
            `route` is not given, or the other way round.
    """
    if not (folder / _MODULES).is_file():
        raise ValueError(f"{folder} has no modules.json: give a folder that sentence-transformers has saved.")
    chain = _chain(folder, route)
    kinds, paths = [kind for kind, _ in chain], [path for _, path in chain]
    if kinds[:2] != ["Transformer", "Pooling"]:
        raise _unreadable(folder, kinds, "it must begin with Transformer and Pooling")
    pooling = _json(paths[1] / "config.json")
    settings, tokenizer = _settings(paths[0] / _ENCODER), _settings(paths[0] / _TOKENIZER)
    if settings.get("do_lower_case") and not tokenizer.get("do_lower_case"):
        raise _unreadable(folder, kinds, "its texts are put in lower case, and not by its tokenizer")
    found = FolderModules(
        pooling=_pooling_of(folder, kinds, pooling),
        encoder=paths[0],
        max_length=_max_length(settings, tokenizer),
        prompts=_prompts(folder),
        document_format=str(_settings(folder / _SETTINGS).get("document_format", "pair")),
    )
    if found.prompts and not pooling.get("include_prompt", True):
        raise _unreadable(folder, kinds, "its pooling leaves the prompt out, and an embedder's takes it in")
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


def reading_fields(modules: FolderModules) -> dict[str, Any]:
    """Fields of [`RealmConfig`] that make an embedder read as a folder is."""
    return {
        "pooling_mode": modules.pooling,
        "normalize": modules.normalize,
        "projection": "layer_norm" if modules.norm is not None else "linear" if modules.dense is not None else "none",
        "retriever_proj_size": modules_size(modules) if modules.dense is None else modules.dense.out_features,
        **modules.prompts,
        **({} if modules.document_format == "pair" else {"document_format": modules.document_format}),
    }


def own_reading(place: str | PathLike[str], given: Mapping[str, Any]) -> tuple[dict[str, Any], FolderModules | None]:
    """
    What an embedder that starts from a checkpoint is made of; says in one line what it was read from.

    Args:
        place (`str` or `PathLike`): Hub id or directory of the checkpoint.
        given (`Mapping[str, Any]`): Fields of [`RealmConfig`] that the caller gives: these win.

    Returns:
        The fields, and the folder's modules if it is one of sentence-transformers. Where the caller's projection is
        another one, the modules come without theirs. A caller that gives both `pooling_mode` and `projection` says how
        the encoder is read: of the folder there are the prompts then, and no modules.

    Raises:
        `ValueError`: The folder has modules that an embedder has no place for, or two towers.
    """
    folder = find_folder(place)
    if folder is None:
        return dict(given), None
    encoder = _chain(folder, None)[0][1] if Path(place).is_dir() else place
    prompts = {name: prompt for name, prompt in _prompts(folder).items() if name not in given}
    if prompts:
        check_prompts(prompts, AutoTokenizer.from_pretrained(encoder, trust_remote_code=False))
    if {"pooling_mode", "projection"} <= set(given):
        fields: dict[str, Any] = {**prompts, **given}
        logger.info("%s is read as the caller says: %s", place, _described(fields, given))
        return fields, None
    modules = read_modules(folder)
    own = reading_fields(modules)
    fields = {**own, **given}
    size = own["retriever_proj_size"]
    if "projection" in given and given["projection"] != own["projection"] and "retriever_proj_size" not in given:
        del fields["retriever_proj_size"]
    elif fields["projection"] == "none" and fields["retriever_proj_size"] != size and "projection" not in given:
        fields["projection"] = "linear"  # which starts as a map that keeps angles
    if fields["projection"] != own["projection"] or fields.get("retriever_proj_size") != size:
        modules.dense = modules.norm = None
    logger.info("%s is read as sentence-transformers reads it: %s", place, _described(fields, given))
    return fields, modules


def _described(fields: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    names = ("pooling_mode", "projection", "retriever_proj_size", "normalize", "query_prompt", "document_prompt")
    parts = [f"{name}={fields[name]!r}" + (" (given)" if name in given else "") for name in names if name in fields]
    return ", ".join(parts)


@torch.no_grad()
def fill_head(head: Any, modules: FolderModules) -> None:
    """Write a folder's projection and normalization into those of an embedder, a [`RealmScorerProjection`]."""
    if modules.dense is not None:
        head.dense.load_state_dict(modules.dense.state_dict())
    if modules.norm is not None:
        head.LayerNorm.load_state_dict(modules.norm.state_dict())
        scale = norm_scale(head.LayerNorm.eps)
        head.dense.weight.div_(scale)
        head.dense.bias.div_(scale)


def _chain(folder: Path, route: Route | None) -> list[tuple[str, Path]]:
    """Kind and place of each module."""
    listed = _json(folder / _MODULES)
    chain = [(_kind(module["type"]), folder / module["path"]) for module in listed]
    if [kind for kind, _ in chain] != ["Router"]:
        if route is not None:
            raise ValueError(f"{folder} has one tower, not a Router of two: leave `route` out.")
        return chain
    content = _json(chain[0][1] / "router_config.json")
    routes = content["structure"]
    if route not in routes:
        raise ValueError(
            f"{folder} has the towers {', '.join(sorted(routes))}, and `route` is {route!r}: say which is read, by "
            "`from_sentence_transformer`."
        )
    return [(_kind(content["types"][path]), chain[0][1] / path) for path in routes[route]]


def _kind(path: str) -> str:
    return str(path).rsplit(".", 1)[-1]


def _settings(file: Path) -> dict[str, Any]:
    """What a file says that may be absent."""
    content: dict[str, Any] = _json(file) if file.is_file() else {}
    return content


def _prompts(folder: Path) -> dict[str, str]:
    """What `encode_query` and `encode_document` put before texts; where they have no prompt, the default one."""
    settings = _settings(folder / _SETTINGS)
    named: Mapping[str, Any] = settings.get("prompts") or {}
    default = named.get(settings.get("default_prompt_name") or "") or ""
    found = {}
    for role, names in _ROLES.items():
        here = [named[name] or "" for name in names if name in named]
        found[role] = next(filter(None, here), "") if here else default
    return {role: prompt for role, prompt in found.items() if prompt}


def _max_length(settings: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> int | None:
    """Where texts are cut; older versions of the library wrote it beside the tokenizer's own length."""
    length = settings.get("max_seq_length") or tokenizer.get("model_max_length")
    return None if length is None else int(length)


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
        named = POOLING_FLAGS.get(active[0], active[0]) if len(active) == 1 else active
    if named not in POOLING_FLAGS.values():
        raise _unreadable(folder, kinds, f"its pooling is {named}, and an embedder's 'cls' or 'mean'")
    return str(named)


def _read_dense(folder: Path, kinds: list[str], path: Path, found: FolderModules) -> None:
    content = _json(path / "config.json")
    weights = _weights(path)
    rows, columns = weights["linear.weight"].shape
    layer = nn.Linear(columns, rows)
    bias = weights.get("linear.bias")
    with torch.no_grad():
        layer.weight.copy_(weights["linear.weight"])
        layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)
    activation = _kind(content.get("activation_function", "torch.nn.modules.activation.Tanh"))
    if activation == "Tanh" and found.pooler is None and found.dense is None and found.pooling == "cls":
        found.pooler = layer
    elif activation == "Identity" and found.dense is None:
        found.dense = layer
    else:
        raise _unreadable(folder, kinds, f"an embedder has no such Dense (activation {activation}) at that place")


def _read_norm(path: Path) -> nn.LayerNorm:
    weights = _weights(path)
    norm = nn.LayerNorm(len(weights["norm.weight"]), eps=NORM_EPSILON)
    with torch.no_grad():
        norm.weight.copy_(weights["norm.weight"])
        norm.bias.copy_(weights["norm.bias"])
    return norm


def _weights(path: Path) -> dict[str, torch.Tensor]:
    file = path / "model.safetensors"
    if not file.is_file():
        raise ValueError(f"{path} has no model.safetensors: pickled weights are not loaded; save it anew.")
    return load_file(file)


def _json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def _unreadable(folder: Path, kinds: list[str], why: str) -> ValueError:
    return ValueError(
        f"{folder} is a folder of sentence-transformers with {', '.join(kinds)}: {why}. Transformer, Pooling and, "
        "each at most once, Dense (without activation), LayerNorm and Normalize are read."
    )
