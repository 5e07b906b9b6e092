"""One index generation from one snapshot: embed all passages, build the index, write it to the store.

The same function serves the builder process and the trainer's ranks in "sync" mode; a team of ranks embeds a shard
each.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.distributed as dist
from transformers.utils import logging

from realm_hf.data.passage_store import PassageStore
from realm_hf.index.embedding import embed_passages, shard
from realm_hf.index.exact import recall_at_k
from realm_hf.index.faiss_index import build_index
from realm_hf.index.generations import GenerationInfo, GenerationStore
from realm_hf.index.manifest import newest_generation
from realm_hf.refresh.errors import RunDirectoryError
from realm_hf.refresh.run_directory import RunDirectory
from realm_hf.refresh.snapshots import SnapshotInfo

if TYPE_CHECKING:
    import faiss

    from realm_hf.modeling_realm import RealmEmbedder

logger = logging.get_logger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with the phase ("embedding", "indexing", "writing") and how many of how many passages are embedded."""

_RECALL_DEPTH = 10
_RECALL_PROBES = 64
_RECALL_TOLERANCE = 0.05


class Team:
    """The ranks that build together.

    Args:
        rank: This process's rank.
        world_size: Number of ranks; with more than one, constructing a team is a collective call.
    """

    def __init__(self, rank: int = 0, world_size: int = 1):
        self.rank = rank
        self.world_size = world_size
        # Rank 0 may train an index for hours while the others wait for it: the default timeout would end the job.
        self._group = dist.new_group(backend="gloo", timeout=timedelta(days=7)) if world_size > 1 else None

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self._group is not None:
            dist.all_reduce(torch.zeros(1), group=self._group)

    def share(self, word: str) -> str:
        """Rank 0's word, on all ranks."""
        words = [word]
        if self._group is not None:
            dist.broadcast_object_list(words, src=0, group=self._group)
        return words[0]


@dataclass(frozen=True)
class RecallRecord:
    """A line of RUN/logs/index-recall.jsonl: how exact an approximate index is, so that its drift can be seen.

    Args:
        snapshot_step: Step of the snapshot.
        epoch: Its epoch.
        factory: FAISS factory string.
        reused: Whether centroids and codebooks were taken from an earlier generation.
        recall: Share of the exact best 10 passages found, for 64 passages taken as queries.
    """

    snapshot_step: int
    epoch: int
    factory: str
    reused: bool
    recall: float


def build_generation(
    run: RunDirectory,
    snapshot: SnapshotInfo,
    embedder: RealmEmbedder,
    *,
    passages: PassageStore,
    store: GenerationStore,
    device: str | torch.device = "cpu",
    team: Team | None = None,
    progress: Progress | None = None,
) -> GenerationInfo | None:
    """Build and commit the generation of a snapshot. All ranks of the team call it; rank 0 gets the result.

    Args:
        run: The run directory.
        snapshot: What the generation is recorded to be built from.
        embedder: The passage tower with that snapshot's weights.
        passages: RUN/passages.
        store: RUN/index.
        device: Where the passages are embedded.
        team: The ranks that embed a shard each; this process alone by default.
        progress: Told of every batch and phase.

    Raises:
        RunDirectoryError: The passages are not those of the run.
        ValueError: An embedding is NaN or infinite (the row is named), or the factory does not fit the corpus.
        OSError: There is not enough space; checked before anything is embedded.
    """
    if passages.fingerprint != run.config.passages_fingerprint:
        raise RunDirectoryError(
            f"{run.passages} has fingerprint {passages.fingerprint}, run.json says {run.config.passages_fingerprint}: "
            "the passages were replaced under the run. Restore them, or start a new run."
        )
    team = team or Team()
    tell = progress or _tell_nobody
    started = time.monotonic()
    if team.rank == 0:
        store.require_space(_bytes_at_least(run, embedder))
    shares = run.shards / team.share(f"{snapshot.name}-{uuid.uuid4().hex[:8]}")
    embeddings = _embed(run, embedder, passages, device, team, shares, tell)
    if embeddings is None:
        return None
    tell("indexing", len(passages), len(passages))
    index = _index(run, snapshot, embeddings, store)
    tell("writing", len(passages), len(passages))
    generation = store.write(
        embeddings,
        index,
        snapshot_step=snapshot.step,
        epoch=snapshot.epoch,
        passages_fingerprint=passages.fingerprint,
        tokenizer_fingerprint=run.config.tokenizer_fingerprint,
        embedder_fingerprint=snapshot.fingerprint,
        factory=run.config.index_factory,
        build_seconds=time.monotonic() - started,
        place=run.place,
    )
    generation.close()
    return generation.info


