"""One index generation from one snapshot: embed all passages, build the index, write it to the store.

The work is cut into tasks ([`SharedTasks`]) below RUN/index/.builds: each range of passages is embedded once, and the
index is built once, by whoever claims it. So any number of builders on any nodes build one generation together, the
ranks of a job among them; one that dies loses its task and no more. The same function serves them all: a builder that
was started by hand, the trainer's own, and the trainer's ranks in "sync" mode.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.utils import logging

from realm_hf.data.passages.store import PassageStore
from realm_hf.generations.embedding import ROWS_A_WINDOW, embed_passages
from realm_hf.generations.manifest import GenerationNotFoundError, newest_generation
from realm_hf.generations.store import GenerationInfo, GenerationStore
from realm_hf.index.base import SearchIndex
from realm_hf.index.default_index import EXACT_SHARDED
from realm_hf.index.exact import recall_at_k
from realm_hf.index.faiss_index import build_index
from realm_hf.index.faiss_search import FaissIndex, faiss_threads, search_threads
from realm_hf.models.precision import ENCODE_DTYPES, encoding_in, resolved_encode_dtype
from realm_hf.progress import progress_bar
from realm_hf.refresh.rank_group import STALL_SECONDS, RankGroup
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.snapshots import SnapshotInfo
from realm_hf.storage.directories import retire_directory
from realm_hf.storage.tasks import Claim, SharedTasks

if TYPE_CHECKING:
    from realm_hf.models.modeling_realm import RealmEmbedder

logger = logging.get_logger(__name__)

Progress = Callable[[str, int, int], None]
"""Called with the phase ("embedding", "indexing", "writing") and how many of how many passages are embedded."""

TASK_ROWS = ROWS_A_WINDOW
"""Passages that a builder claims at once: whole windows, so that they are embedded in the same batches as by one."""
_ROWS_FILE = "rows.npy"
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


def builds_of(store: GenerationStore) -> Path:
    """Where builds go on, each in a directory of its own: on the store's file system, which has the room."""
    return store.root / ".builds"


