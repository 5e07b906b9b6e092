import os
import subprocess
import sys
import time

import faiss
import numpy as np
import pytest

from realm_hf.index.base import IndexFileError
from realm_hf.index.exact import exact_search, recall_at_k
from realm_hf.index.faiss_index import build_index
from realm_hf.index.faiss_search import BLAS_THRESHOLD, FaissIndex, search, search_threads
from realm_hf.index.file import open_index, save_index

# Recall@10 of 300 random vectors, and how much of it each family must reach.
FAMILIES = {"Flat": 1.0, "SQfp16": 0.99, "SQ8": 0.9, "IVF8,Flat": 0.5, "PQ8x4": 0.2, "HNSW16": 0.95, "PCA8,Flat": 0.2}


def filled(index):
    rows = np.ones((300, index.d), np.float32)
    index.train(rows)
    index.add(rows)
    return index


def brute_force(embeddings, queries, k):
    scores = queries.astype(np.float64) @ embeddings.astype(np.float64).T
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(scores, rows, axis=1), rows


@pytest.mark.parametrize("factory", FAMILIES)
def test_every_family_ranks_by_inner_product_and_survives_a_mapped_load(factory, vectors, tmp_path):
    vectors = vectors * np.linspace(0.5, 2, len(vectors), dtype=np.float32)[:, None]  # lengths matter to this metric
    index = build_index(vectors, factory)
    save_index(index, tmp_path / "x.faiss")
    mapped = open_index(tmp_path / "x.faiss", rows=300, dimension=16)
    queries = vectors[:32]
    scores, rows = search(mapped, queries, 10)
    np.testing.assert_array_equal(rows, search(index, queries, 10)[1])
    assert (np.diff(scores, axis=1) <= 0).all()
    assert recall_at_k(vectors, mapped, queries, 10) >= FAMILIES[factory]


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_flat_search_is_exact_for_what_is_stored(vectors, dtype):
    stored = vectors.astype(dtype)
    scores, rows = search(build_index(stored), vectors[:20], 7)
    expected_scores, expected_rows = brute_force(stored, vectors[:20], 7)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)


def test_exact_search_equals_brute_force_over_several_pieces(vectors, monkeypatch):
    monkeypatch.setattr("realm_hf.index.exact._ROWS_A_CHUNK", 64)
    scores, rows = exact_search(vectors.astype(np.float16), vectors[:20], 9)
    expected_scores, expected_rows = brute_force(vectors.astype(np.float16), vectors[:20], 9)
    np.testing.assert_array_equal(rows, expected_rows)
    np.testing.assert_allclose(scores, expected_scores, atol=1e-5)


@pytest.mark.parametrize("factory", ["Flat", "HNSW4", "IVF8,Flat"])
def test_k_beyond_the_corpus_pads_and_never_leaks_minus_one(vectors, factory):
    index = build_index(vectors[:20], factory, search_parameters="nprobe=1" if "IVF" in factory else None)
    scores, rows = search(index, vectors[:5], 30)
    for row_scores, row in zip(scores, rows, strict=True):
        found = row != -2
        assert len(set(row[found])) == found.sum() and (row[found] >= 0).all() and (row[found] < 20).all()
        assert np.isneginf(row_scores[~found]).all() and np.isfinite(row_scores[found]).all()
    assert (rows[:, 20:] == -2).all()
    if factory == "Flat":
        np.testing.assert_array_equal(np.sort(rows[:, :20]), np.tile(np.arange(20), (5, 1)))


@pytest.mark.parametrize("factory", ["PQ8", "IVF1,PQ8", "OPQ8,PQ8", "PQ8,RFlat", "HNSW4_PQ8"])
def test_codes_are_not_ordered_for_a_filter_that_no_search_uses(factory):
    rows = np.random.default_rng(0).standard_normal((256, 16)).astype(np.float32)  # one for each of 256 centroids
    index = build_index(rows, factory)
    while not isinstance(index, faiss.IndexPQ | faiss.IndexIVFPQ):
        inner = next(part for part in ("index", "base_index", "storage") if hasattr(index, part))
        index = faiss.downcast_index(getattr(index, inner))
    assert not index.do_polysemous_training


def test_recall_is_one_for_an_exact_index_over_duplicates(vectors):
    doubled = np.concatenate([vectors[:50]] * 4)
    assert recall_at_k(doubled, build_index(doubled), vectors[:20], 10) == 1.0


def test_recall_counts_what_a_coarse_index_misses(vectors):
    narrow = build_index(vectors, "IVF16,Flat", search_parameters="nprobe=1")
    wide = build_index(vectors, "IVF16,Flat", search_parameters="nprobe=16")
    assert recall_at_k(vectors, narrow, vectors[:32], 10) < 0.8
    assert recall_at_k(vectors, wide, vectors[:32], 10) == 1.0


def test_nan_in_an_embedding_is_named_by_row(vectors):
    vectors[217, 3] = np.nan
    with pytest.raises(ValueError, match="embedding of passage row 217 holds NaN"):
        build_index(vectors)


