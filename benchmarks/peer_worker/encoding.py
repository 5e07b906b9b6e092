"""Encoding with the old port's embedder: batches in the order given, padded as they come."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from old_port import load_weights, make_config
from safetensors.torch import load_file
from transformers.models.deprecated.realm.modeling_realm import RealmEmbedder


def prepare(folder: Path, options: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """Encode all passages once."""
    embedder = RealmEmbedder(make_config(options)).eval()
    load_weights(embedder, folder / "embedder.safetensors")
    inputs = load_file(folder / "passages.safetensors")
    size = options["batch"]

    def work() -> dict[str, Any]:
        with torch.inference_mode():
            parts = [
                embedder(**{name: value[start : start + size] for name, value in inputs.items()}).projected_score
                for start in range(0, len(inputs["input_ids"]), size)
            ]
        return {"first_columns": torch.cat(parts)[:, :8].tolist()}

    return work
