"""The protocol of an index: one of another kind, written here, does what FAISS's do."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import faiss
import numpy as np
import pytest
from datasets import Dataset
from tiny_answerers import tiny_answerer
from tiny_worlds import tiny_tokenizer

import realm_hf
from realm_hf import RealmRetriever
from realm_hf.index.asking import select_from_ranking
from realm_hf.index.base import ABSENT, Found, Saveable, SearchIndex
from realm_hf.index.exact import ExactIndex
from realm_hf.index.faiss_index import build_index
from realm_hf.index.faiss_search import FaissIndex, as_search_index
from realm_hf.index.file import open_index
from realm_hf.index.ranking import RankingIndex
from realm_hf.qa.answerer import QuestionAnswerer
from realm_hf.retriever.selection import PassageFilter

FIELDS = ("rows", "scores", "excluded", "duplicates")


class NumpyLists(RankingIndex):
    """An index as somebody else may write it: rows in lists by their largest number, a few of which are searched."""

    def __init__(self, vectors, searched):
        self.vectors, self.searched = vectors.astype(np.float32), searched
        self.lists = [np.flatnonzero(vectors.argmax(1) == number) for number in range(vectors.shape[1])]

    @property
    def dimension(self):
        return self.vectors.shape[1]

    def __len__(self):
        return len(self.vectors)

    def rank(self, queries, depth):
        scores = np.full((len(queries), depth), -np.inf, np.float32)
        rows = np.full((len(queries), depth), -1)
        for number, query in enumerate(queries):
            near = np.concatenate([self.lists[place] for place in np.argsort(-query)[: self.searched]])
            products = self.vectors[near] @ query
            best = np.argsort(-products, kind="stable")[:depth]
            rows[number, : len(best)], scores[number, : len(best)] = near[best], products[best]
        return scores, rows


class Shards:
    """An index in parts that are each searched once, whatever is left out: what ranks would do together."""

    def __init__(self, parts):
        self.parts, self.dimension, self.searches = parts, parts[0].dimension, 0
        self.firsts = np.cumsum([0, *map(len, parts)])

    def __len__(self):
        return int(self.firsts[-1])

    def search(self, queries, k, *, exclude=None):
        found = []
        for part, first in zip(self.parts, self.firsts[:-1].tolist(), strict=True):
            self.searches += 1
            mine = part.search(queries, k, exclude=_Rows(exclude, first))
            found.append((mine.scores, np.where(mine.rows == ABSENT, ABSENT, mine.rows + first)))
        scores, rows = (np.concatenate(arrays, axis=1) for arrays in zip(*found, strict=True))
        kept_scores = np.full((len(queries), k), -np.inf, np.float32)
        kept_rows = np.full((len(queries), k), ABSENT)
        for number in range(len(queries)):
            order = np.argsort(-scores[number], kind="stable")
            ranking, nothing = rows[number][order], np.zeros(len(order), bool)
            kept = select_from_ranking(scores[number][order], ranking, nothing, exclude.groups(ranking), k)
            kept_rows[number, : len(kept.rows)], kept_scores[number, : len(kept.rows)] = kept.rows, kept.scores
        none = np.zeros(len(queries), np.int64)
        return Found(kept_scores, kept_rows, none, none)


class _Rows:
    """What is not wanted, of the rows of one part."""

    def __init__(self, whole, first):
        self.whole, self.first = whole, first
        self.over_retrieve, self.filtered = whole.over_retrieve, whole.filtered

    def unwanted(self, query, rows):
        return self.whole.unwanted(query, np.where(rows < 0, rows, rows + self.first))

    def groups(self, rows):
        return self.whole.groups(np.where(rows < 0, rows, rows + self.first))


def corpus():
    """300 passages, many of which share a text."""
    return Dataset.from_dict({"text": [f"passage {row if row % 3 else row // 2} of the corpus" for row in range(300)]})


def assert_same_batches(one, other, fields=FIELDS):
    for field in fields:
        np.testing.assert_allclose(getattr(one, field), getattr(other, field), rtol=1e-5, atol=1e-5, err_msg=field)


# An index of another kind


@pytest.mark.parametrize("some_excluded", [False, True])
@pytest.mark.parametrize("make", [lambda v: NumpyLists(v, 16), ExactIndex], ids=["lists", "exact"])
def test_an_index_of_another_kind_retrieves_what_faiss_does(vectors, make, some_excluded):
    exclude = [f"passage {n} of" if n % 2 else None for n in range(64)] if some_excluded else None
    theirs, ours = (RealmRetriever(corpus(), index=index) for index in (make(vectors), build_index(vectors)))
    for k in (2, 9, 200):
        found, expected = (r.retrieve(vectors[:64], k, exclude=exclude, over_retrieve=2) for r in (theirs, ours))
        assert_same_batches(found, expected)
    deeper = theirs.search_stats.searched_deeper
    assert deeper == ours.search_stats.searched_deeper and bool(deeper) == some_excluded


def test_a_query_goes_deeper_alone_and_only_as_far_as_the_index_reaches(vectors):
    depths = []

    class Noted(NumpyLists):
        def rank(self, queries, depth):
            depths.append((len(queries), depth))
            return super().rank(queries, depth)

    retriever = RealmRetriever(corpus(), index=Noted(vectors, 2))
    batch = retriever.retrieve(vectors[:3], 61, exclude=[None, "passage", None], null_passage=False, over_retrieve=1)
    assert (batch.rows[1] == ABSENT).all() and batch.excluded[1] > 0
    assert depths[0] == (3, 62) and all(count <= 3 for count, _ in depths)
    assert not batch.mask[0].all()  # two lists of sixteen hold fewer


def test_knowledge_over_an_index_of_another_kind_can_be_edited(tiny_passages):
    answerer = tiny_answerer(tiny_passages)
    tower, embeddings = answerer.model.embedder.eval(), answerer.retriever.embeddings
    found = []
    for index in (NumpyLists(embeddings, embeddings.shape[1]), build_index(embeddings)):
        retriever = RealmRetriever(
            tiny_passages, tiny_tokenizer(), index=index, embeddings=embeddings, embedder=tower, query_embedder=tower
        )
        retriever.remove_passages([0, 3, 5])
        retriever.replace_passages(7, "the river is dry")
        retriever.add_passages("a new lighthouse stands on the island")
        found.append(retriever.retrieve(embeddings[:9], 12))
    assert_same_batches(*found)


def test_questions_are_answered_from_an_index_of_another_kind(tiny_passages):
    expected = tiny_answerer(tiny_passages)
    model, embeddings = expected.model, expected.retriever.embeddings
    index = NumpyLists(embeddings, embeddings.shape[1])
    retriever = RealmRetriever(tiny_passages, tiny_tokenizer(), index=index, embeddings=embeddings)
    questions = ["Where does the river lie?", "Which city has 45 people"]
    answers = [QuestionAnswerer(model, retriever)(questions), expected(questions)]
    theirs, ours = ([(answer.text, answer.row) for answer in found] for found in answers)
    assert theirs == ours


def test_shards_need_one_search_each_and_find_what_a_whole_index_does(vectors):
    parts = [FaissIndex(build_index(vectors[:120])), NumpyLists(vectors[120:], 16)]
    shards = Shards(parts)
    exclude = [f"passage {n} of" if n % 2 else None for n in range(64)]
    whole = RealmRetriever(corpus(), index=build_index(vectors))
    for k in (2, 9, 40):
        shards.searches = 0
        found = RealmRetriever(corpus(), index=shards).retrieve(vectors[:64], k, exclude=exclude, over_retrieve=2)
        expected = whole.retrieve(vectors[:64], k, exclude=exclude, over_retrieve=2)
        assert_same_batches(found, expected, ("rows", "scores"))
        assert shards.searches == 2
    assert whole.search_stats.searched_deeper > 0, "no query of the whole index went deeper: nothing is shown"


# What an index can do beside searching


def test_what_an_index_cannot_do_is_said(vectors, tmp_path):
    bare = NumpyLists(vectors, 4)
    assert isinstance(bare, SearchIndex) and not isinstance(bare, Saveable)
    retriever = RealmRetriever(corpus(), index=bare, embeddings=vectors)
    with pytest.raises(ValueError, match="type NumpyLists cannot be saved: it has no `kind` and `write`"):
        retriever.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved").exists()
    with pytest.raises(ValueError, match="searches FAISS indexes only, and this one is a NumpyLists"):
        _ = retriever.dataset
    retriever.remove_passages(0)
    with pytest.raises(ValueError, match="No rows can be added to an index of type NumpyLists"):
        retriever.save_pretrained(tmp_path / "saved")
    with pytest.raises(TypeError, match=r"The index is a dict: give a `faiss\.Index`"):
        RealmRetriever(corpus(), index={})
    with pytest.raises(ValueError, match="metric 1, not inner product"):
        as_search_index(faiss.IndexFlatL2(4))


def test_an_index_that_returns_a_row_that_is_not_there_is_refused(vectors):
    class Lying(NumpyLists):
        def __len__(self):
            return 200

    with pytest.raises(RuntimeError, match=r"index of 200 rows returned row \d+"):
        Lying(vectors, 16).search(vectors[:40], 5)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_an_exact_index_is_saved_as_the_flat_one_that_it_equals(vectors, tmp_path, dtype):
    stored = vectors.astype(dtype)
    exact, flat = ExactIndex(stored), FaissIndex(build_index(stored))
    files = []
    for index in (exact, flat):
        pieces = []
        index.write(pieces.append)
        files.append(b"".join(pieces))
    assert files[0] == files[1]
    (tmp_path / "index.faiss").write_bytes(files[0])
    opened = open_index(tmp_path / "index.faiss", rows=300, dimension=16)
    assert type(opened).__name__ == exact.kind


@pytest.mark.parametrize("make", [lambda v: FaissIndex(build_index(v, "IVF8,Flat")), ExactIndex])
def test_rows_are_added_to_an_emptied_index_and_the_full_one_stays(vectors, make):
    full = make(vectors)
    empty = full.emptied()
    assert (len(empty), len(full)) == (0, 300)
    assert (empty.search(vectors[:2], 3).rows == ABSENT).all()
    for start in range(0, 300, 100):
        empty.add(vectors[start : start + 100])
    np.testing.assert_array_equal(empty.search(vectors[:9], 5).rows, full.search(vectors[:9], 5).rows)


def test_an_exclusion_speaks_of_passages(tiny_passages):
    retriever = RealmRetriever(corpus(), embeddings=np.ones((300, 2), np.float32))
    unwanted = PassageFilter(retriever._corpus, [None, "passage 7 of"], 3)
    assert unwanted.filtered.tolist() == [False, True]
    rows = np.array([7, 8, 14, 15, -2])
    assert unwanted.unwanted(0, rows).tolist() == [False] * 5
    assert unwanted.unwanted(1, rows).tolist() == [True, False, False, True, False][: len(rows)]


# FAISS stands behind one package


def imported(path: Path) -> set[str]:
    """Top packages that a module imports, also for types only and inside functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").split(".")[0])
    return found


