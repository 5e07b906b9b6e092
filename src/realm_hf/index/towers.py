"""The towers of a retriever: each is given, or lies somewhere, and is loaded when it is first needed.

Two belong to it. The passage tower made the index, and embeds passages that are added; the query tower embeds what is
asked. They are one and the same until fine-tuning moves the query tower only.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from ..bert_initialization import quiet_loading
from ..configuration_realm import RealmConfig
from ..modeling_embedder import RealmEmbedder
from ..modeling_realm import RealmForPreTraining
from ..modeling_realm_qa import RealmForOpenQA
from ..places import ANSWERING, PRE_TRAINING, architectures_in
from ..storage.files import read_json

__all__ = ["Tower", "TowerSource", "has_query_tower", "load_model_tower", "query_tower_of", "read_tower", "same_tower"]

TowerSource = RealmEmbedder | Path | Callable[[], RealmEmbedder | None] | None
"""A tower, the directory that holds it (see [`read_tower`]), or what loads it."""

_UNREAD = "cls.predictions."
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
        ValueError: A snapshot lacks weights.
    """
    if has_query_tower(folder):
        return load_model_tower(folder)
    if not (folder / "snapshot.json").is_file():
        return RealmEmbedder.from_pretrained(folder, use_safetensors=True).eval()
    config = RealmConfig.from_dict(read_json(folder / "snapshot.json")["config"])
    weights = load_file(folder / "embedder.safetensors")
    with quiet_loading():  # a snapshot has no weights that nothing reads
        loaded: Any = RealmEmbedder.from_pretrained(
            None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
        )
    tower, info = loaded
    lacking = [name for name in info["missing_keys"] if not name.startswith(_UNREAD)]
    if lacking:
        raise ValueError(f"The snapshot {folder} lacks {sorted(lacking)[0]!r} and {len(lacking) - 1} more weights.")
    return tower.eval()


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
    return {name: tensor for name, tensor in tower.state_dict().items() if not name.startswith(_UNREAD)}
