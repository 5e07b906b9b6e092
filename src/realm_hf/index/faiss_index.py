"""FAISS indexes over passage embeddings: build, search, save, and a guarded memory-mapped load. Always inner product.

Importing this module sets two things for the whole process:

- `faiss.cvar.distance_compute_blas_threshold` = 512. FAISS compares it with `queries * dimension` and takes a scalar
  loop below it; its own 128,000 keeps BLAS from every batch under 1,000 queries at D = 128. At 50,000 x 128, two
  threads: 16 queries 55 -> 12 ms, 64 queries 222 -> 27 ms; below 4 queries the loop stays the faster one.
- A forked child searches with one thread: the thread pool does not survive a fork, and the child would wait for it for
  ever.

Exact search over a small corpus is a `Flat` index and not a matrix product with `np.argpartition` or `torch.topk`: at
50,000 x 128, 16 queries and k = 32 FAISS takes 12 ms, torch 24 ms, numpy 30 ms: it keeps the best k block by block.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import faiss
import numpy as np

from .index_file import IndexFileError, check_family, faiss_reason, open_index, save_index

__all__ = [
    "ABSENT",
    "build_index",
    "check_finite",
    "open_index",
    "save_index",
    "search",
    "search_threads",
]

ABSENT = -2
"""The row number that says "nothing found"; -1 is the null passage everywhere in this package."""

BLAS_THRESHOLD = 512
_ROWS_A_CHUNK = 65_536

faiss.cvar.distance_compute_blas_threshold = BLAS_THRESHOLD
_in_forked_child = False


def _mark_forked_child() -> None:
    global _in_forked_child
    _in_forked_child = True
    faiss.omp_set_num_threads(1)


os.register_at_fork(after_in_child=_mark_forked_child)


@contextmanager
def search_threads(threads: int | None) -> Iterator[None]:
    """Let FAISS use `threads` threads inside the block (this thread's calls only); `None` leaves its setting."""
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}: at least one is needed, or None for FAISS's own choice.")
    if threads is None or _in_forked_child:
        yield
        return
    before = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(threads)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)


def check_finite(embeddings: np.ndarray, first_row: int = 0) -> None:
    """
    Refuse NaN and infinity, which FAISS would index without a word and return for every query or for none.

    Args:
        embeddings (`np.ndarray` of shape `[n, D]`): The rows to check.
        first_row (`int`, *optional*, defaults to 0): The passage row that `embeddings[0]` stands for.

    Raises:
        ValueError: Names the first bad row and how many there are.
    """
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise ValueError(
            f"The embedding of passage row {first_row + int(bad[0])} holds NaN or infinity (one of {len(bad)} such "
            f"rows among {len(embeddings)}): check the embedder's weights and the passage's tokens."
        )


def build_index(
    embeddings: np.ndarray,
    factory: str = "Flat",
    *,
    train_size: int | None = None,
    reuse: str | Path | None = None,
    search_parameters: str | None = None,
    threads: int | None = None,
    seed: int = 0,
) -> faiss.Index:
    """
    Build an inner-product index; row `i` of `embeddings` gets the id `i`.

    Rows are converted to float32 and added piece by piece, so a memory-mapped float16 array is never held as a whole.
    "Flat" is exact with respect to the stored embeddings: over float16 embeddings it ranks their rounded values.

    Args:
        embeddings (`np.ndarray` of shape `[N, D]`, float16 or float32): May be memory-mapped.
        factory (`str`, *optional*, defaults to `"Flat"`): A FAISS factory string of the families Flat, SQ, PQ, IVF,
            HNSW, with a PCA or OPQ before or a refinement behind: `"SQ8"`, `"IVF1024,SQ8"`, `"OPQ16,IVF1024,PQ16"`.
        train_size (`int`, *optional*): How many rows, drawn at random, train centroids and codebooks; all by default.
        reuse (`str` or `Path`, *optional*): The index file of an earlier generation with the same factory, whose
            centroids and codebooks are taken over instead of trained. A path and not an index, because emptying a
            memory-mapped index makes FAISS abort the process.
        search_parameters (`str`, *optional*): FAISS's own notation, stored in the file: `"nprobe=32"`,
            `"efSearch=128"`. Default: `nprobe` the square root of the number of lists, `efSearch` 64, `k_factor` 4.
        threads (`int`, *optional*): Threads of this call; FAISS's setting by default.
        seed (`int`, *optional*, defaults to 0): Draws the training rows.

    Returns:
        `faiss.Index`: Trained, with `ntotal == N`.

    Raises:
        ValueError: If the array is empty or not a matrix, holds NaN, is too small to train on, or the factory is none
            of those families.
    """
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ValueError(f"Embeddings must have shape [N, D] with N, D > 0, got {list(embeddings.shape)}.")
    rows, dimension = embeddings.shape
    index = _new_index(dimension, factory)
    with search_threads(threads):
        if not index.is_trained:
            reused = None if reuse is None else _read_emptied(Path(reuse), like=index)
            if reused is not None:
                index = reused
            else:
                _train(index, embeddings, factory, min(train_size or rows, rows), seed)
        _set_search_parameters(index, search_parameters)
        for start in range(0, rows, _ROWS_A_CHUNK):
            chunk = np.ascontiguousarray(embeddings[start : start + _ROWS_A_CHUNK], dtype=np.float32)
            check_finite(chunk, start)
            index.add(chunk)
    return index


