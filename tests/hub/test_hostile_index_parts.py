"""Index files whose parts do not fit one another: found before a search of many queries would die of it."""

import runpy
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from published_folder import DIMENSION, ROWS, put, put_index

from realm_hf.index import probe as index_probe
from realm_hf.index.base import IndexFileError
from realm_hf.index.faiss_index import build_index
from realm_hf.index.file import open_index, save_index
from realm_hf.index.structure import StructureError, check_contents, check_structure
from realm_hf.untrusted.checks import HubArtefactError

MANY = 700
FAMILIES = (
    "Flat", "SQ8", "SQ4", "SQfp16", "SQbf16", "PQ4x4", "PQ4x4fs", "IVF4,Flat", "IVF4,SQ8", "IVF4,SQfp16", "IVF4,PQ4x4",
    "IVF4,PQ4x4fs", "IVF4_HNSW8,Flat", "HNSW8", "HNSW8_SQ8", "PCA8,Flat", "OPQ4_8,PQ4x4", "L2norm,Flat",
    "ITQ8,Flat", "Pad20,Flat", "PQ4x4fs,RFlat", "PQ4x4,Refine(SQ8)", "RR8,IVF4,PQ4x4",
)  # fmt: skip


@pytest.fixture(scope="module")
def many() -> np.ndarray:
    return np.random.default_rng(1).standard_normal((MANY, DIMENSION)).astype(np.float32)


@pytest.mark.parametrize("factory", FAMILIES)
def test_every_family_that_is_loaded_fits(many, tmp_path, factory):
    index = faiss.index_factory(DIMENSION, factory, faiss.METRIC_INNER_PRODUCT)
    index.train(many)
    index.add(many)
    save_index(index, tmp_path / "index.faiss")

    found = open_index(tmp_path / "index.faiss", rows=MANY, dimension=DIMENSION)

    check_structure(found)
    check_contents(found)
    if factory in ("IVF4_HNSW8,Flat", "PQ4x4fs,RFlat", "IVF4,PQ4x4fs"):
        index_probe.probe_index(tmp_path / "index.faiss", rows=MANY, dimension=DIMENSION)


def lists(vectors, factory="IVF4,Flat"):
    return build_index(vectors, factory)


def with_quantizer(vectors, dimension=DIMENSION, centroids=4):
    """Lists whose coarse quantizer is another one; FAISS writes and reads it without a word."""
    index = lists(vectors)
    quantizer = faiss.IndexFlatIP(dimension)
    quantizer.add(np.ones((centroids, dimension), np.float32))
    index.own_fields = False
    index.quantizer = quantizer
    return index, quantizer


def quantizer_of_another_dimension(vectors):
    return with_quantizer(vectors, dimension=DIMENSION * 32)


def quantizer_with_more_centroids(vectors):
    return with_quantizer(vectors, centroids=4000)


def transform_of_another_output(vectors):
    index = build_index(vectors, "PCA8,Flat")
    inner = faiss.IndexFlatIP(DIMENSION)
    inner.add(vectors)
    index.own_fields = False
    index.index = inner
    return index, inner


def transforms_that_do_not_follow(vectors):
    index = build_index(vectors, "PCA8,Flat")
    step = faiss.NormalizationTransform(4, 2.0)
    index.chain.push_back(step)
    step.this.disown()
    return (index,)


def transform_with_a_short_matrix(vectors):
    index = build_index(vectors, "PCA8,Flat")
    step = faiss.downcast_VectorTransform(index.chain.at(0))
    step.A.resize(8)
    return index, step


def refinement_of_fewer_rows(vectors):
    refined = faiss.IndexFlatIP(DIMENSION)
    refined.add(vectors)
    base = build_index(vectors, "SQ8")
    index = faiss.IndexRefine(base, refined)
    refined.reset()
    refined.add(vectors[:40])
    return index, base, refined


def refinement_of_a_billion(vectors):
    index = build_index(vectors, "SQ8,RFlat")
    index.k_factor = 1e9
    return (index,)


def graph_over_fewer_rows(vectors):
    index = build_index(vectors, "HNSW8")
    storage = faiss.IndexFlatIP(DIMENSION)
    storage.add(vectors[:10])
    index.own_fields = False
    index.storage = storage
    return index, storage


def graph_with_a_row_on_every_level(vectors):
    index = build_index(vectors, "HNSW8")
    index.hnsw.max_level = 5
    return (index,)


def graph_that_takes_a_billion_candidates(vectors):
    index = build_index(vectors, "HNSW8")
    index.hnsw.efSearch = 10**9
    return (index,)


def scalar_quantizer_without_ranges(vectors):
    index = build_index(vectors, "SQ8")
    index.sq.trained.resize(2)
    return (index,)


