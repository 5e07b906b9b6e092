"""Recall and nDCG of ranked lists equal what one counts by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from realm_hf.metrics.ranking import ndcg_at, recall_at

HITS = np.array([[0, 1, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 1]], bool)
LOG = {place: 1 / np.log2(1 + place) for place in range(1, 5)}


def test_recall_asks_for_one_right_passage_among_the_first():
    assert recall_at(HITS, (1, 2, 3, 4)) == {1: 0.25, 2: 0.5, 3: 0.5, 4: 0.75}


def test_ndcg_by_hand():
    found = ndcg_at(HITS, np.array([2, 3, 1, 5]), 4)
    assert found == pytest.approx(
        [
            (LOG[2] + LOG[4]) / (LOG[1] + LOG[2]),
            (LOG[1] + LOG[2]) / (LOG[1] + LOG[2] + LOG[3]),
            0.0,
            LOG[4] / (LOG[1] + LOG[2] + LOG[3] + LOG[4]),  # five are right, but four places are looked at
        ]
    )
    assert ndcg_at(np.array([[0, 1, 0]], bool), np.array([1]), 3) == pytest.approx([0.63093], abs=1e-5)


def test_what_stands_behind_the_depth_does_not_count():
    assert ndcg_at(HITS, np.array([1, 1, 1, 1]), 1).tolist() == [0.0, 1.0, 0.0, 0.0]


def test_nothing_right_in_the_corpus_is_zero_and_no_division_by_zero():
    assert ndcg_at(HITS[2:3], np.array([0]), 4).tolist() == [0.0]


@settings(deadline=None)  # a busy machine is no failure
@given(arrays(bool, st.tuples(st.integers(1, 5), st.integers(1, 12))), st.data())
def test_a_list_in_the_best_order_has_one_and_no_other_has_more(hits, data):
    k = data.draw(st.integers(1, hits.shape[1]))
    relevant = hits.sum(1)
    found, best = ndcg_at(hits, relevant, k), ndcg_at(-np.sort(-hits.astype(int), axis=1) > 0, relevant, k)
    assert np.all(found <= best + 1e-12)
    assert best[relevant > 0] == pytest.approx(1.0)
    recall = recall_at(hits, range(1, hits.shape[1] + 1))
    assert list(recall.values()) == sorted(recall.values())
    assert recall[k] == np.mean(found > 0)


@pytest.mark.parametrize("ks", [[0], [5], []])
def test_a_depth_that_was_not_looked_at_is_refused(ks):
    with pytest.raises(ValueError, match="4 places were looked at"):
        recall_at(HITS, ks)


def test_no_query_at_all_is_refused():
    with pytest.raises(ValueError, match=r"hits has the shape \[0, 4\]"):
        ndcg_at(HITS[:0], np.zeros(0, int), 4)
