"""Queries around a span that asks for the other passage that holds it."""

import numpy as np
import pytest
from tiny_worlds import store_of

from realm_hf.data import find_recurring_spans
from realm_hf.data.recurring_span_queries import RecurringSpanDataset

BEFORE = "and they say that it is so because of what was said before and after by some of the old people"
AFTER = "which is why many come from far away in the first days of each new year to see how high it stands"
TEXTS = [
    ("Nile", f"One knows {BEFORE} Lake Victoria {AFTER} now."),
    ("Nile", "Water of Lake Victoria runs north."),
    ("Nile", "The desert is wide."),
    ("Copper", "The price of red copper rose."),
    ("Copper", "In spring red copper fell."),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return store_of(TEXTS, tmp_path_factory.mktemp("queries") / "passages", max_length=128)


@pytest.fixture(scope="module")
def recurring(store, tokenizer):
    return find_recurring_spans(store, tokenizer)


def examples(data, index, count=60):
    return [data.visit(index, epoch) for epoch in range(count)]


def test_the_positive_is_another_passage_with_the_span_and_the_negative_one_without(store, recurring, tokenizer):
    data = RecurringSpanDataset(store, recurring, tokenizer)
    assert data.rows.tolist() == [0, 1, 3, 4]
    for example in examples(data, 0):
        assert (example.source, example.positive) == (0, 1) and example.negative in (2, -1)
    assert any(example.negative == 2 for example in examples(data, 0))
    assert {example.negative for example in examples(data, 2)} == {-1}, "both of that article hold the span"


def test_a_query_is_a_window_of_whole_words_with_the_span_or_without(store, recurring, tokenizer):
    data = RecurringSpanDataset(store, recurring, tokenizer)
    body = tokenizer.decode(store.body_ids(0))
    shares = []
    for example in examples(data, 0, 200):
        query = tokenizer.decode(example.query_ids)
        words = query.split()
        assert 5 <= len(words) <= 30 and not query.startswith("##")
        assert ("lake victoria" in query) == example.kept
        assert query in (body if example.kept else body.replace("lake victoria ", ""))
        shares.append(example.kept)
    assert 0.35 < np.mean(shares) < 0.65


def test_held_out_passages_are_neither_asked_for_nor_negatives(store, recurring, tokenizer):
    data = RecurringSpanDataset(store, recurring, tokenizer, rows=np.array([0, 2, 3, 4]))
    assert data.rows.tolist() == [3, 4], "row 0 shares its span with a passage that is held out"
    with pytest.raises(ValueError, match="No span recurs in these 2 passages"):
        RecurringSpanDataset(store, recurring, tokenizer, rows=np.array([0, 2]))
    with pytest.raises(ValueError, match="keep_probability is 2"):
        RecurringSpanDataset(store, recurring, tokenizer, keep_probability=2)


def test_a_draw_depends_on_seed_epoch_and_index_alone(store, recurring, tokenizer):
    one, same = (RecurringSpanDataset(store, recurring, tokenizer, seed=3) for _ in range(2))
    same.visit(1, 5)
    assert np.array_equal(one.visit(0, 2).query_ids, same.visit(0, 2).query_ids)
    assert any(
        not np.array_equal(one.visit(0, epoch).query_ids, one.visit(0, epoch + 1).query_ids) for epoch in range(5)
    )
