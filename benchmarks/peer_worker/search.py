"""The old port's search: inner products with every embedding by one einsum, then the top k of all of them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch


def prepare(folder: Path, options: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """The two calls of `RealmForOpenQA.forward`, without the model around them; options `k` and `batch`.

    It takes one question at a time; it is given `batch` at once, which only helps it.
    """
    block_emb = torch.from_numpy(np.load(folder / "embeddings.npy").astype(np.float32))
    queries = torch.from_numpy(np.load(folder / "queries.npy"))
    batches = queries.split(options["batch"])

    @torch.no_grad()
    def search() -> dict[str, Any]:
        found = []
        for question_projection in batches:
            batch_scores = torch.einsum("BD,QD->QB", block_emb, question_projection)
            found.append(torch.topk(batch_scores, k=options["k"], dim=-1).indices)
        return {"first": found[0][0].tolist()}

    return search
