"""Search over 1M x 128: our path beside raw FAISS with the same index, and the default index beside the port's search.

Our path is [`RealmRetriever.retrieve`]: checked queries, each row checked, equal texts dropped (and searched past),
the null passage put first. Raw FAISS gets the same index, the candidates wanted, and for each batch size the fastest
of its settings: the number of threads, and the batch from which it takes matrix products.
"""

import math
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import faiss
import numpy as np
from harness.alternation import Alternation, Side, alternate
from harness.inputs import SCRATCH
from harness.million import SEED, describe_million, saved_retriever
from harness.peer import Peer
from harness.rows import Kind, Row, Settings, timed_row
from harness.vectors import queries as draw_queries

from realm_hf import RealmRetriever
from realm_hf.index.base import SearchIndex
from realm_hf.index.exact import recall_at_k
from realm_hf.index.faiss_index import build_index
from realm_hf.index.faiss_search import BLAS_THRESHOLD, raw_faiss, search

BATCHES = (1, 32, 256)
CANDIDATES = 8
DEPTH = 5
# Our threshold; FAISS's own; matrix products always, and never.
_THRESHOLDS = (BLAS_THRESHOLD, 128_000, 0, 1 << 30)
_A_SIDE_SECONDS = 0.3


def measure(settings: Settings) -> Iterator[Row]:
    """Rows beside raw FAISS for the exact and the default index, then those beside the port."""
    faiss.omp_set_num_threads(settings.threads)
    default = RealmRetriever.from_pretrained(saved_retriever(settings))
    assert default.embeddings is not None
    queries = draw_queries(default.embeddings, max(BATCHES), SEED)
    exact = RealmRetriever(default.passages, index=build_index(default.embeddings), embeddings=default.embeddings)
    for retriever, name in ((exact, "Flat"), (default, _name(default.index))):
        for batch in BATCHES:
            yield _beside_faiss(retriever, queries, batch, name, settings)
    del exact
    yield from _beside_port(default, queries, settings)


