"""Do the parts of a FAISS index fit one another? FAISS reads each as it is written, and a search trusts them all.

A coarse quantizer of another dimension reads past the queries, a code that is longer than its list past the list: a
few queries find nothing wrong, and thousands kill the process. Like `guarded_read` this module imports nothing of the
package: the child process that looks at an untrusted index loads it by its path.
"""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

__all__ = ["StructureError", "check_contents", "check_structure"]

_untyped: Any = faiss  # its stub lacks some of its classes
_DEEPEST = 4  # indexes within one another: a transform, a refinement, lists, and the graph of their centroids
_LARGEST_K_FACTOR = 1000.0  # a refinement asks its base for so many times the rows; published ones have 1 to 32
_LARGEST_EF_SEARCH = 1 << 16  # candidates of a graph's search, for each of which memory is taken
_ROWS_AT_ONCE = 1 << 16

_CODE_BITS = {
    faiss.ScalarQuantizer.QT_8bit: 8,
    faiss.ScalarQuantizer.QT_4bit: 4,
    faiss.ScalarQuantizer.QT_8bit_uniform: 8,
    faiss.ScalarQuantizer.QT_4bit_uniform: 4,
    faiss.ScalarQuantizer.QT_fp16: 16,
    faiss.ScalarQuantizer.QT_8bit_direct: 8,
    faiss.ScalarQuantizer.QT_6bit: 6,
    faiss.ScalarQuantizer.QT_bf16: 16,
    faiss.ScalarQuantizer.QT_8bit_direct_signed: 8,
}
_TRAINED_EACH = (faiss.ScalarQuantizer.QT_8bit, faiss.ScalarQuantizer.QT_4bit, faiss.ScalarQuantizer.QT_6bit)
_TRAINED_ONCE = (faiss.ScalarQuantizer.QT_8bit_uniform, faiss.ScalarQuantizer.QT_4bit_uniform)


class StructureError(ValueError):
    """A part of an index does not fit the others; the message names it with its numbers."""


def check_structure(index: faiss.Index) -> None:
    """
    Compare dimensions, rows, metrics and sizes of an index and all that is nested in it: microseconds, nothing is
    read but the header.

    Args:
        index (`faiss.Index`): Of one of the families Flat, SQ, PQ, IVF, HNSW, transforms and refinement.

    Raises:
        StructureError: Names the part that does not fit.
    """
    _check(index, "the index", 0)


def check_contents(index: faiss.Index) -> None:
    """
    Read what a search follows: the rows that lists name, and the neighbours in a graph. Needs [`check_structure`].

    Raises:
        StructureError: Names the first one that is not there.
    """
    if isinstance(index, faiss.IndexPreTransform):
        check_contents(_inner(index.index))
    elif isinstance(index, faiss.IndexRefine):
        check_contents(_inner(index.base_index))
    elif isinstance(index, faiss.IndexIVF):
        check_contents(_inner(index.quantizer))
        _list_contents(index)
        _equal("the kernel that it names", getattr(index, "implem", 0), 0)
    elif isinstance(index, faiss.IndexHNSW):
        _graph_contents(index)
    else:
        _equal("the kernel that it names", getattr(index, "implem", 0), 0)


def _inner(part: faiss.Index | None) -> faiss.Index:
    if part is None:
        raise StructureError("a part of it is missing")
    return faiss.downcast_index(part)


def _equal(what: str, found: float, expected: float) -> None:
    if found != expected:
        raise StructureError(f"{what} is {found} where {expected} is needed")


def _check(index: faiss.Index, name: str, depth: int) -> None:
    if depth > _DEEPEST:
        raise StructureError(f"{name} is nested {depth} deep")
    if not index.is_trained or index.d < 1 or index.ntotal < 0:
        raise StructureError(f"{name} is untrained, or has {index.ntotal} rows of dimension {index.d}")
    if isinstance(index, faiss.IndexPreTransform):
        _pre_transform(index, name, depth)
    elif isinstance(index, faiss.IndexRefine):
        _refine(index, name, depth)
    elif isinstance(index, faiss.IndexIVF):
        _ivf(index, name, depth)
    elif isinstance(index, faiss.IndexHNSW):
        _hnsw(index, name, depth)
    elif isinstance(index, faiss.IndexPQFastScan):
        _packed_codes(index, name)
    else:
        _flat_codes(index, name)


def _nested(index: faiss.Index, part: faiss.Index | None, name: str, depth: int, dimension: int) -> faiss.Index:
    """A part that holds the rows of the whole."""
    inner = _inner(part)
    _equal(f"the dimension of {name}", inner.d, dimension)
    _equal(f"the number of rows of {name}", inner.ntotal, index.ntotal)
    _equal(f"the metric of {name}", inner.metric_type, index.metric_type)
    _check(inner, name, depth + 1)
    return inner


def _pre_transform(index: Any, name: str, depth: int) -> None:
    dimension = index.d
    for number in range(index.chain.size()):
        step = faiss.downcast_VectorTransform(index.chain.at(number))
        _transform(step, dimension, f"transform {number} of {name}")
        dimension = step.d_out
    _nested(index, index.index, f"what {name} transforms for", depth, dimension)