def product_quantizer_of_another_dimension(vectors):
    index = build_index(vectors, "PQ4x4")
    index.pq = faiss.ProductQuantizer(64, 4, 4)
    index.pq.centroids.resize(64 * 16)
    return (index,)


def lists_within_lists_without_end(vectors):
    base = build_index(vectors)
    kept = [base]
    for _ in range(6):
        base = faiss.IndexRefine(base, base)
        kept.append(base)
    return base, *kept


def lists_with_a_direct_map(vectors):
    index = lists(vectors)
    index.make_direct_map()
    return (index,)


# Some of these FAISS refuses itself, in some of its versions and in words of its own.
EVIL = (
    (quantizer_of_another_dimension, "the dimension of the coarse quantizer of the index is 512 where 16"),
    (quantizer_with_more_centroids, "the number of centroids of the index is 4000 where 4"),
    (transform_of_another_output, "16 where 8|d_out"),
    (transforms_that_do_not_follow, "4 where 8|d_in"),
    (transform_with_a_short_matrix, "the matrix of transform 0"),
    (refinement_of_fewer_rows, "40 where 48|ntotal"),
    (refinement_of_a_billion, "k_factor"),
    (graph_over_fewer_rows, "10 where 48|storage"),
    (graph_with_a_row_on_every_level, "level"),
    (graph_that_takes_a_billion_candidates, "the efSearch of the index"),
    (scalar_quantizer_without_ranges, "the ranges of the scalar quantizer|trained"),
    (product_quantizer_of_another_dimension, "the dimension of the product quantizer|pq"),
    (lists_within_lists_without_end, "nested|recursion|deep"),
    (lists_with_a_direct_map, "a direct map"),
)


@pytest.mark.parametrize(("make", "words"), EVIL, ids=[make.__name__ for make, _ in EVIL])
def test_parts_that_do_not_fit(folder, load, vectors, make, words):
    index, *_kept = make(vectors)
    put_index(folder, index)

    with pytest.raises(HubArtefactError, match=rf"(?s)index file .* is refused: .*({words})"):
        load()


def test_the_graph_of_the_centroids_is_read_too(folder, load, vectors):
    index = build_index(vectors, "IVF8_HNSW4,Flat")
    graph = faiss.downcast_index(index.quantizer).hnsw
    neighbours = faiss.vector_to_array(graph.neighbors)
    content = faiss.serialize_index(index).tobytes()
    put(folder, "index/default.faiss", content.replace(neighbours.tobytes(), np.full_like(neighbours, 9).tobytes(), 1))

    with pytest.raises(HubArtefactError, match=r"index file .* is refused"):
        load()


def test_an_index_of_ones_own_is_compared_too(vectors, tmp_path):
    index, _quantizer = quantizer_of_another_dimension(vectors)
    save_index(index, tmp_path / "index.faiss")

    with pytest.raises(IndexFileError, match="does not fit together: the dimension of the coarse quantizer"):
        open_index(tmp_path / "index.faiss")


def test_a_graph_that_leads_to_a_level_that_is_not_there(many):
    index = build_index(many, "HNSW8")
    graph = index.hnsw
    levels, offsets = faiss.vector_to_array(graph.levels), faiss.vector_to_array(graph.offsets)
    high, low = int(np.argmax(levels > 1)), int(np.argmax(levels == 1))
    neighbours = faiss.rev_swig_ptr(graph.neighbors.data(), graph.neighbors.size())
    check_contents(index)
    neighbours[int(offsets[high]) + 16] = low  # the first place of its second level

    with pytest.raises(StructureError, match="a level that the row does not have"):
        check_contents(index)


def test_a_search_that_reads_past_few_queries_dies():
    """So that a fault that no check knows of is found by one query, not by five thousand."""
    child = Path(index_probe.__file__).with_name("probe_child.py")
    program = (
        "import ctypes, runpy, sys, numpy\n"
        "queries = runpy.run_path(sys.argv[1])['fenced'](numpy.ones((3, 16), numpy.float32))\n"
        "ctypes.string_at(queries.ctypes.data, queries.nbytes + int(sys.argv[2]))\n"
    )
    codes = [subprocess.run([sys.executable, "-c", program, child, str(more)]).returncode for more in (0, 1)]

    assert codes[0] == 0
    assert codes[1] < 0


def test_what_the_probe_finds_is_compared(vectors):
    search = runpy.run_path(str(Path(index_probe.__file__).with_name("probe_child.py")))["search"]
    index = build_index(vectors)

    search(index, vectors, ROWS, ROWS)
    with pytest.raises(SystemExit, match="it returns row"):
        search(index, vectors, ROWS - 10, ROWS)
