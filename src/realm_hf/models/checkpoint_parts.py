"""Which part of a checkpoint a model class reads, and a check that nothing in it is left random.

transformers fills what a checkpoint lacks with random weights, and reports each of them. Most of our models are parts
of one another, so that a checkpoint of one class is often given to another: it reads its part, or refuses in words.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import nn
from transformers import AutoModelForPreTraining, AutoModelForQuestionAnswering, PreTrainedConfig
from transformers.utils import logging

from realm_hf.models.places import ANSWERING, CONFIG_FILE, PRE_TRAINING, architectures_in, check_kind

__all__ = ["check_weights", "load_part", "part_of", "without_prefix"]

logger = logging.get_logger(__name__)

_WHOLES = {PRE_TRAINING: AutoModelForPreTraining, ANSWERING: AutoModelForQuestionAnswering}
_PARTS = {
    ("RealmEmbedder", PRE_TRAINING): "embedder",
    ("RealmEmbedder", ANSWERING): "embedder",
    ("RealmKnowledgeAugEncoder", PRE_TRAINING): "encoder",
    ("RealmReader", ANSWERING): "reader",
}
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
_NAMED = 3


def part_of(wanted: str, place: str | PathLike[str], arguments: Mapping[str, Any]) -> tuple[str, str] | None:
    """
    The larger model of which a checkpoint holds the wanted part.

    Args:
        wanted (`str`): The class that is loaded.
        place (`str` or `PathLike`): Hub id or directory of the checkpoint.
        arguments (`Mapping[str, Any]`): Of `from_pretrained`.

    Returns:
        The class of the checkpoint and the name of the part in it; `None` where the checkpoint is the wanted model's
        own, or of a class that is not known here.

    Raises:
        ValueError: It is of a kind that lacks what the class needs, see [`~places.check_kind`].
    """
    model_type, found = _described(place, arguments)
    check_kind(wanted, found, str(place), model_type)
    return next(((kind, _PARTS[wanted, kind]) for kind in found if (wanted, kind) in _PARTS), None)


def _described(place: str | PathLike[str], arguments: Mapping[str, Any]) -> tuple[str | None, list[str]]:
    """`model_type` and `architectures` of a directory's `config.json`, of the one already read, or of the Hub's."""
    folder = Path(place) / (arguments.get("subfolder") or "")
    config = arguments.get("config")
    if folder.is_dir():
        if not (folder / CONFIG_FILE).is_file():
            return None, []
        content, _ = PreTrainedConfig.get_config_dict(folder)
        return content.get("model_type"), architectures_in(folder)
    if isinstance(config, PreTrainedConfig) and config.architectures:
        return config.model_type, list(config.architectures)
    hub = {name: arguments[name] for name in _HUB_ARGUMENTS if name in arguments}
    content, _ = PreTrainedConfig.get_config_dict(place, **hub)
    return content.get("model_type"), list(content.get("architectures") or [])


def load_part(whole: str, part: str, place: str | PathLike[str], **arguments: Any) -> tuple[Any, dict[str, Any]]:
    """
    A part of a saved model, loaded with the whole of it.

    (`key_mapping` was rejected: transformers turns it round when the part is saved.)

    Args:
        whole (`str`): Class of the model.
        part (`str`): Name of the part.
        place (`str` or `PathLike`): Where the model is.
        arguments (*optional*): Of `from_pretrained`.

    Returns:
        The part, and transformers' account of its loading.
    """
    model, report = _WHOLES[whole].from_pretrained(place, **arguments, output_loading_info=True)
    return getattr(model, part), {key: without_prefix(value, part) for key, value in report.items()}


def without_prefix(names: Any, part: str) -> Any:
    """Of the entries of a loading report, those that begin with the part's name, without it."""
    kept = set()
    for entry in names:
        name, *shapes = entry if isinstance(entry, tuple) else (entry,)
        if name.startswith(f"{part}."):
            name = name.removeprefix(f"{part}.")
            kept.add((name, *shapes) if shapes else name)
    return kept


def check_weights(
    model: nn.Module, report: Mapping[str, Any], place: object, ignore_mismatched_sizes: bool = False
) -> None:
    """
    Refuse a model that is partly random; say in one line what of the checkpoint it has no place for.

    What nothing reads (see [`RealmPreTrainedModel.freeze_unread_parameters`]) may be missing: it is frozen by now.

    Args:
        model (`nn.Module`): As it was loaded.
        report (`Mapping[str, Any]`): transformers' account: `missing_keys`, `unexpected_keys`, `mismatched_keys`.
        place (`object`): Where it was loaded from, for the message.
        ignore_mismatched_sizes (`bool`, *optional*, defaults to `False`): Weights of other shapes may be random.

    Raises:
        ValueError: Weights are missing, or have other shapes than the configuration says.
    """
    kind, parameters = type(model).__name__, dict(model.named_parameters(remove_duplicate=False))
    lacking = [n for n in sorted(report["missing_keys"]) if n not in parameters or parameters[n].requires_grad]
    if lacking:
        raise ValueError(
            f"{place} lacks {len(lacking)} of the {len(parameters)} weights of {kind}, which would be random: "
            f"{_some(lacking)}. Check that it is the checkpoint you mean, and that no setting you pass asks for more "
            "than was saved (layers, a second tower); to start from a trained encoder, use `from_bert`."
        )
    shapes = [f"{name} is {tuple(saved)}, not {tuple(here)}" for name, saved, here in report["mismatched_keys"]]
    if shapes and not ignore_mismatched_sizes:
        raise ValueError(
            f"{place} has {len(shapes)} weights of other shapes than the configuration of {kind} says: "
            f"{_some(sorted(shapes))}. Pass no setting that changes them, such as `vocab_size` or `hidden_size`."
        )
    extra = sorted(report["unexpected_keys"])
    if extra:
        logger.warning(f"{place} has {len(extra)} weights that {kind} has no place for: {_some(extra)}")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
