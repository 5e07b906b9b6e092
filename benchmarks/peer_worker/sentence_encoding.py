"""Encoding with sentence-transformers: tower, mean pooling, normalisation, as all-MiniLM-L6-v2 is published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Normalize, Pooling, Transformer


def prepare(folder: Path, options: dict[str, Any]) -> Callable[[], dict[str, Any]]:  # noqa: ARG001 - the common form
    """Encode all texts once; a title and its body are a pair, which makes the same wordpieces as ours."""
    tower = Transformer(options["model"], max_seq_length=options["max_length"])
    model = SentenceTransformer(modules=[tower, Pooling(tower.get_embedding_dimension()), Normalize()])
    pairs = [tuple(pair) for pair in options["texts"]]

    def work() -> dict[str, Any]:
        found = model.encode(pairs, batch_size=options["batch"], show_progress_bar=False)
        return {"first_columns": found[:, :8].tolist()}

    return work