def snapshot_of_build(build: Path) -> str:
    """Name of the snapshot that a build is of."""
    return build.name.rsplit("-", 2)[0]


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
    task_rows: int = TASK_ROWS,
) -> GenerationInfo | None:
    """
    Build and commit the generation of a snapshot, together with all others that build it at this time. All ranks of
    the group call it; rank 0 gets the result, which another builder may have written.

    Args:
        run ([`RunDirectory`]): The run directory.
        snapshot ([`SnapshotInfo`]): What the generation is recorded to be built from.
        embedder ([`RealmEmbedder`]): The passage tower with that snapshot's weights.
        passages ([`PassageStore`]): RUN/passages.
        store ([`GenerationStore`]): RUN/index.
        device (`str` or `torch.device`, *optional*, defaults to `"cpu"`): Where the passages are embedded.
        ranks ([`RankGroup`], *optional*): The ranks that build together; this process alone by default.
        progress (`Progress`, *optional*): Called at every batch and phase; by default rank 0 shows a bar with the time
            left on a terminal, once two seconds have passed.
        index_threads (`int`, *optional*): Of training and filling the index; FAISS's own by default. Embedding is not
            concerned: each rank has its threads for that, and where torch and FAISS share an OpenMP library one count
            would be both's.
        task_rows (`int`, *optional*, defaults to 16,384): Passages of one task; the same for all builders. A multiple
            of the default gives the same bytes.

    Raises:
        RunDirectoryError: The passages are not those of the run.
        ValueError: An embedding is NaN or infinite (the row is named), or the factory does not fit the corpus.
        OSError: There is not enough space; checked before anything is embedded.
        GenerationNotFoundError: A trainer has removed the build, because newer snapshots took its place.
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
    join = partial(_SharedBuild, run, snapshot, passages, store, ranks, report=report, task_rows=task_rows)
    build = ranks.together(f"joining the build of {snapshot.name}", join)
    with bar:
        ranks.together(
            f"embedding the passages of {snapshot.name}", partial(build.embed, embedder, torch.device(device))
        )
        return ranks.together(
            f"writing the generation of {snapshot.name}", partial(build.finish, embedder, index_threads)
        )


class _SharedBuild:
    """One builder's part in a build that others may take part in."""

    def __init__(
        self,
        run: RunDirectory,
        snapshot: SnapshotInfo,
        passages: PassageStore,
        store: GenerationStore,
        ranks: RankGroup,
        *,
        report: Progress,
        task_rows: int,
    ):
        self.run, self.snapshot, self.passages, self.store, self.ranks = run, snapshot, passages, store, ranks
        self.report, self.task_rows = report, task_rows
        self.started = time.monotonic()
        self.folder = builds_of(store) / f"{snapshot.name}-{snapshot.fingerprint[:8]}-{task_rows}"
        self.parts = SharedTasks(self.folder / "embed", math.ceil(len(passages) / task_rows))
        self.ending = SharedTasks(self.folder / "finish", 1, stale_seconds=STALL_SECONDS)

    def built(self) -> GenerationInfo | None:
        """The generation of this snapshot, once there is one."""
        key = (self.snapshot.epoch, self.snapshot.step, self.snapshot.fingerprint)
        return newest_generation(
            info for info in self.store.list() if (info.epoch, info.snapshot_step, info.embedder_fingerprint) == key
        )

    def embed(self, embedder: RealmEmbedder, device: torch.device) -> None:
        """Embed ranges of passages until all are embedded, by whomever."""
        if self.built() is not None:
            return  # the others were ready when this one came; the folder is made anew by who comes late
        if self.ranks.rank == 0:
            self.store.require_space(_bytes_at_least(self.run, embedder))
        dtype = resolved_encode_dtype(self.run.config.encode_dtype, device)

        def embed_range(claim: Claim) -> dict[str, str]:
            before, total = len(self.parts.done()) * self.task_rows, len(self.passages)

            def embedded(done: int, _: int) -> None:
                self.report("embedding", min(total, before + done), total)
                self.ranks.mark()

            with encoding_in(dtype, device):
                rows = embed_passages(
                    embedder,
                    self.passages,
                    rows=self._rows(claim.task),
                    max_tokens_per_batch=self.run.config.max_tokens_per_batch,
                    device=device,
                    progress=embedded,
                )
            np.save(claim.work / _ROWS_FILE, rows.astype(self.run.config.embedding_dtype, copy=False))
            return {"encode_dtype": dtype}

        self.parts.run(embed_range, idle=partial(self._idle, "embedding"))

    def finish(self, embedder: RealmEmbedder, index_threads: int | None) -> GenerationInfo | None:
        """Let one builder build the index and write the generation; on rank 0 that generation."""
        if self.ranks.rank > 0:
            return None

        def index_and_write(claim: Claim) -> dict[str, str]:
            info = self.built() or self._index_and_write(embedder, index_threads, claim.place)
            return {"generation": info.name}

        if self.built() is None:
            self.ending.run(index_and_write, idle=partial(self._idle, "indexing"))
        info = self.built()
        if info is None:
            raise GenerationNotFoundError(
                f"The build of {self.snapshot.name} was removed from {self.folder.parent} before it was complete: a "
                "trainer went on to newer snapshots. The next build takes the newest."
            )
        with suppress(FileNotFoundError):
            retire_directory(self.folder, self.run.place)
        return info

    def _index_and_write(self, embedder: RealmEmbedder, index_threads: int | None, place: Path) -> GenerationInfo:
        embeddings = np.empty(
            (len(self.passages), embedder.config.retriever_proj_size), self.run.config.embedding_dtype
        )
        encoded_in = set()
        for task in self.parts.numbers():
            encoded_in.add(self.parts.read_part(task)["encode_dtype"])
            embeddings[self._rows(task)] = np.load(self.parts.part(task) / _ROWS_FILE, allow_pickle=False)
        self.report("indexing", len(embeddings), len(embeddings))
        with search_threads(index_threads):
            logger.info("building index %s on %d threads", self.run.config.index_factory, faiss_threads())
            index = _index(self.run, self.snapshot, embeddings, self.store)
        self.report("writing", len(embeddings), len(embeddings))
        generation = self.store.write(
            embeddings,
            index,
            snapshot_step=self.snapshot.step,
            epoch=self.snapshot.epoch,
            passages_fingerprint=self.passages.fingerprint,
            tokenizer_fingerprint=self.run.config.tokenizer_fingerprint,
            embedder_fingerprint=self.snapshot.fingerprint,
            factory=self.run.config.index_factory,
            build_seconds=time.monotonic() - self.started,
            # Builders on different devices: the least exact of theirs.
            encode_dtype=max(encoded_in, key=ENCODE_DTYPES.index),
            place=self.run.place or place,
        )
        generation.close()
        return generation.info

    def _rows(self, task: int) -> slice:
        return slice(task * self.task_rows, min((task + 1) * self.task_rows, len(self.passages)))

    def _idle(self, phase: str) -> None:
        """Other builders have what is left."""
        self.report(phase, min(len(self.passages), len(self.parts.done()) * self.task_rows), len(self.passages))
        self.ranks.mark()


def _bytes_at_least(run: RunDirectory, embedder: RealmEmbedder) -> int:
    """What parts and generation will take on disk; of an index other than Flat nothing is known before it is built."""
    stored = np.dtype(run.config.embedding_dtype).itemsize
    per_coordinate = 2 * stored + (4 if run.config.index_factory == "Flat" else 0)
    return run.config.rows * embedder.config.retriever_proj_size * per_coordinate


def _advance(bar: Any, phase: str, done: int, total: int) -> None:
    """Show a phase, and what all builders have done of it."""
    bar.set_description(phase, refresh=False)
    bar.total = total
    bar.update(done - bar.n)


def _index(
    run: RunDirectory, snapshot: SnapshotInfo, embeddings: np.ndarray, store: GenerationStore
) -> SearchIndex | None:
    config = run.config
    if config.index_factory == EXACT_SHARDED:
        return None  # the embeddings are searched themselves
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
