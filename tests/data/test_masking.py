"""Masking: what is hidden, what is predicted, what is skipped, and that a visit can be repeated exactly."""

from copy import deepcopy

import numpy as np
import pytest

from realm_hf.data.masking import MaskedQuery, Skip, example_rng, mask_example
from realm_hf.data.vocabulary import SpecialTokens

SPECIAL = SpecialTokens(pad=0, cls=2, sep=3, mask=4)
IDS = np.arange(100, 120)


def mask(ids=IDS, spans=((3, 6),), rng=None, **options):
    return mask_example(
        ids, np.array(spans).reshape(-1, 2), special_tokens=SPECIAL, rng=rng or example_rng(0, 0, 0), **options
    )


def test_salient_masking_hides_the_whole_span_and_predicts_it():
    query = mask()
    assert query.input_ids.tolist() == [2, 100, 101, 102, 4, 4, 4, *range(106, 120), 3]
    assert query.positions.tolist() == [4, 5, 6]
    assert query.labels.tolist() == [103, 104, 105]
    assert query.span == 0
    assert query.sentence_ids.tolist() == IDS.tolist()
    assert query.input_ids.dtype == query.positions.dtype == query.labels.dtype == np.int64


def test_of_a_span_beyond_ten_all_is_hidden_and_ten_are_predicted():
    query = mask(spans=[(2, 15)])
    assert (query.input_ids[3:16] == SPECIAL.mask).all()
    assert query.positions.tolist() == list(range(3, 13))
    assert query.labels.tolist() == list(range(102, 112))


def test_the_query_is_cut_and_a_span_at_the_edge_still_counts():
    query = mask(spans=[(5, 8)], max_query_length=10)
    assert query.input_ids.tolist() == [2, 100, 101, 102, 103, 104, 4, 4, 4, 3]
    assert query.sentence_ids.tolist() == list(range(100, 108))


def test_a_span_beyond_the_edge_is_skipped_even_in_part():
    assert mask(spans=[(5, 9)], max_query_length=10) == Skip("mask_outside_query")


def test_the_span_is_drawn_from_all_spans_also_those_outside():
    spans = [(0, 1), (3, 5), (15, 16)]
    drawn = [mask(spans=spans, rng=example_rng(0, 0, i), max_query_length=12) for i in range(600)]
    shares = [sum(isinstance(q, MaskedQuery) and q.span == span for q in drawn) for span in range(3)]
    assert shares[2] == 0
    assert all(150 < share < 250 for share in [*shares[:2], sum(isinstance(q, Skip) for q in drawn)])


def test_no_span_and_no_wordpiece_are_skips_with_reasons():
    assert mask(spans=[]) == Skip("no_salient_span")
    assert mask(ids=np.zeros(0, np.int64), spans=[]) == Skip("empty_sentence")


def test_span_mode_hides_one_run_of_geometric_length_inside_the_query():
    lengths = []
    for index in range(500):
        query = mask(mode="span", rng=example_rng(1, 0, index), max_query_length=14)
        assert np.array_equal(np.flatnonzero(query.input_ids == SPECIAL.mask), query.positions)
        assert (np.diff(query.positions) == 1).all()
        assert np.array_equal(query.labels, IDS[query.positions - 1])
        lengths.append(len(query.positions))
    assert max(lengths) == 10
    assert 0.15 < np.mean(np.array(lengths) == 1) < 0.25
    assert 3.8 < np.mean(lengths) < 5.2


def test_uniform_mode_hides_fifteen_percent_anywhere():
    hits = np.zeros(20)
    for index in range(500):
        query = mask(mode="uniform", rng=example_rng(1, 0, index))
        assert len(query.positions) == 3
        assert np.array_equal(np.flatnonzero(query.input_ids == SPECIAL.mask), query.positions)
        hits[query.positions - 1] += 1
    assert hits.min() > 45
    assert len(mask(ids=IDS[:2], mode="uniform").positions) == 1
    assert len(mask(ids=np.arange(100, 200), mode="uniform", max_query_length=128).positions) == 10


def test_a_visit_repeats_by_seed_epoch_and_index_whatever_came_before():
    spans = [(i, i + 1) for i in range(20)]
    visits = {
        (s, e, i): mask(spans=spans, rng=example_rng(s, e, i)).span for s in (0, 1) for e in (0, 1) for i in range(30)
    }
    for key in reversed(visits):
        assert mask(spans=spans, rng=example_rng(*key)).span == visits[key]
    rows = [[visits[s, e, i] for i in range(30)] for s in (0, 1) for e in (0, 1)]
    assert all(a != b for n, a in enumerate(rows) for b in rows[:n])


def test_streams_of_one_seed_are_independent():
    assert example_rng(0, 0, 0, stream=0).random() != example_rng(0, 0, 0, stream=1).random()


def test_inputs_are_left_as_they_were():
    ids = IDS.copy()
    mask(ids=ids)
    assert np.array_equal(ids, IDS)


def test_unknown_mode_and_impossible_lengths_are_errors():
    with pytest.raises(ValueError, match="masking mode is 'words': it must be 'salient', 'span' or 'uniform'"):
        mask(mode="words")
    with pytest.raises(ValueError, match="max_query_length=2"):
        mask(max_query_length=2)


def test_special_tokens_come_from_the_tokenizer(tokenizer):
    special = SpecialTokens.from_tokenizer(tokenizer)
    names = tokenizer.convert_ids_to_tokens([special.pad, special.cls, special.sep, special.mask])
    assert names == ["[PAD]", "[CLS]", "[SEP]", "[MASK]"]


def test_a_tokenizer_without_a_mask_token_is_refused(tokenizer):
    other = deepcopy(tokenizer)
    other.mask_token = None
    with pytest.raises(ValueError, match="RealmTokenizer has no mask_token"):
        SpecialTokens.from_tokenizer(other)
