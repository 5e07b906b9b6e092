"""One index generation from one snapshot: embed all passages, build the index, write it to the store.

The same function serves the builder process and the trainer's ranks in "sync" mode; a group of ranks embeds a shard
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
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging

from realm_hf.data.passages.store import PassageStore
from realm_hf.generations.embedding import embed_passages, shard
from realm_hf.generations.manifest import newest_generation
from realm_hf.generations.store import GenerationInfo, GenerationStore
from realm_hf.index.base import SearchIndex
from realm_hf.index.exact import recall_at_k
from realm_hf.index.faiss_index import build_index
from realm_hf.index.faiss_search import FaissIndex, faiss_threads, search_threads
from realm_hf.models.precision import encoding_in, resolved_encode_dtype
from realm_hf.progress import progress_bar
from realm_hf.refresh.rank_group import RankGroup
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.snapshots import SnapshotInfo

if TYPE_CHECKING:
    from realm_hf.models.modeling_realm import RealmEmbedder

logger = logging.get_logger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with the phase ("embedding", "indexing", "writing") and how many of how many passages are embedded."""

_RECALL_DEPTH = 10
_RECALL_PROBES = 64
_RECALL_TOLERANCE = 0.05


@dataclass(frozen=True)
class RecallRecord:
    """
    A line of RUN/logs/index-recall.jsonl: how exact an approximate index is, so that its drift can be seen.

    Args:
        snapshot_step (`int`): Step of the snapshot.
        epoch (`int`): Its epoch.
        factory (`str`): FAISS factory string.
        reused (`bool`): Whether centroids and codebooks were taken from an earlier generation.
        recall (`float`): Share of the exact best 10 passages found, for 64 passages taken as queries.
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
    ranks: RankGroup | None = None,
    progress: Progress | None = None,
    index_threads: int | None = None,
) -> GenerationInfo | None:
    """
    Build and commit the generation of a snapshot. All ranks of the group call it; rank 0 gets the result.

    Args:
        run ([`RunDirectory`]): The run directory.
        snapshot ([`SnapshotInfo`]): What the generation is recorded to be built from.
        embedder ([`RealmEmbedder`]): The passage tower with that snapshot's weights.
        passages ([`PassageStore`]): RUN/passages.
        store ([`GenerationStore`]): RUN/index.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where the passages are embedded.
        ranks ([`RankGroup`], *optional*): The ranks that embed a shard each; this process alone by default.
        progress (`Progress`, *optional*): Called at every batch and phase; by default rank 0 shows a bar with the time
            left on a terminal, once two seconds have passed.
        index_threads (`int`, *optional*): Of training and filling the index; FAISS's own by default. Embedding is not
            concerned: each rank has its threads for that, and where torch and FAISS share an OpenMP library one count
            would be both's.

    Raises:
        RunDirectoryError: The passages are not those of the run.
        ValueError: An embedding is NaN or infinite (the row is named), or the factory does not fit the corpus.
        OSError: There is not enough space; checked before anything is embedded.
        RefreshError: Another rank of the group failed, hangs or is lost.
    """
    if passages.fingerprint != run.config.passages_fingerprint:
        raise RunDirectoryError(
            f"{run.passages} has fingerprint {passages.fingerprint}, run.json says {run.config.passages_fingerprint}: "
            "the passages were replaced under the run. Restore them, or start a new run."
        )
    ranks = ranks or RankGroup()
    # In a group that is not the launcher's, too, one process shows it.
    shown = None if progress is None and ranks.rank == 0 else False
    bar = progress_bar(len(passages), "embedding", "passages", shown)
    report = progress or partial(_advance, bar)
    started = time.monotonic()
    shards = run.shards / ranks.broadcast(f"{snapshot.name}-{uuid.uuid4().hex[:8]}")

    dtype = resolved_encode_dtype(run.config.encode_dtype, torch.device(device))

    def embed() -> np.ndarray | None:
        if ranks.rank == 0:
            store.require_space(_bytes_at_least(run, embedder))
        with encoding_in(dtype, torch.device(device)):
            return _embed(run, embedder, passages, device, ranks, shards, report)

    def index_and_write(embeddings: np.ndarray | None) -> GenerationInfo | None:
        if embeddings is None:
            return None
        _join_shards(embeddings, shards, ranks)
        report("indexing", len(passages), len(passages))
        with search_threads(index_threads):
            logger.info("building index %s on %d threads", run.config.index_factory, faiss_threads())
            index = _index(run, snapshot, embeddings, store)
        report("writing", len(passages), len(passages))
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
            encode_dtype=dtype,
            place=run.place,
        )
        generation.close()
        return generation.info

    with bar:
        embeddings = ranks.together(f"embedding the passages of {snapshot.name}", embed)
        return ranks.together(f"writing the generation of {snapshot.name}", partial(index_and_write, embeddings))


def _bytes_at_least(run: RunDirectory, embedder: RealmEmbedder) -> int:
    """What the generation will take on disk; of an index other than Flat nothing is known before it is built."""
    per_coordinate = np.dtype(run.config.embedding_dtype).itemsize + (4 if run.config.index_factory == "Flat" else 0)
    return run.config.rows * embedder.config.retriever_proj_size * per_coordinate


def _advance(bar: Any, phase: str, done: int, total: int) -> None:
    """Show a phase: its share is that of this rank's shard, which is as long as any other's."""
    bar.set_description(phase, refresh=False)
    bar.total = total
    bar.update(done - bar.n)


def _embed(
    run: RunDirectory,
    embedder: RealmEmbedder,
    passages: PassageStore,
    device: str | torch.device,
    ranks: RankGroup,
    shards: Path,
    report: Progress,
) -> np.ndarray | None:
    """
    On rank 0 an array for all embeddings `[N, D]`, with its own filled in, else `None`. Ranks hand their rows over as
    files: the run directory is shared by them all, and a gather would need the whole array in a GPU's memory.
    """
    total, dtype = len(passages), np.dtype(run.config.embedding_dtype)
    embeddings = np.empty((total, embedder.config.retriever_proj_size), dtype) if ranks.rank == 0 else None

    def embedded(done: int, of: int) -> None:
        report("embedding", done, of)
        ranks.mark()

    mine = embed_passages(
        embedder,
        passages,
        embeddings,
        rows=shard(total, ranks.rank, ranks.world_size),
        max_tokens_per_batch=run.config.max_tokens_per_batch,
        device=device,
        progress=embedded,
    )
    if ranks.rank > 0:
        shards.mkdir(parents=True, exist_ok=True)
        np.save(shards / f"{ranks.rank}.npy", mine.astype(dtype, copy=False))
    return embeddings


def _join_shards(embeddings: np.ndarray, shards: Path, ranks: RankGroup) -> None:
    """Fill in what the other ranks have embedded, and remove their files."""
    total = len(embeddings)
    for rank in range(1, ranks.world_size):
        embeddings[shard(total, rank, ranks.world_size)] = np.load(shards / f"{rank}.npy", allow_pickle=False)
    shutil.rmtree(shards, ignore_errors=True)


def _index(run: RunDirectory, snapshot: SnapshotInfo, embeddings: np.ndarray, store: GenerationStore) -> SearchIndex:
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
    index = FaissIndex(build(reuse=reuse))
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
        index = FaissIndex(build())
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
