"""A pre-training step with the old port: one query at a time, as its models are used.

Scorer and encoder are two models there, and the caller joins them; the encoder gives logits at every position.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from old_port import load_weights, make_config
from safetensors.torch import load_file
from transformers.models.deprecated.realm.modeling_realm import RealmKnowledgeAugEncoder, RealmScorer

SCORER = ("input_ids", "attention_mask")
CANDIDATES = ("candidate_input_ids", "candidate_attention_mask", "candidate_token_type_ids")


def prepare(folder: Path, options: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """The step over all queries of the batch, one after the other; gradients add up."""
    config = make_config(options)
    scorer, encoder = RealmScorer(config).train(), RealmKnowledgeAugEncoder(config).train()
    load_weights(scorer.embedder, folder / "embedder.safetensors")
    load_weights(encoder, folder / "encoder.safetensors")
    parameters = [*scorer.parameters(), *encoder.parameters()]
    queries = [load_file(folder / f"query-{number}.safetensors") for number in range(options["queries"])]
    masked = sum(int(query["mlm_mask"].sum()) for query in queries)

    def step() -> dict[str, Any]:
        for parameter in parameters:
            parameter.grad = None
        total = 0.0
        for query in queries:
            scores = scorer(**{name: query[name] for name in (*SCORER, *CANDIDATES)}).relevance_score
            loss = encoder(
                input_ids=query["joint_input_ids"],
                attention_mask=query["joint_attention_mask"],
                token_type_ids=query["joint_token_type_ids"],
                relevance_score=scores,
                labels=query["labels"],
                mlm_mask=query["mlm_mask"],
            ).loss
            # The port divides by the masked tokens of its own query; the batch's loss divides by those of all.
            share = loss * (int(query["mlm_mask"].sum()) / masked)
            share.backward()
            total += share.item()
        norm = torch.stack([parameter.grad.norm() for parameter in parameters if parameter.grad is not None]).norm()
        return {"loss": total, "gradient_norm": norm.item()}

    return step