def test_reused_centroids_are_those_of_the_earlier_index(vectors, tmp_path):
    save_index(build_index(vectors, "IVF8,Flat"), tmp_path / "old.faiss")
    later = vectors + 0.5
    reused = build_index(later, "IVF8,Flat", reuse=tmp_path / "old.faiss")
    old = open_index(tmp_path / "old.faiss")
    np.testing.assert_array_equal(reused.quantizer.reconstruct_n(0, 8), old.quantizer.reconstruct_n(0, 8))
    assert reused.ntotal == 300
    trained = build_index(later, "IVF8,Flat")
    assert not np.allclose(trained.quantizer.reconstruct_n(0, 8), old.quantizer.reconstruct_n(0, 8))


def test_an_earlier_index_of_another_kind_is_not_reused(vectors, tmp_path):
    save_index(build_index(vectors, "IVF8,Flat"), tmp_path / "old.faiss")
    assert isinstance(build_index(vectors, "SQ8", reuse=tmp_path / "old.faiss"), faiss.IndexScalarQuantizer)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("Fleet", "cannot make an inner-product index of dimension 16 from factory 'Fleet'"),
        ("PQ5", "cannot make|cannot be trained"),
        ("LSH", "cannot make an inner-product index"),
        ("IDMap,Flat", "IndexIDMap, which is not supported"),
        ("IVF512,Flat", "cannot be trained on 300 of 300 rows"),
    ],
)
def test_a_factory_that_cannot_serve_is_refused_in_words(vectors, factory, message):
    with pytest.raises(ValueError, match=message):
        build_index(vectors, factory)


@pytest.mark.parametrize("shape", [(0, 16), (16,), (3, 0)])
def test_embeddings_that_are_no_matrix_are_refused(shape):
    with pytest.raises(ValueError, match=r"must have shape \[N, D\]"):
        build_index(np.zeros(shape, np.float32))


def test_bad_queries_are_refused_in_words(vectors):
    index = build_index(vectors)
    with pytest.raises(ValueError, match=r"shape \[Q, 16\].*got \[2, 8\]"):
        search(index, np.zeros((2, 8)), 3)
    queries = vectors[:4].copy()
    queries[2, 0] = np.inf
    with pytest.raises(ValueError, match="Query 2 holds NaN or infinity"):
        search(index, queries, 3)
    with pytest.raises(ValueError, match="k is 0"):
        search(index, vectors[:1], 0)


def test_no_queries_give_no_rows(vectors):
    scores, rows = search(build_index(vectors), np.zeros((0, 16), np.float32), 3)
    assert scores.shape == rows.shape == (0, 3)


def test_an_index_that_returns_foreign_ids_is_refused(vectors):
    lying = faiss.IndexIDMap(faiss.IndexFlatIP(16))
    lying.add_with_ids(vectors, np.arange(300) + 10_000)
    with pytest.raises(IndexFileError, match="300 rows returned row"):
        search(lying, vectors[:1], 3)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: filled(faiss.index_factory(16, "SQ8")), "uses FAISS metric 1, not inner product"),
        (lambda: faiss.IndexIDMap(faiss.IndexFlatIP(16)), "IndexIDMap, which is not supported"),
        (lambda: faiss.IndexScalarQuantizer(16, faiss.ScalarQuantizer.QT_8bit, 0), "untrained"),
        (lambda: faiss.IndexFlatIP(16), "holds 0 rows, but 300 were expected"),
        (lambda: filled(faiss.IndexFlatIP(8)), "has dimension 8, but 16 was expected"),
    ],
    ids=["metric", "family", "untrained", "rows", "dimension"],
)
def test_a_foreign_index_file_is_refused(make, message, tmp_path):
    faiss.write_index(make(), str(tmp_path / "x.faiss"))
    with pytest.raises(IndexFileError, match=message):
        open_index(tmp_path / "x.faiss", rows=300, dimension=16)


@pytest.mark.parametrize("mmap", [True, False])
def test_codes_in_many_lists_open_though_faiss_counts_a_table_for_them(vectors, tmp_path, mmap):
    index = build_index(vectors, "IVF256,PQ16")
    save_index(index, tmp_path / "x.faiss")
    assert 2 * (tmp_path / "x.faiss").stat().st_size < 256 * 16 * 256 * 4
    opened = open_index(tmp_path / "x.faiss", mmap=mmap, rows=300, dimension=16)
    np.testing.assert_array_equal(search(opened, vectors[:9], 5)[1], search(index, vectors[:9], 5)[1])


@pytest.mark.parametrize("factory", ["IVF4,Flat", "IVF256,PQ16"])
def test_lists_in_another_file_are_refused(vectors, tmp_path, factory):
    index = build_index(vectors, factory)
    lists = faiss.OnDiskInvertedLists(index.nlist, index.code_size, str(tmp_path / "lists.bin"))
    index.reset()
    index.replace_invlists(lists)
    index.add(vectors)
    faiss.write_index(index, str(tmp_path / "x.faiss"))
    with pytest.raises(IndexFileError, match="another file"):
        open_index(tmp_path / "x.faiss")


