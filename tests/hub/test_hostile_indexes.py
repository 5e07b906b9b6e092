"""Index files that strangers may publish: refused before FAISS maps another file, takes memory, or crashes."""

import resource
import struct
from pathlib import Path

import faiss
import numpy as np
import pytest
from published_folder import DIMENSION, INDEX, ROWS, put, put_index

from realm_hf.index.base import IndexFileError
from realm_hf.index.faiss_index import build_index
from realm_hf.index.file import open_index
from realm_hf.untrusted.checks import HubArtefactError


@pytest.fixture
def on_disk(vectors, tmp_path):
    """An IVF index whose lists are in another file."""
    kept = []

    def make(victim: Path) -> faiss.Index:
        index = faiss.index_factory(DIMENSION, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        lists = faiss.OnDiskInvertedLists(2, index.code_size, str(victim))
        index.replace_invlists(lists, False)
        index.add(vectors)
        kept.append(lists)  # the index does not own them
        return index

    yield make


def is_mapped(path: Path) -> bool:
    return str(path) in Path("/proc/self/maps").read_text()


def test_an_index_that_names_another_file_to_map(folder, load, on_disk, tmp_path):
    victim = tmp_path / "victim"
    index = on_disk(victim)
    put_index(folder, index)
    moved = tmp_path / "moved"
    victim.rename(moved)  # the index that was just made maps the old name
    victim.write_bytes(moved.read_bytes())
    before = (victim.stat().st_atime_ns, victim.read_bytes())

    with pytest.raises(HubArtefactError, match="OnDiskInvertedLists"):
        load()
    with pytest.raises(IndexFileError, match="another file"):
        open_index(folder / INDEX)

    assert victim.read_bytes() == before[1]
    assert not [line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith(f" {victim}")]


def test_lists_on_disk_behind_lists_in_the_file(folder, load, on_disk, vectors, tmp_path):
    """FAISS's harmless reading ends at the first lists; the second ones are found by their mark."""
    first = build_index(vectors, "IVF2,Flat")
    second = on_disk(tmp_path / "victim")
    nested = faiss.IndexRefine(first, second)
    nested.ntotal = ROWS
    put_index(folder, nested)

    with pytest.raises(HubArtefactError, match="OnDiskInvertedLists"):
        load()


def test_an_index_of_200_bytes_that_claims_4_gib(folder, load, vectors):
    content = faiss.serialize_index(build_index(vectors)).tobytes()
    size = struct.pack("<Q", ROWS * DIMENSION * 4)
    short = content[:200].replace(size, struct.pack("<Q", 1 << 32), 1)
    put(folder, INDEX, short)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(HubArtefactError, match="is refused"):
        load()

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


@pytest.mark.parametrize(
    "kind",
    ["ids past the corpus", "id map", "dimension", "rows", "metric", "untrained", "cut", "noise", "empty", "graph"],
)
def test_indexes_that_do_not_fit(folder, load, vectors, kind):
    index = build_index(vectors)
    content = None
    if kind == "ids past the corpus":
        index = faiss.index_factory(DIMENSION, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
        index.train(vectors)
        index.add_with_ids(vectors, np.arange(ROWS) + 1000)
    elif kind == "id map":
        index = faiss.IndexIDMap(faiss.IndexFlatIP(DIMENSION))
        index.add_with_ids(vectors, np.arange(ROWS) + 1000)
    elif kind == "dimension":
        index = build_index(np.ascontiguousarray(vectors[:, :8]))
    elif kind == "rows":
        index = build_index(vectors[:40])
    elif kind == "metric":
        index = faiss.IndexFlatL2(DIMENSION)
        index.add(vectors)
    elif kind == "untrained":
        index = faiss.index_factory(DIMENSION, "IVF2,Flat", faiss.METRIC_INNER_PRODUCT)
        index.ntotal = ROWS
    elif kind == "cut":
        content = faiss.serialize_index(index).tobytes()[:-100]
    elif kind == "noise":
        content = np.random.default_rng(0).bytes(5000)
    elif kind == "empty":
        content = b""
    else:
        graph = build_index(vectors, "HNSW8")
        neighbours = faiss.vector_to_array(graph.hnsw.neighbors)
        content = faiss.serialize_index(graph).tobytes()
        content = content.replace(neighbours.tobytes(), np.full_like(neighbours, 2**30).tobytes(), 1)
    put(folder, INDEX, faiss.serialize_index(index).tobytes() if content is None else content)

    with pytest.raises(HubArtefactError, match="refused"):
        load()
