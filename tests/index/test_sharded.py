"""Search by several ranks together: the rows of one exact index, whatever each rank asks and leaves out."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_hf.generations.embedding import shard
from realm_hf.index.base import Collective, SearchIndex
from realm_hf.index.exact import ExactIndex
from realm_hf.index.held_rows import NO_KEY, HeldRows, best_keys, halves, joined, read_keys
from realm_hf.index.sharded import ShardedIndex, ShardedSearchError

FIELDS = ("rows", "scores", "excluded", "duplicates")


class Threads:
    """The exchange of ranks that are threads of this process."""

    def __init__(self, rank, world_size, table, barrier):
        self.rank, self.world_size, self.table, self.barrier = rank, world_size, table, barrier

    def gather(self, own):
        self.table[self.rank] = own
        self.barrier.wait(20)
        found = np.stack(self.table)
        self.barrier.wait(20)
        return found

    def deal(self, parts):
        return self.gather(parts)[:, self.rank]


def as_ranks(world, work):
    """What `work(exchange)` returns on each of so many ranks."""
    table, barrier = [None] * world, threading.Barrier(world)
    with ThreadPoolExecutor(world) as ranks:
        return list(ranks.map(work, [Threads(rank, world, table, barrier) for rank in range(world)]))


class Unwanted:
    """An exclusion made of numbers: queries want no row that their own number divides; every `copies` rows are one
    text."""

    def __init__(self, divisors, copies, over_retrieve):
        self.divisors, self.copies, self.over_retrieve = divisors, copies, over_retrieve

    @property
    def filtered(self):
        return np.array([divisor > 0 for divisor in self.divisors], bool)

    def unwanted(self, query, rows):
        return (rows >= 0) & (rows // self.copies % self.divisors[query] == 0)

    def groups(self, rows):
        return rows // self.copies


@st.composite
def searches(draw):
    """Rows with many equal scores, ranks, and what each rank asks: queries, k, exclusions."""
    rows, world = draw(st.integers(1, 90)), draw(st.integers(1, 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    # Small whole numbers: products are exact in every type and order, and ties are common.
    vectors = random.integers(-2, 3, (rows, 3)).astype(draw(st.sampled_from([np.float16, np.float32])))
    asked = []
    for _ in range(world):
        count = draw(st.integers(0, 5))
        divisors = random.integers(0, 4, count)
        exclude = Unwanted(divisors, draw(st.integers(1, 3)), draw(st.integers(0, 4)))
        queries = random.integers(-2, 3, (count, 3)).astype(np.float32)
        asked.append((queries, draw(st.integers(1, 12)), exclude if draw(st.booleans()) else None))
    return vectors, asked


@given(searches())
@settings(max_examples=150, deadline=None)
def test_every_rank_finds_what_one_exact_index_finds(search):
    vectors, asked = search

    def work(ranks):
        index = ShardedIndex(vectors, ranks, rows=shard(len(vectors), ranks.rank, ranks.world_size))
        queries, k, exclude = asked[ranks.rank]
        return index.search(queries, k, exclude=exclude)

    for found, (queries, k, exclude) in zip(as_ranks(len(asked), work), asked, strict=True):
        expected = exact_by_hand(vectors, queries, k, exclude)
        for name in FIELDS:
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
        assert found.searched_deeper == expected.searched_deeper


def exact_by_hand(vectors, queries, k, exclude):
    """An exact index whose ties go to the lower row."""

    class Sorted(ExactIndex):
        def rank(self, queries, depth):
            scores = queries.astype(np.float64) @ vectors.astype(np.float64).T
            rows = np.argsort(-scores, axis=1, kind="stable")[:, :depth]
            return np.take_along_axis(scores, rows, 1), rows

    return Sorted(vectors).search(queries, k, exclude=exclude)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_blocks_of_real_numbers_are_ranked_as_by_an_exact_index(dtype):
    random = np.random.default_rng(0)
    vectors = random.standard_normal((20_000, 24)).astype(dtype)
    queries = random.standard_normal((700, 24)).astype(np.float32)  # so many that rows are searched in blocks
    held = HeldRows(vectors, slice(None))
    assert len(list(held._blocks(len(queries), 9))) > 3
    scores, rows = read_keys(held.best(queries, 9))
    products = queries.astype(np.float64) @ vectors.astype(np.float64).T
    expected = np.argsort(-products, axis=1, kind="stable")[:, :9]
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(scores, np.take_along_axis(products, expected, 1), rtol=1e-4)


def test_worst_order_of_rows_is_searched_as_well():
    """Each row better than all before it: nothing of a block can be passed over."""
    vectors = np.arange(30_000, dtype=np.float32)[:, None]
    _, rows = read_keys(HeldRows(vectors, slice(None)).best(np.ones((900, 1), np.float32), 3))
    assert (rows == [29_999, 29_998, 29_997]).all()


def test_copies_of_a_passage_come_in_the_order_of_their_rows():
    _, rows = read_keys(HeldRows(np.ones((9_000, 4), np.float16), slice(2_000, 9_000)).best(np.ones((3, 4)), 5))
    assert (rows == [2_000, 2_001, 2_002, 2_003, 2_004]).all()


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=20))
@settings(deadline=None)
def test_keys_order_scores_and_then_rows(scores):
    from realm_hf.index.held_rows import _keys

    keys = _keys(torch.tensor(scores), torch.arange(len(scores))).numpy()
    found, rows = read_keys(best_keys(np.append(keys, NO_KEY)[None], len(scores) + 1))
    order = np.argsort(-np.array(scores, np.float32), kind="stable")
    assert rows[0].tolist() == [*order.tolist(), -2]
    assert found[0].tolist() == [*np.array(scores, np.float32)[order].tolist(), -np.inf]


@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_queries_in_two_float16_parts_lose_nothing_that_counts(size):
    """What a GPU multiplies: the sums are exact to float32, where queries rounded to float16 would not be."""
    random = np.random.default_rng(1)
    queries = torch.tensor(size * random.standard_normal((40, 64)), dtype=torch.float32)
    rows = torch.tensor(random.standard_normal((50, 64)), dtype=torch.float16)
    parts, scale = halves(queries)
    assert parts.dtype == torch.float16 and parts.isfinite().all()
    exact = queries.double() @ rows.double().T
    error = (joined(parts.float() @ rows.float().T, scale) - exact).abs().max() / exact.abs().max()
    rounded = (queries.half().double() @ rows.double().T - exact).abs().max() / exact.abs().max()
    assert error < 1e-6 and not rounded < 1e-5


def test_what_one_rank_fails_with_ends_the_search_of_all():
    vectors = np.eye(4, dtype=np.float32)

    def work(ranks):
        index = ShardedIndex(vectors, ranks, rows=shard(4, ranks.rank, ranks.world_size))
        queries = np.full((1, 4), np.nan if ranks.rank == 1 else 1.0, np.float32)
        try:
            return index.search(queries, 2)
        except (ValueError, ShardedSearchError) as error:
            return f"{type(error).__name__}: {error}"

    first, second = as_ranks(2, work)
    assert first.startswith("ShardedSearchError: Rank 1 could not search with the others")
    assert second.startswith("ValueError: Query 0 holds NaN")


def test_a_search_surrounded_by_autocast_is_made_in_float32():
    vectors = np.random.default_rng(2).standard_normal((500, 32)).astype(np.float16)
    index = ShardedIndex(vectors)
    queries = np.random.default_rng(3).standard_normal((4, 32)).astype(np.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = index.search(queries, 5)
    np.testing.assert_allclose(found.scores, ExactIndex(vectors).search(queries, 5).scores, rtol=1e-5)


def test_it_is_an_index_that_one_rank_can_search_alone_too():
    vectors = np.random.default_rng(4).standard_normal((50, 8)).astype(np.float16)
    index = ShardedIndex(vectors)
    assert isinstance(index, SearchIndex) and isinstance(index, Collective)
    assert not isinstance(ExactIndex(vectors), Collective)
    queries = vectors[:3].astype(np.float32)
    np.testing.assert_array_equal(index.alone().search(queries, 4).rows, index.search(queries, 4).rows)


def test_a_share_that_is_too_large_is_refused():
    with pytest.raises(ValueError, match="would hold 10 of 10 rows: at most 5"):
        ShardedIndex(np.ones((10, 2), np.float32), Threads(0, 2, [], None))