def _transform(step: Any, dimension: int, what: str) -> None:
    _equal(f"the input of {what}", step.d_in, dimension)
    if not step.is_trained or step.d_out < 1:
        raise StructureError(f"{what} is untrained, or gives {step.d_out} numbers")
    if isinstance(step, faiss.LinearTransform):
        _equal(f"the matrix of {what}", step.A.size(), step.d_in * step.d_out)
        _equal(f"the bias of {what}", step.b.size(), step.d_out if step.have_bias else step.b.size())
    elif isinstance(step, faiss.ITQTransform):
        _equal(f"the mean of {what}", step.mean.size(), step.d_in)
        _equal(f"the output of {what}", step.pca_then_itq.d_out, step.d_out)
        _transform(step.pca_then_itq, dimension, what)
    elif isinstance(step, faiss.RemapDimensionsTransform):
        places = faiss.vector_to_array(step.map)
        _equal(f"the map of {what}", len(places), step.d_out)
        if places.min() < -1 or places.max() >= step.d_in:
            raise StructureError(f"{what} takes number {places.max()} of {step.d_in}")
    elif isinstance(step, faiss.CenteringTransform):
        _equal(f"the mean of {what}", step.mean.size(), step.d_in)
        _equal(f"the output of {what}", step.d_out, step.d_in)
    elif isinstance(step, faiss.NormalizationTransform):
        _equal(f"the output of {what}", step.d_out, step.d_in)
    else:
        raise StructureError(f"{what} is a {type(step).__name__}, which is not loaded")


def _refine(index: Any, name: str, depth: int) -> None:
    if not 1 <= index.k_factor <= _LARGEST_K_FACTOR:
        raise StructureError(f"the k_factor of {name} is {index.k_factor}, not between 1 and {_LARGEST_K_FACTOR:.0f}")
    _nested(index, index.base_index, f"the base of {name}", depth, index.d)
    _nested(index, index.refine_index, f"the refinement of {name}", depth, index.d)


