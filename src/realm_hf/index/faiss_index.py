"""Building FAISS indexes over passage embeddings. Always inner product.

Exact search over a small corpus is a `Flat` index and not a matrix product with `np.argpartition` or `torch.topk`: at
50,000 x 128, 16 queries and k = 32 FAISS takes 12 ms, torch 24 ms, numpy 30 ms: it keeps the best k block by block.
"""

from __future__ import annotations

from pathlib import Path

import faiss
import numpy as np

from realm_hf.index.default_index import plan_index, reach_recall
from realm_hf.index.faiss_search import search_threads
from realm_hf.index.file import check_family, faiss_reason

__all__ = ["build_index", "check_finite"]

_ROWS_A_CHUNK = 65_536


def check_finite(embeddings: np.ndarray, first_row: int = 0) -> None:
    """
    Refuse NaN and infinity, which FAISS would index silently and return for every query or for none.

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
    recall: float | None = None,
) -> faiss.Index:
    """
    Build an inner-product index; row `i` of `embeddings` gets the id `i`.

    Rows are converted to float32 and added piece by piece, so a memory-mapped float16 array is never held as a whole.
    "Flat" is exact with respect to the stored embeddings: over float16 embeddings it ranks their rounded values.

    Args:
        embeddings (`np.ndarray` of shape `[N, D]`, float16 or float32): May be memory-mapped.
        factory (`str`, *optional*, defaults to `"Flat"`): A FAISS factory string of the families Flat, SQ, PQ, IVF,
            HNSW, with a PCA or OPQ before or a refinement behind: `"SQ8"`, `"IVF1024,SQ8"`, `"OPQ16,IVF1024,PQ16"`.
            `"auto"` takes what suits the number of rows, see [`~realm_hf.index.default_index.plan_index`], and
            searches as many lists as a recall@5 of 0.97 takes.
        train_size (`int`, *optional*): How many rows, drawn at random, train centroids and codebooks; all by default.
        reuse (`str` or `Path`, *optional*): The index file of an earlier generation with the same factory, whose
            centroids and codebooks are taken over instead of trained. A path and not an index, because emptying a
            memory-mapped index makes FAISS abort the process.
        search_parameters (`str`, *optional*): FAISS's own notation, stored in the file: `"nprobe=32"`,
            `"efSearch=128"`. Default: `nprobe` the square root of the number of lists, `efSearch` 64, `k_factor` 4.
        threads (`int`, *optional*): Threads of this call; FAISS's setting by default.
        seed (`int`, *optional*, defaults to 0): Draws the training rows.
        recall (`float`, *optional*): The share of the exact best 5 that the index has to find, on passages taken as
            queries: lists are added to the search until it does ([`~realm_hf.index.default_index.reach_recall`]).

    Returns:
        `faiss.Index`: Trained, with `ntotal == N`.

    Raises:
        ValueError: If the array is empty or not a matrix, holds NaN, is too small to train on, or the factory is none
            of those families.
    """
    if embeddings.ndim != 2 or 0 in embeddings.shape:
        raise ValueError(f"Embeddings must have shape [N, D] with N, D > 0, got {list(embeddings.shape)}.")
    rows, dimension = embeddings.shape
    plan = plan_index(factory, rows, train_size)
    factory, train_size = plan.factory, plan.train_size
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
        wanted = plan.recall if recall is None and search_parameters is None else recall
        if wanted is not None:
            reach_recall(index, embeddings, wanted)
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
    _skip_polysemous_training(index)
    return index


def _skip_polysemous_training(index: faiss.Index) -> None:
    """
    Leave the codes of a product quantizer in the order in which they come.

    FAISS would order them for a filter by Hamming distance that no search here uses: 2.8 s of processor time for each
    byte of a code, whatever the corpus, and 90 s for PQ32. Neither codes' vectors nor scores depend on it.
    """
    if isinstance(index, faiss.IndexPreTransform):
        _skip_polysemous_training(faiss.downcast_index(index.index))
    elif isinstance(index, faiss.IndexRefine):
        _skip_polysemous_training(faiss.downcast_index(index.base_index))
    elif isinstance(index, faiss.IndexHNSW):
        _skip_polysemous_training(faiss.downcast_index(index.storage))
    elif isinstance(index, faiss.IndexPQ | faiss.IndexIVFPQ):
        index.do_polysemous_training = False  # type: ignore[union-attr]  # not in the stub


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