@pytest.mark.parametrize("keep", [0, 10, 5_000])
@pytest.mark.parametrize("mmap", [True, False])
def test_a_truncated_file_is_an_error_and_not_a_crash(vectors, tmp_path, keep, mmap):
    path = tmp_path / "x.faiss"
    save_index(build_index(vectors), path)
    with path.open("r+b") as file:
        file.truncate(keep)
    with pytest.raises(IndexFileError, match=f"{keep} bytes. is not a whole FAISS index"):
        open_index(path, mmap=mmap)


def test_a_header_that_claims_too_much_is_refused_without_allocating(vectors, tmp_path):
    path = tmp_path / "x.faiss"
    save_index(build_index(vectors), path)
    content = bytearray(path.read_bytes())
    position = content.index((300 * 16).to_bytes(8, "little"))  # the number of float32 that follow
    content[position : position + 8] = (1 << 34).to_bytes(8, "little")
    path.write_bytes(content)
    with pytest.raises(IndexFileError, match="not a whole FAISS index"):
        open_index(path)


def test_saving_over_a_mapped_index_leaves_the_map_intact(vectors, tmp_path):
    path = tmp_path / "x.faiss"
    save_index(build_index(vectors), path)
    mapped = open_index(path)
    before = search(mapped, vectors[:5], 3)
    save_index(build_index(vectors[:20]), path)
    np.testing.assert_array_equal(search(mapped, vectors[:5], 3)[1], before[1])
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.faiss"]


def test_a_failing_writer_is_reported_and_leaves_nothing(vectors, tmp_path, monkeypatch):
    def no_space(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(OSError, match="No space"):
        save_index(build_index(vectors), tmp_path / "x.faiss")
    assert list(tmp_path.iterdir()) == []


def test_blas_is_used_from_a_few_queries_on(vectors):
    search(build_index(vectors), vectors[:1], 1)
    assert faiss.cvar.distance_compute_blas_threshold == BLAS_THRESHOLD == 512


def test_thread_option_holds_inside_the_block_only():
    before = faiss.omp_get_max_threads()
    with search_threads(before + 1):
        assert faiss.omp_get_max_threads() == before + 1
    assert faiss.omp_get_max_threads() == before
    with pytest.raises(ValueError, match="threads is 0"), search_threads(0):
        pass


_OPENING = """
import sys
from pathlib import Path
from realm_hf.index.file import open_index

def most_resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))

before = most_resident()
index = open_index(sys.argv[1], rows=int(sys.argv[2]))
print(most_resident() - before, index.ntotal)
"""


@pytest.mark.parametrize("factory", ["Flat", "SQfp16"])
def test_an_exact_index_is_opened_without_being_read_into_memory(factory, tmp_path):
    rows = 160_000
    vectors = np.random.default_rng(0).standard_normal((rows, 128), dtype=np.float32)
    save_index(build_index(vectors, factory), tmp_path / "index.faiss")
    command = [sys.executable, "-c", _OPENING, str(tmp_path / "index.faiss"), str(rows)]
    told = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert int(told[1]) == rows
    assert int(told[0]) < (tmp_path / "index.faiss").stat().st_size / 2


class _Counting:
    """A FAISS index that notes with how many threads it is searched."""

    def __init__(self, index: faiss.Index):
        self.index, self.d, self.ntotal, self.metric_type = index, index.d, index.ntotal, index.metric_type
        self.threads: list[int] = []

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        self.threads.append(faiss.omp_get_max_threads())
        return self.index.search(queries, k)


def test_one_query_is_searched_by_one_thread_and_a_batch_by_all_that_were_asked_for(vectors):
    counting = _Counting(build_index(vectors))
    before = faiss.omp_get_max_threads()
    index = FaissIndex(counting)
    together = search(index, vectors[:3], 4, threads=2)[1]
    alone = [search(index, vectors[row : row + 1], 4, threads=2)[1][0] for row in range(3)]
    np.testing.assert_array_equal(together, alone)
    assert counting.threads == [2, 1, 1, 1]
    assert faiss.omp_get_max_threads() == before


def test_a_forked_child_can_search_after_its_parent_searched_with_threads(vectors):
    index = build_index(np.tile(vectors, (20, 1)), "IVF8,Flat")
    queries = np.tile(vectors, (4, 1))
    _, expected = search(index, queries, 5, threads=2)
    child = os.fork()
    if child == 0:
        _, rows = search(index, queries, 5, threads=2)
        os._exit(0 if np.array_equal(rows, expected) else 1)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            assert os.waitstatus_to_exitcode(status) == 0
            return
        time.sleep(0.01)
    os.kill(child, 9)
    os.waitpid(child, 0)
    pytest.fail("the child's search hung")