def _bytes_at_least(run: RunDirectory, embedder: RealmEmbedder) -> int:
    """What the generation will take on disk; of an index other than Flat nothing is known before it is built."""
    per_coordinate = np.dtype(run.config.embedding_dtype).itemsize + (4 if run.config.index_factory == "Flat" else 0)
    return run.config.rows * embedder.config.retriever_proj_size * per_coordinate


def _tell_nobody(phase: str, done: int, total: int) -> None:
    logger.debug("%s: %d of %d", phase, done, total)


def _embed(
    run: RunDirectory,
    embedder: RealmEmbedder,
    passages: PassageStore,
    device: str | torch.device,
    team: Team,
    shares: Path,
    tell: Progress,
) -> np.ndarray | None:
    """All embeddings `[N, D]` on rank 0, `None` elsewhere. Ranks hand their rows over as files: the run directory is
    shared by them all, and a gather would need the whole array in a GPU's memory.
    """
    total, dtype = len(passages), np.dtype(run.config.embedding_dtype)
    embeddings = np.empty((total, embedder.config.retriever_proj_size), dtype) if team.rank == 0 else None
    mine = embed_passages(
        embedder,
        passages,
        embeddings,
        rows=shard(total, team.rank, team.world_size),
        max_tokens_per_batch=run.config.max_tokens_per_batch,
        device=device,
        progress=lambda done, of: tell("embedding", done, of),
    )
    if team.rank > 0:
        shares.mkdir(parents=True, exist_ok=True)
        np.save(shares / f"{team.rank}.npy", mine.astype(dtype, copy=False))
    team.barrier()
    if embeddings is None:
        return None
    for rank in range(1, team.world_size):
        embeddings[shard(total, rank, team.world_size)] = np.load(shares / f"{rank}.npy", allow_pickle=False)
    shutil.rmtree(shares, ignore_errors=True)
    return embeddings


def _index(run: RunDirectory, snapshot: SnapshotInfo, embeddings: np.ndarray, store: GenerationStore) -> faiss.Index:
    config = run.config
    reuse = _earlier_index(run, store)
    log = run.logs / "index-recall.jsonl"
    build = partial(
        build_index,
        embeddings,
        config.index_factory,
        train_size=config.index_train_size,
        recall=config.index_recall,
    )
    index = build(reuse=reuse)
    if config.index_factory == "Flat":
        return index  # exact, nothing trained
    probes = np.random.default_rng(0).choice(len(embeddings), min(_RECALL_PROBES, len(embeddings)), replace=False)
    queries = np.asarray(embeddings[np.sort(probes)], np.float32)
    recall = recall_at_k(embeddings, index, queries, _RECALL_DEPTH)
    trained = _recall_when_trained(log, config.index_factory)
    if reuse is not None and trained is not None and recall < trained - _RECALL_TOLERANCE:
        logger.warning(
            "recall@%d fell from %.3f to %.3f with reused centroids: training anew", _RECALL_DEPTH, trained, recall
        )
        reuse = None
        index = build()
        recall = recall_at_k(embeddings, index, queries, _RECALL_DEPTH)
    record = RecallRecord(snapshot.step, snapshot.epoch, config.index_factory, reuse is not None, round(recall, 4))
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(record)) + "\n")
    logger.info("%s", record)
    return index


def _earlier_index(run: RunDirectory, store: GenerationStore) -> Path | None:
    """The index file of the newest generation with this run's factory; `reuse` only matters if the factory trains."""
    newest = newest_generation(store.list(), factory=run.config.index_factory)
    if newest is None:
        return None
    path = run.index / newest.name / "index.faiss"
    return path if os.access(path, os.R_OK) else None


def _recall_when_trained(log: Path, factory: str) -> float | None:
    """Recall of the last index of this factory that trained its own centroids."""
    if not log.exists():
        return None
    records = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
    trained = [r["recall"] for r in records if r["factory"] == factory and not r["reused"]]
    return trained[-1] if trained else None
