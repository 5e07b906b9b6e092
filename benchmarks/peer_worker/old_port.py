"""Models of transformers 4.57.6, from weights that the other side wrote."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from transformers import PreTrainedModel
from transformers.models.deprecated.realm.configuration_realm import RealmConfig


def make_config(options: dict[str, Any]) -> RealmConfig:
    """The configuration: `shape` of the options, and defaults as published."""
    return RealmConfig(**options["shape"])


def load_weights(model: PreTrainedModel, file: Path) -> None:
    """Load a state dict by name; the port's own buffers may be missing from it, nothing else."""
    missing, unexpected = model.load_state_dict(load_file(file), strict=False)
    missing = [name for name in missing if not name.endswith(("position_ids", "block_emb"))]
    if missing or unexpected:
        raise RuntimeError(f"Weights do not fit: missing {missing[:5]}, unexpected {unexpected[:5]}.")
