"""Several sources of candidates: a number from each, fused by ranks, or by a fitted sum of scores."""

import numpy as np
import pytest
from datasets import Dataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny_worlds import ANSWERS, KINDS, PLACES, tiny_tokenizer

from realm_hf.index.base import Found
from realm_hf.retriever.candidates import IndexSource, Queries, RankingSource
from realm_hf.retriever.fused import FusedSource, WeightedSource
from realm_hf.retriever.mixed import MixedSource
from realm_hf.retriever.mixture_fit import fit_mixture
from realm_hf.retriever.retriever import RealmRetriever

TOKENIZER = tiny_tokenizer()
words = st.lists(st.sampled_from([*KINDS, *PLACES, *ANSWERS]), min_size=1, max_size=6)


class Given(RankingSource):
    """Ranks as it is told; the rest of the rows is not found."""

    def __init__(self, *rows):
        self.rows = rows

    def rank(self, knowledge, queries, depth):
        rows = np.array([*self.rows, *[-2] * depth])[:depth]
        return np.tile(np.arange(depth, 0, -1.0), (len(queries), 1)), np.tile(rows, (len(queries), 1))


def token_ids(text: str) -> np.ndarray:
    return np.array(TOKENIZER(text)["input_ids"])


def rows_of(retriever, source, k, **kwargs):
    retriever.candidate_source = source
    asked = {"token_ids": [token_ids("oil")], "null_passage": False, **kwargs}
    return retriever.retrieve(retriever.embeddings[:1], k, **asked).rows[0].tolist()


# A number from each


def test_each_source_gives_its_number_in_turn(retriever):
    mixed = MixedSource([(Given(1, 2, 3, 4, 5, 6), 3), (Given(11, 12, 13, 14), 1)])
    assert rows_of(retriever, mixed, 4) == [1, 2, 11, 3]
    assert rows_of(retriever, mixed, 8) == [1, 2, 11, 3, 4, 5, 12, 6]
    assert rows_of(retriever, mixed, 1) == [1]


def test_what_another_gave_already_is_filled_from_the_next_best(retriever):
    assert rows_of(retriever, MixedSource([(Given(1, 2, 3, 4), 2), (Given(1, 2, 5, 6), 2)]), 4) == [1, 2, 3, 5]


def test_places_of_an_exhausted_source_go_to_the_others(retriever):
    mixed = MixedSource([(Given(1), 2), (Given(11, 12, 13), 2)])
    assert rows_of(retriever, mixed, 4) == [1, 11, 12, 13]
    assert rows_of(retriever, mixed, 6) == [1, 11, 12, 13, -2, -2]


def test_copies_of_one_text_are_one_wherever_they_come_from(vectors):
    texts = ["We buy oil.", "we buy OIL", "They sell fish.", "We buy gas.", "They buy rice."]
    retriever = RealmRetriever(Dataset.from_dict({"text": texts}), embeddings=vectors[:5])
    one, other = Given(0, 2), Given(1, 2, 3)
    assert rows_of(retriever, MixedSource([(one, 1), (other, 1)]), 3) == [0, 2, 3]
    assert rows_of(retriever, FusedSource([one, other]), 3) == [0, 2, 3]


def test_the_scores_of_a_mix_are_the_towers(retriever, vectors):
    retriever.candidate_source = MixedSource([(Given(9, 4), 1), (IndexSource(), 1)])
    batch = retriever.retrieve(vectors[:2], 6, token_ids=[token_ids("a")] * 2, null_passage=False)
    for query in range(2):
        np.testing.assert_allclose(batch.scores[query], vectors[batch.rows[query]] @ vectors[query], rtol=1e-5)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(0, 59), st.integers(1, 4), st.integers(1, 4), st.integers(0, 4), words)
def test_exclusion_holds_for_both_sources(passages, vectors, bm25, row, of_bm25, of_index, over, around):
    retriever = RealmRetriever(passages, TOKENIZER, embeddings=vectors)
    sentence = np.asarray(passages.body_ids(row))[:-1]
    query = token_ids(f"{passages.text(row)} {' '.join(around)}")
    for source in (
        MixedSource([(bm25, of_bm25), (IndexSource(), of_index)]),
        FusedSource([bm25, IndexSource()]),
        WeightedSource(bm25, 1.0),
    ):
        retriever.candidate_source = source
        k = of_bm25 + of_index
        batch = retriever.retrieve(
            vectors[row : row + 1], k + 1, token_ids=[query], exclude=[sentence], over_retrieve=over
        )
        kept = batch.rows[0][1:]
        assert (kept >= 0).all() and len(set(kept.tolist())) == k
        assert not passages.contains(sentence, kept).any() and batch.excluded[0] >= 1
    # Where nothing is excluded it is found.
    assert row in rows_of(retriever, MixedSource([(bm25, 1), (IndexSource(), 1)]), 60, token_ids=[query])