def _beside_faiss(retriever: RealmRetriever, queries: np.ndarray, batch: int, name: str, settings: Settings) -> Row:
    batches = np.split(queries[: batch * (len(queries) // batch)], len(queries) // batch)
    wanted, index = CANDIDATES - 1, raw_faiss(retriever.index)

    def ours(part: np.ndarray) -> np.ndarray:
        return retriever.retrieve(part, CANDIDATES).rows[:, 1:]

    def raw(part: np.ndarray) -> np.ndarray:
        return index.search(part, wanted)[1]

    threads, threshold = _tuned(raw, batches, settings.threads)
    with _faiss_settings(threads, threshold):
        expected = raw(batches[0])
    # Two orders of summation may swap scores that differ by rounding.
    if (ours(batches[0]) != expected).mean() > 0.01:
        raise AssertionError("Our search and raw FAISS found different passages: there is nothing to compare.")
    calls = _calls(ours, batches)

    def raw_side() -> float:
        with _faiss_settings(threads, threshold):
            return _seconds(raw, batches, calls)

    found = alternate(
        lambda: _seconds(ours, batches, calls), raw_side, settings.rounds, most_rounds=settings.most_rounds
    )
    through = _seconds(
        lambda part: retriever.dataset.search_batch("embeddings", part, k=wanted).total_indices, batches, calls
    )
    note = (
        f"FAISS was fastest with {threads} threads and a threshold of {threshold}; `datasets`' own search_batch over "
        f"the index that the retriever attaches takes {1e3 * through:.3g} ms."
    )
    what = f"{describe_size(retriever)}, {name}, batch {batch}"
    return _row(found, what, "raw FAISS, same index, tuned", 1.05, "at_most", note)


def _beside_port(retriever: RealmRetriever, queries: np.ndarray, settings: Settings) -> Iterator[Row]:
    embeddings = retriever.embeddings
    assert embeddings is not None
    recall = recall_at_k(embeddings, retriever.index, queries, DEPTH)
    for batch in BATCHES:
        mine = queries[: max(batch, 4)]
        batches = np.split(mine, len(mine) // batch)
        with tempfile.TemporaryDirectory(dir=SCRATCH) as work:
            np.save(Path(work) / "embeddings.npy", embeddings)
            np.save(Path(work) / "queries.npy", mine)
            with Peer("search", Path(work), settings.threads, {"k": DEPTH, "batch": batch}) as peer:
                best = peer.step()["first"]
                ours = _side(lambda part: search(retriever.index, part, DEPTH)[1], batches)
                found = alternate(ours, _each(peer, len(batches)), settings.rounds, most_rounds=settings.most_rounds)
        both = len(set(best) & set(search(retriever.index, mine[:1], DEPTH)[1][0].tolist()))
        note = (
            f"recall@{DEPTH} against exact {recall:.3f} over {len(queries)} queries (0.97 is wanted; {both} of "
            f"{DEPTH} of the first query); {describe_million(settings)}."
        )
        what = f"{describe_size(retriever)}, default index {_name(retriever.index)}, batch {batch}"
        yield _row(found, what, "old port's einsum and top-k", 15.0, "speedup", note)


def _row(found: Alternation, what: str, beside: str, goal: float, kind: Kind, note: str) -> Row:
    return timed_row(
        found, 1e3, name=f"search, {what}", beside=beside, unit="ms/batch", goal=goal, kind=kind, note=note
    )


def describe_size(retriever: RealmRetriever) -> str:
    """Rows times dimension."""
    return f"{len(retriever):,} x {retriever.index.dimension}"


def _name(index: SearchIndex) -> str:
    lists = faiss.extract_index_ivf(raw_faiss(index))
    return f"IVF{lists.nlist} nprobe {lists.nprobe}"


def _side(work: Callable[[np.ndarray], np.ndarray], batches: list[np.ndarray]) -> Side:
    calls = _calls(work, batches)
    return lambda: _seconds(work, batches, calls)


def _each(peer: Peer, batches: int) -> Side:
    return lambda: peer() / batches


def _calls(work: Callable[[np.ndarray], np.ndarray], batches: list[np.ndarray]) -> int:
    """How many batches make a figure that a clock can measure."""
    work(batches[0])
    return max(1, math.ceil(_A_SIDE_SECONDS / max(_seconds(work, batches, 2), 1e-6)))


def _seconds(work: Callable[[np.ndarray], np.ndarray], batches: list[np.ndarray], calls: int) -> float:
    """Seconds of a batch, over `calls` of them; other queries each time."""
    started = time.perf_counter()
    for call in range(calls):
        work(batches[call % len(batches)])
    return (time.perf_counter() - started) / calls


def _tuned(raw: Callable[[np.ndarray], np.ndarray], batches: list[np.ndarray], most_threads: int) -> tuple[int, int]:
    """Threads and threshold with which FAISS itself is fastest on these batches."""
    raw(batches[0])
    found: dict[tuple[int, int], float] = {}
    for threads in sorted({1, most_threads}, reverse=True):
        for threshold in _THRESHOLDS:
            with _faiss_settings(threads, threshold):
                found[threads, threshold] = _seconds(raw, batches, 1)
                # Some settings take ten times as long as others: one look at them is enough.
                if found[threads, threshold] <= 2 * min(found.values()):
                    found[threads, threshold] = min(_seconds(raw, batches, 3) for _ in range(2))
    return min(found, key=lambda setting: found[setting])


class _faiss_settings:  # noqa: N801 - it stands in a `with`
    """FAISS's threads and BLAS threshold inside the block; what this package sets comes back after it."""

    def __init__(self, threads: int, threshold: int):
        self.inside = (threads, threshold)
        self.outside = (faiss.omp_get_max_threads(), faiss.cvar.distance_compute_blas_threshold)

    def __enter__(self) -> None:
        self._set(*self.inside)

    def __exit__(self, *_: object) -> None:
        self._set(*self.outside)

    @staticmethod
    def _set(threads: int, threshold: int) -> None:
        faiss.omp_set_num_threads(threads)
        faiss.cvar.distance_compute_blas_threshold = threshold
