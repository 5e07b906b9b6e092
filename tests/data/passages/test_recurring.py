"""Spans that passages of one article share, counted by hand on a few sentences."""

import numpy as np
import pytest
from tiny_worlds import store_of

from realm_hf.data.passages.recurring import RecurringSpans, articles_of, find_recurring_spans

ROWS = [
    ("Nile", "Lake Victoria feeds the river. Its red water runs north."),
    ("Nile", "The river comes from Lake Victoria in Africa."),
    ("Nile", "Nobody says the river is small."),
    ("Copper", "Lake Victoria has no copper. The price of red copper rose."),
    ("Copper", "In spring the price of red copper fell."),
    ("", "Wheat and maize grow on dry land."),
    ("", "Wheat and maize grow on dry land too."),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return store_of(ROWS, tmp_path_factory.mktemp("recurring") / "passages", max_length=96)


def found_in(store, tokenizer, **settings):
    """{text of a span: passages that hold it}; each place is looked up in the stored wordpieces."""
    spans = find_recurring_spans(store, tokenizer, **settings)
    found = {}
    for span in range(len(spans)):
        places = range(spans.offsets[span], spans.offsets[span + 1])
        texts = {
            tokenizer.decode(store.body_ids(int(spans.rows[at]))[spans.starts[at] :][: spans.lengths[at]])
            for at in places
        }
        assert len(texts) == 1, "the places of a span hold one text"
        found[texts.pop()] = sorted(int(spans.rows[at]) for at in places)
    return found


def test_passages_of_one_title_in_a_row_are_an_article_and_nameless_ones_are_not(store):
    assert articles_of(store).tolist() == [0, 0, 0, 1, 1, 2, 3]


def test_spans_of_whole_words_are_found_within_articles_only(store, tokenizer):
    # "the river" begins with a common word, "Lake Victoria" in another article does not count, and what lies within
    # "price of red copper" is not told again.
    assert found_in(store, tokenizer) == {"lake victoria": [0, 1], "price of red copper": [3, 4]}


def test_lengths_and_the_number_of_passages_are_kept(store, tokenizer):
    assert found_in(store, tokenizer, longest=3) == {
        "lake victoria": [0, 1],
        "of red copper": [3, 4],
        "price of red": [3, 4],
    }
    assert found_in(store, tokenizer, most_passages=1) == {}
    with pytest.raises(ValueError, match="shortest is 3 and longest 2 words"):
        find_recurring_spans(store, tokenizer, shortest=3, longest=2)


def test_a_place_knows_the_others_of_its_span_and_a_passage_its_places(store, tokenizer):
    spans = find_recurring_spans(store, tokenizer)
    (place,) = spans.places_in(0)
    (other,) = spans.others(place)
    assert spans.rows[[place, other]].tolist() == [0, 1]
    assert not len(spans.places_in(2)) and not len(spans.places_in(6))


def test_they_come_back_from_their_file_and_only_for_their_passages(store, tokenizer, tmp_path):
    spans = find_recurring_spans(store, tokenizer)
    spans.save(tmp_path / "recurring.npz")
    again = RecurringSpans.load(tmp_path / "recurring.npz", store)
    for name in ("offsets", "rows", "starts", "lengths"):
        assert np.array_equal(getattr(again, name), getattr(spans, name))
    other = store_of([("a", "Other words.")], tmp_path / "other")
    with pytest.raises(ValueError, match="holds recurring spans of passages"):
        RecurringSpans.load(tmp_path / "recurring.npz", other)
    assert len(find_recurring_spans(other, tokenizer)) == 0