def test_faiss_is_imported_and_cast_to_by_one_package_only():
    root = Path(realm_hf.__file__).parent
    modules = [path for path in root.rglob("*.py") if path.parent != root / "index"]
    assert len(modules) > 150
    assert [str(path) for path in modules if "faiss" in imported(path)] == []
    cast = re.compile(r"cast\(\s*[\"']faiss|import_module\([\"']faiss")
    assert [str(path) for path in modules if cast.search(path.read_text(encoding="utf-8"))] == []
    assert "faiss" in imported(root / "index" / "faiss_search.py")


_SETTINGS = """
import importlib, pkgutil, os, faiss
hooks = []
os.register_at_fork = lambda **hook: hooks.append(hook)
before = (faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads())
import realm_hf.index
for module in pkgutil.iter_modules(realm_hf.index.__path__, "realm_hf.index."):
    importlib.import_module(module.name)
ours = [hook for hook in hooks if "realm_hf" in str(getattr(next(iter(hook.values())), "__module__", ""))]
print(before == (faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads()), len(ours))
import numpy as np
from realm_hf.index.faiss_index import build_index
from realm_hf.index.faiss_search import search
search(build_index(np.eye(4, dtype=np.float32)), np.eye(4), 1)
search(build_index(np.eye(4, dtype=np.float32)), np.eye(4), 1)
ours = [hook for hook in hooks if "realm_hf" in str(getattr(next(iter(hook.values())), "__module__", ""))]
print(faiss.cvar.distance_compute_blas_threshold, faiss.omp_get_max_threads() == before[1], len(ours))
"""


def test_importing_sets_nothing_and_the_first_search_sets_faiss_up_once():
    printed = subprocess.run([sys.executable, "-c", _SETTINGS], check=True, capture_output=True, text=True).stdout
    assert printed.splitlines() == ["True 0", "512 True 1"]
