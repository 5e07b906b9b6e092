"""The towers of a retriever: each is given, or lies somewhere, and is loaded when it is first needed.

Two belong to it. The passage tower made the index, and embeds passages that are added; the query tower embeds what is
asked. They are one and the same until fine-tuning moves the query tower only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.modeling_embedder import RealmEmbedder
from realm_hf.models.modeling_realm import RealmForPreTraining
from realm_hf.models.modeling_realm_qa import RealmForOpenQA
from realm_hf.models.places import ANSWERING, PRE_TRAINING, architectures_in
from realm_hf.storage.files import read_json

__all__ = [
    "UNREAD",
    "Tower",
    "TowerSource",
    "has_query_tower",
    "load_model_tower",
    "query_tower_of",
    "read_tower",
    "same_tower",
    "tower_of_weights",
]

TowerSource = RealmEmbedder | Path | Callable[[], RealmEmbedder | None] | None
"""A tower, the directory that holds it (see [`read_tower`]), or what loads it."""

UNREAD = "cls.predictions."
"""Weights of a tower that begin so are read by nothing: snapshots leave them out."""
_LOADING = threading.Lock()


class Tower:
    """
    A tower, or where it lies; copies of a retriever share one, so that it is loaded once.

    Args:
        source ([`RealmEmbedder`], `Path` or `Callable`, *optional*): See [`TowerSource`].
    """

    def __init__(self, source: TowerSource):
        self._source = source

    def get(self) -> RealmEmbedder | None:
        """The tower, loaded now if it has to be; `None` if there is none."""
        with _LOADING:
            source = self._source
            if isinstance(source, Path):
                self._source = read_tower(source)
            elif source is not None and not isinstance(source, RealmEmbedder):
                self._source = source()
            found: Any = self._source
            return found


def has_query_tower(folder: Path) -> bool:
    """Whether a directory holds a model with a query tower."""
    return bool({PRE_TRAINING, ANSWERING} & set(architectures_in(folder)))


def read_tower(folder: Path) -> RealmEmbedder:
    """
    A tower from a directory, in evaluation mode.

    Args:
        folder (`Path`): A saved [`RealmEmbedder`]; a saved [`RealmForPreTraining`] or [`RealmForOpenQA`], of which it
            is the query tower; or a snapshot of a run.

    Raises:
        OSError: There is none.
        ValueError: A snapshot does not fit its configuration.
    """
    if has_query_tower(folder):
        return load_model_tower(folder)
    if not (folder / "snapshot.json").is_file():
        return RealmEmbedder.from_pretrained(folder, use_safetensors=True).eval()
    config, weights = read_json(folder / "snapshot.json")["config"], load_file(folder / "embedder.safetensors")
    try:
        return tower_of_weights(config, weights)
    except ValueError as error:
        raise ValueError(f"The snapshot {folder} does not fit its configuration: {error}.") from error


def tower_of_weights(config: Mapping[str, Any], weights: Mapping[str, torch.Tensor]) -> RealmEmbedder:
    """
    The tower of a snapshot, in evaluation mode: its weights, and zeros for those that nothing reads.

    Args:
        config (`Mapping[str, Any]`): Of a [`RealmConfig`].
        weights (`Mapping[str, torch.Tensor]`): Without the prediction head's.

    Raises:
        ValueError: A weight is missing, or is none of the tower's.
    """
    tower = _empty_tower(RealmConfig.from_dict(dict(config)))
    missing, unexpected = tower.load_state_dict(dict(weights), strict=False)
    lacking = [name for name in missing if not name.startswith(UNREAD)]
    if lacking or unexpected:
        raise ValueError(f"missing {lacking}, unexpected {unexpected}")
    with torch.no_grad():
        for name in missing:
            tower.get_parameter(name).zero_()
    tower.tie_weights()
    return tower.eval()


def _empty_tower(config: RealmConfig) -> RealmEmbedder:
    """
    A tower whose weights are unwritten memory, to be loaded and then tied.

    A trainer opens generations in a thread beside its steps. Drawing 30 million random weights there took half a
    second of a core, and took them from the generator that dropout draws from: masks depended on when an index came.
    On the meta device nothing is drawn. (`from_pretrained` was rejected here: while it runs it changes the default
    dtype of the whole process, and it draws what the snapshot leaves out.)

    Args:
        config ([`RealmConfig`]): The tower's.
    """
    with torch.device("meta"):
        tower = RealmEmbedder(config)
    tower.to_empty(device="cpu")
    for owner in tower.modules():
        if isinstance(owner, PreTrainedModel):
            _fill_buffers(owner)
    return tower


@torch.no_grad()
def _fill_buffers(model: PreTrainedModel) -> None:
    """Write the buffers that no file holds, such as the numbers of positions, as the encoder's authors make them."""
    for module in model.modules():
        if module._non_persistent_buffers_set:
            model._init_weights(module)


def load_model_tower(name_or_path: str | Path, **hub: Any) -> RealmEmbedder:
    """
    The query tower of a saved or published model, whichever of the two kinds it is.

    Args:
        name_or_path (`str` or `Path`): As for `from_pretrained`.
        hub (*optional*): `revision`, `token`, `cache_dir`, `local_files_only`.
    """
    config = RealmConfig.from_pretrained(name_or_path, **hub)
    kind = RealmForOpenQA if ANSWERING in (config.architectures or []) else RealmForPreTraining
    return query_tower_of(kind.from_pretrained(name_or_path, use_safetensors=True, **hub)).eval()


def query_tower_of(model: Any) -> RealmEmbedder:
    """The tower that embeds a model's queries: fine-tuning's only one, or pre-training's `query_embedder`."""
    return getattr(model, "query_embedder", None) or model.embedder


def same_tower(one: RealmEmbedder, other: RealmEmbedder) -> bool:
    """Whether two towers embed alike: all weights that are read are equal, to the bit."""
    if one is other:
        return True
    ours, theirs = _read_weights(one), _read_weights(other)
    return ours.keys() == theirs.keys() and all(
        tensor.dtype == theirs[name].dtype and torch.equal(tensor.cpu(), theirs[name].cpu())
        for name, tensor in ours.items()
    )


def _read_weights(tower: RealmEmbedder) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tower.state_dict().items() if not name.startswith(UNREAD)}