def _ivf(index: Any, name: str, depth: int) -> None:
    quantizer = _inner(index.quantizer)
    _equal(f"the dimension of the coarse quantizer of {name}", quantizer.d, index.d)
    _equal(f"the number of centroids of {name}", quantizer.ntotal, index.nlist)
    if index.nlist < 1 or index.nprobe < 1:
        raise StructureError(f"{name} has {index.nlist} lists, {index.nprobe} of them searched")
    _check(quantizer, f"the coarse quantizer of {name}", depth + 1)
    if index.invlists is None:
        raise StructureError(f"{name} has no lists")
    lists = faiss.downcast_InvertedLists(index.invlists)
    _equal(f"the number of inverted lists of {name}", lists.nlist, index.nlist)
    if isinstance(index, faiss.IndexIVFPQFastScan):
        _fast_scan(index, name)
        if not isinstance(lists, _untyped.BlockInvertedLists):
            raise StructureError(f"the lists of {name} are {type(lists).__name__}, not in blocks")
        _equal(f"the rows of a block of {name}", lists.n_per_block, index.bbs)
        _equal(f"the bytes of a block of {name}", lists.block_size, index.bbs * index.M2 // 2)
    else:
        _equal(f"the code size of the lists of {name}", lists.code_size, index.code_size)
        _equal(f"the code size of {name}", index.code_size, _code_size(index, name))


def _fast_scan(index: Any, name: str) -> None:
    _code_size(index, name)
    _equal(f"the bits of a code of {name}", index.pq.nbits, 4)
    _equal(f"the sub-quantizers of {name}", index.M, index.pq.M)
    _equal(f"the packed sub-quantizers of {name}", index.M2, index.M + index.M % 2)
    _equal(f"the centroids of a sub-quantizer of {name}", index.ksub, 16)
    if index.bbs < 32 or index.bbs % 32:
        raise StructureError(f"{name} is packed by {index.bbs} rows, which is no multiple of 32")


def _packed_codes(index: Any, name: str) -> None:
    _fast_scan(index, name)
    _equal(f"the packed rows of {name}", index.ntotal2, -(-index.ntotal // index.bbs) * index.bbs)
    _equal(f"the codes of {name}", index.codes.size(), index.ntotal2 * index.M2 // 2)


def _flat_codes(index: Any, name: str) -> None:
    if not isinstance(index, faiss.IndexFlatCodes):
        raise StructureError(f"{name} is a {type(index).__name__}, which is not loaded")
    if isinstance(index, _untyped.IndexPQ) and index.search_type != _untyped.IndexPQ.ST_PQ:
        raise StructureError(f"{name} searches by method {index.search_type}, not by its codes")
    _equal(f"the code size of {name}", index.code_size, _code_size(index, name))
    _equal(f"the codes of {name}", index.codes.size(), index.ntotal * index.code_size)


def _code_size(index: Any, name: str) -> int:
    """Bytes of one row as the index's quantizer writes it, after that was checked."""
    if hasattr(index, "sq"):
        quantizer, what = index.sq, f"the scalar quantizer of {name}"
        if quantizer.qtype not in _CODE_BITS:
            raise StructureError(f"{what} is of type {quantizer.qtype}, which is not loaded")
        _equal(f"the dimension of {what}", quantizer.d, index.d)
        _equal(f"the code size of {what}", quantizer.code_size, -(-index.d * _CODE_BITS[quantizer.qtype] // 8))
        each, once = quantizer.qtype in _TRAINED_EACH, quantizer.qtype in _TRAINED_ONCE
        if each or once:
            _equal(f"the ranges of {what}", quantizer.trained.size(), 2 * index.d if each else 2)
        return int(quantizer.code_size)
    if hasattr(index, "pq"):
        quantizer, what = index.pq, f"the product quantizer of {name}"
        if not 1 <= quantizer.nbits <= 16 or quantizer.M < 1:
            raise StructureError(f"{what} has {quantizer.M} parts of {quantizer.nbits} bits")
        _equal(f"the dimension of {what}", quantizer.d, index.d)
        _equal(f"the parts of {what}", quantizer.M * quantizer.dsub, index.d)
        _equal(f"the centroids of {what}", quantizer.ksub, 1 << quantizer.nbits)
        _equal(f"the table of {what}", quantizer.centroids.size(), index.d * quantizer.ksub)
        _equal(f"the code size of {what}", quantizer.code_size, (quantizer.M * quantizer.nbits + 7) // 8)
        return int(quantizer.code_size)
    return 4 * int(index.d)


def _hnsw(index: Any, name: str, depth: int) -> None:
    _nested(index, index.storage, f"the storage of {name}", depth, index.d)
    graph, rows = index.hnsw, index.ntotal
    _equal(f"the levels of {name}", graph.levels.size(), rows)
    _equal(f"the offsets of {name}", graph.offsets.size(), rows + 1)
    _equal(f"the search method of {name}", graph.search_method, 0)
    if not 1 <= graph.efSearch <= _LARGEST_EF_SEARCH:
        raise StructureError(f"the efSearch of {name} is {graph.efSearch}, not between 1 and {_LARGEST_EF_SEARCH}")
    if not (0 <= graph.entry_point < rows or (rows == 0 and graph.entry_point == -1)):
        raise StructureError(f"{name} is entered at row {graph.entry_point} of {rows}")
    room = faiss.vector_to_array(graph.cum_nneighbor_per_level)
    if not 1 <= len(room) <= 64 or room[0] != 0 or (np.diff(room) < 0).any() or graph.max_level >= len(room) - 1:
        raise StructureError(f"{name} has {graph.max_level + 1} levels with room for {room[:8].tolist()} neighbours")


def _list_contents(index: Any) -> None:
    lists, rows, listed = index.invlists, index.ntotal, 0
    if index.direct_map.type != _untyped.DirectMap.NoMap:
        raise StructureError("it brings a direct map, which nothing here needs")
    for number in range(index.nlist):
        size = lists.list_size(number)
        listed += size
        if size:
            ids = faiss.rev_swig_ptr(lists.get_ids(number), size)
            if ids.min() < 0 or ids.max() >= rows:
                raise StructureError(f"its lists name row {ids.max() if ids.max() >= rows else ids.min()} of {rows}")
    _equal("the number of rows in its lists", listed, rows)


def _graph_contents(index: Any) -> None:
    graph, rows = index.hnsw, index.ntotal
    levels, offsets = faiss.vector_to_array(graph.levels), faiss.vector_to_array(graph.offsets)
    room = faiss.vector_to_array(graph.cum_nneighbor_per_level)
    if rows and (levels.min() < 1 or levels.max() >= len(room) or levels[graph.entry_point] <= graph.max_level):
        raise StructureError(f"a row of its graph has {levels.min()} to {levels.max()} levels, of {len(room) - 1}")
    total = graph.neighbors.size()
    if offsets[0] != 0 or offsets[-1] != total or not np.array_equal(np.diff(offsets), room[levels]):
        raise StructureError("the neighbours of its graph do not lie where its levels say")
    neighbours = faiss.rev_swig_ptr(graph.neighbors.data(), total) if total else np.zeros(0, np.int32)
    for start in range(0, rows, _ROWS_AT_ONCE):
        stop = min(rows, start + _ROWS_AT_ONCE)
        first = int(offsets[start])
        piece = neighbours[first : int(offsets[stop])]
        if len(piece) and (piece.min() < -1 or piece.max() >= rows):
            raise StructureError(f"its graph leads to row {piece.max()} of {rows}")
        # A neighbour on a level must have a place there itself: the search goes on from it.
        owner = np.repeat(np.arange(start, stop), room[levels[start:stop]])
        level = (
            np.searchsorted(room, np.arange(len(piece)) + first - offsets[owner].astype(np.int64), side="right") - 1
        )
        if (levels[piece[piece >= 0]] <= level[piece >= 0]).any():
            raise StructureError("its graph leads to a row on a level that the row does not have")
