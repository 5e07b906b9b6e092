"""What a card does: the pre-training step, encoding, and exact search by a matrix product over the paper's corpus."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from realm_hf import RealmEmbedder, RealmForPreTraining, RealmTokenizer
from realm_hf.data.passages.store import PassageStore
from realm_hf.estimate import ModelShape
from realm_hf.generations.embedding import embed_passages
from realm_hf.models.host_facts import PreTrainingFacts
from realm_hf.models.precision import autocast
from realm_hf.models.transfer import to_device

from .step_batch import batch_of, forward_operations, tokens_of

PAPER_ROWS = 13_353_718
DIMENSION, QUERIES, DEPTH = 128, 256, 20
_ROUNDS = 5
_SHARE_OF_MEMORY = 0.6


def seconds_of(work: Callable[[], Any], device: torch.device, rounds: int = _ROUNDS) -> float:
    """Mean seconds, after one round that is not counted."""
    work()
    _wait(device)
    began = time.perf_counter()
    for _ in range(rounds):
        work()
    _wait(device)
    return (time.perf_counter() - began) / rounds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rates(operations: float, tokens: float, seconds: float, peak: float) -> dict[str, float]:
    """Tokens a second, operations a second, and their share of what the card can do.

    Args:
        operations: Of one round.
        tokens: Of one round.
        seconds: Of one round.
        peak: TFLOP/s of the card.
    """
    achieved = operations / seconds / 1e12
    figures = {"tokens_per_second": tokens / seconds, "tflops": achieved, "mfu": achieved / peak}
    return {"seconds": round(seconds, 5), **{name: round(value, 4) for name, value in figures.items()}}


def step_speed(
    model: RealmForPreTraining,
    passages: PassageStore,
    tokenizer: RealmTokenizer,
    shape: ModelShape,
    peak: float,
    *,
    queries: int,
    candidates: int,
) -> dict[str, float]:
    """Forward and backward of a pre-training step in bfloat16; the update is left out.

    Args:
        model: On its device.
        passages: Candidates are drawn from them.
        tokenizer: Theirs.
        shape: Of the towers.
        peak: TFLOP/s of the card.
        queries: Of a step.
        candidates: Of a query, the null passage left out.
    """
    model = copy.deepcopy(model).train()
    collated = batch_of(passages, tokenizer, queries, candidates)
    facts, batch = PreTrainingFacts.of(**collated), to_device(collated, model.device)

    def work() -> None:
        model.zero_grad(set_to_none=True)
        with autocast(model.device, True):
            loss = model(**batch, facts=facts).loss
        loss.backward()

    spent = seconds_of(work, model.device)
    return rates(3 * forward_operations(shape, collated), tokens_of(collated), spent, peak)


def encoding_speed(
    embedder: RealmEmbedder, passages: PassageStore, shape: ModelShape, peak: float
) -> dict[str, float]:
    """Embedding all passages in bfloat16, from stored wordpieces to vectors on the host."""
    lengths = passages.lengths.tolist()

    def work() -> None:
        with autocast(embedder.device, True):
            embed_passages(embedder, passages)

    spent = seconds_of(work, embedder.device, rounds=1)
    return rates(sum(map(shape.forward_operations, lengths)), sum(lengths), spent, peak)


@torch.inference_mode()
def search_speed(device: torch.device, rows: int) -> dict[str, Any]:
    """The best 20 of so many random vectors for 256 queries, by a matrix product, in half precision on a card; or why
    not.

    Args:
        device: Of the vectors.
        rows: Vectors of 128.
    """
    dtype = torch.float16 if device.type == "cuda" else torch.float32
    # The vectors, all scores, and what the choice of the best needs beside them.
    needed = dtype.itemsize * rows * (DIMENSION + 2 * QUERIES)
    free = _free_bytes(device)
    if needed > _SHARE_OF_MEMORY * free:
        return {"rows": rows, "left_out": f"needs {needed / 2**30:.1f} GiB, {free / 2**30:.1f} are free"}
    generator = torch.Generator(device).manual_seed(0)
    vectors = torch.empty(rows, DIMENSION, dtype=dtype, device=device).normal_(generator=generator)
    queries = torch.empty(QUERIES, DIMENSION, dtype=dtype, device=device).normal_(generator=generator)
    spent = seconds_of(lambda: (queries @ vectors.T).topk(min(DEPTH, rows)), device)
    return {"rows": rows, "queries": QUERIES, "seconds": round(spent, 5), "queries_per_second": round(QUERIES / spent)}


def _free_bytes(device: torch.device) -> float:
    if device.type == "cuda":
        return float(torch.cuda.mem_get_info(device)[0])
    with Path("/proc/meminfo").open(encoding="ascii") as facts:
        return next(1024.0 * int(line.split()[1]) for line in facts if line.startswith("MemAvailable"))