def _new_index(dimension: int, factory: str) -> faiss.Index:
    try:
        index = faiss.index_factory(dimension, factory, faiss.METRIC_INNER_PRODUCT)
    except RuntimeError as error:
        raise ValueError(
            f"FAISS cannot make an inner-product index of dimension {dimension} from factory {factory!r}: "
            f"{faiss_reason(error)}. Known to work: Flat, SQ8, PQ16, IVF64,Flat, IVF64,PQ16, HNSW32, OPQ16,PQ16."
        ) from error
    check_family(index, f"factory {factory!r}")
    return index


def _read_emptied(path: Path, like: faiss.Index) -> faiss.Index | None:
    """The index of `path` with its rows removed, or `None` if it is of another kind than `like`."""
    index = faiss.read_index(str(path))
    if type(index) is not type(like) or index.d != like.d or index.sa_code_size() != like.sa_code_size():
        return None
    index.reset()
    return index


def _train(index: faiss.Index, embeddings: np.ndarray, factory: str, size: int, seed: int) -> None:
    rows = len(embeddings)
    drawn = np.sort(np.random.default_rng(seed).choice(rows, size, replace=False)) if size < rows else slice(None)
    sample = np.ascontiguousarray(embeddings[drawn], dtype=np.float32)
    check_finite(sample)
    try:
        index.train(sample)
    except RuntimeError as error:
        raise ValueError(
            f"Factory {factory!r} cannot be trained on {size} of {rows} rows: {faiss_reason(error)}. Use fewer lists "
            "or codes, or 'Flat', which needs no training."
        ) from error


def _set_search_parameters(index: faiss.Index, parameters: str | None) -> None:
    if parameters is None:
        lists, graph = faiss.try_extract_index_ivf(index), index
        if lists is not None:
            lists.nprobe = max(1, round(lists.nlist**0.5))
        if isinstance(graph, faiss.IndexHNSW):
            graph.hnsw.efSearch = 64
        if isinstance(graph, faiss.IndexRefine):
            graph.k_factor = 4  # how many times k the compressed search hands on to be re-ranked; 1 would do nothing
        return
    try:
        # The stub knows only the overload with numbers.
        faiss.ParameterSpace().set_index_parameters(index, parameters)  # type: ignore[arg-type]
    except RuntimeError as error:
        raise ValueError(
            f"FAISS does not take the search parameters {parameters!r}: {faiss_reason(error)}."
        ) from error


def search(
    index: faiss.Index, queries: np.ndarray, k: int, *, threads: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """
    The `k` best rows for each query by inner product.

    Args:
        index (`faiss.Index`): The index.
        queries (`np.ndarray` of shape `[Q, D]`): Converted to float32.
        k (`int`): How many rows; may exceed the index.
        threads (`int`, *optional*): Threads of this call; FAISS's setting by default. One thread is the safe choice
            beside another busy process.

    Returns:
        `tuple` of scores float32 `[Q, k]`, best first, and rows int64 `[Q, k]`. Where the index found nothing more the
        score is `-inf` and the row is [`ABSENT`].

    Raises:
        ValueError: If shapes do not fit or a query holds NaN or infinity.
        IndexFileError: If the index returns a row that it does not have.
    """
    queries = np.ascontiguousarray(queries, dtype=np.float32)
    if queries.ndim != 2 or queries.shape[1] != index.d:
        raise ValueError(
            f"Queries must have shape [Q, {index.d}], the dimension of the index, got {list(queries.shape)}."
        )
    if k < 1:
        raise ValueError(f"k is {k}: at least one row must be asked for.")
    bad = np.flatnonzero(~np.isfinite(queries).all(axis=1))
    if len(bad):
        raise ValueError(f"Query {int(bad[0])} holds NaN or infinity ({len(bad)} of {len(queries)} queries do).")
    scores = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), ABSENT, dtype=np.int64)
    found = min(k, index.ntotal)
    if not len(queries) or not found:
        return scores, rows
    with search_threads(threads):
        scores[:, :found], rows[:, :found] = index.search(queries, found)
    if rows.max() >= index.ntotal:
        raise IndexFileError(f"The index of {index.ntotal} rows returned row {rows.max()}: it is damaged, rebuild it.")
    missing = rows < 0
    rows[missing], scores[missing] = ABSENT, -np.inf
    return scores, rows