def test_quotas_are_kept_when_both_find_enough(retriever, bm25, vectors):
    for row in range(0, 60, 9):
        query = Queries(vectors[row : row + 1], [token_ids(retriever.texts([row])[0])])
        knowledge = retriever.knowledge
        of_words = bm25.rank(knowledge, query, 60)[1][0]
        of_index = knowledge.index.search(query.vectors, 60).rows[0]
        retriever.candidate_source = MixedSource([(bm25, 2), (IndexSource(), 2)])
        found = retriever.retrieve(query.vectors, 4, token_ids=query.token_ids, null_passage=False).rows[0].tolist()
        first = [of_words[0]]
        first.append(next(r for r in of_index if r not in first))
        first.append(next(r for r in of_words if r not in first))
        first.append(next(r for r in of_index if r not in first))
        assert found == first


# One ranking of both


def test_reciprocal_ranks_add_up(retriever):
    fused = FusedSource([Given(1, 2, 3), Given(3, 4)], constant=2)
    retriever.candidate_source = fused
    batch = retriever.retrieve(retriever.embeddings[:1], 5, token_ids=[token_ids("a")], null_passage=False)
    assert batch.rows[0].tolist() == [3, 1, 2, 4, -2]
    np.testing.assert_allclose(batch.scores[0, :4], [1 / 5 + 1 / 3, 1 / 3, 1 / 4, 1 / 4], rtol=1e-6)


def test_a_weighted_sum_is_exact_for_passages_that_one_of_both_found(retriever, bm25, vectors):
    query = Queries(vectors[7:8], [token_ids(retriever.texts([30])[0])])
    everything = np.arange(60)[None]
    expected = vectors @ vectors[7] + 0.7 * bm25.scores(retriever.knowledge, query, everything)[0]
    # Each finds three; of the passages that either found, the order is that of the exact sums.
    source = WeightedSource(bm25, 0.7, depth=3)
    retriever.candidate_source = source
    batch = retriever.retrieve(query.vectors, 3, token_ids=query.token_ids, null_passage=False)
    found = {
        *bm25.rank(retriever.knowledge, query, 3)[1][0].tolist(),
        *retriever.index.search(query.vectors, 3).rows[0].tolist(),
    }
    assert batch.rows[0].tolist() == sorted(found, key=lambda row: -expected[row])[:3]
    np.testing.assert_allclose(batch.scores[0], expected[batch.rows[0]], rtol=1e-4)
    # Without weight it is the index.
    products = vectors @ vectors[0]
    plain = [products[rows_of(retriever, source, 5)] for source in (WeightedSource(bm25, 0.0), None)]
    np.testing.assert_allclose(*plain, rtol=1e-6)


def test_the_weight_is_fitted_to_what_helps(retriever, bm25, passages):
    rows = list(range(0, 60, 3))
    asked = [passages.title(row) for row in rows]
    fitted = fit_mixture(retriever, bm25, asked, rows)
    assert len(fitted.weights) == 9 and fitted.reciprocal_ranks[-1] > 0.9
    best = int(np.argmax(fitted.reciprocal_ranks))
    assert fitted.source.weight == fitted.weights[best]
    # Words that lead astray weigh nothing: the index alone finds these.
    astray = fit_mixture(retriever, bm25, [passages.title(row) for row in rows], found_by_index(retriever, asked))
    assert astray.source.weight == astray.weights[0] and astray.reciprocal_ranks[0] > astray.reciprocal_ranks[-1]
    assert retriever.candidate_source is None
    # The figure is the one that a search gives.
    retriever.candidate_source = fitted.source
    places = [result.rows.tolist().index(row) for result, row in zip(retriever.search(asked, 60), rows, strict=True)]
    assert np.mean([1 / (1 + place) for place in places]) == pytest.approx(max(fitted.reciprocal_ranks), abs=0.02)


def found_by_index(retriever, asked) -> list[int]:
    return [int(result.rows[0]) for result in retriever.search(asked, 1)]


def test_a_source_needs_no_vectors_of_its_own(retriever, passages):
    with pytest.raises(ValueError, match="give the retriever `embeddings` too"):
        other = RealmRetriever(
            passages, TOKENIZER, index=retriever.index, candidate_source=MixedSource([(Given(1), 1)])
        )
        other.retrieve(retriever.embeddings[:1], 2)


def test_mistakes_are_told(retriever, bm25):
    with pytest.raises(ValueError, match=r"The quotas are \[2, 0\]"):
        MixedSource([(bm25, 2), (IndexSource(), 0)])
    with pytest.raises(ValueError, match="at least one source"):
        MixedSource([])
    with pytest.raises(ValueError, match="There are 0 sources, the constant is 60"):
        FusedSource([])
    with pytest.raises(ValueError, match="The weight is -1"):
        WeightedSource(bm25, -1)
    with pytest.raises(ValueError, match="There are 1 questions and 2 passages"):
        fit_mixture(retriever, bm25, ["a"], [1, 2])


def test_both_parts_are_counted_without_counting_a_passage_twice(retriever):
    class Counting(Given):
        def candidates(self, knowledge, queries, k, *, exclude):
            found = super().candidates(knowledge, queries, k, exclude=exclude)
            return Found(found.scores, found.rows, np.array([len(self.rows)]), np.array([1]), 1)

    retriever.candidate_source = MixedSource([(Counting(1, 2), 1), (Counting(1, 2, 3), 1)])
    batch = retriever.retrieve(retriever.embeddings[:1], 2, token_ids=[token_ids("a")], null_passage=False)
    assert batch.excluded.tolist() == [3] and batch.duplicates.tolist() == [1]
