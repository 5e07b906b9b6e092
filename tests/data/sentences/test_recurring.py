"""Salient spans that other passages hold, counted by hand on a few sentences."""

import numpy as np
import pytest
from datasets import Dataset
from spans_by_hand import PASSAGES, WordTagger

from realm_hf.data import build_sentences, passages_from_rows
from realm_hf.data.sentences.recurring import RecurringMasks, find_recurring_masks

SENTENCES = [
    ("Managua is the capital of Nicaragua.", ["Managua", "the capital of", "Nicaragua"]),
    ("They trade copper with Honduras.", ["copper", "Honduras"]),
    ("Nobody lives in Atlantis.", ["Atlantis"]),
    ("A lake.", ["lake"]),
]


@pytest.fixture(scope="module")
def stores(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("recurring-masks")
    rows = Dataset.from_dict({"title": [""] * len(PASSAGES), "text": PASSAGES})
    passages = passages_from_rows(rows, tokenizer, folder / "passages", max_length=96)
    texts = [text for text, _ in SENTENCES]
    sentences = build_sentences(
        texts,
        tokenizer,
        WordTagger(dict(SENTENCES)),
        folder / "sentences",
        heldout_fraction=0.0,
        cache_dir=folder / "cache",
    )
    return sentences, passages


def by_span(stores, tokenizer, **settings):
    sentences, passages = stores
    masks = find_recurring_masks(sentences, passages, tokenizer, **settings)
    counts = {}
    for row, sentence in enumerate(sentences):
        words = dict(SENTENCES)[sentence.text]
        counts |= dict(zip(words, masks.counts[masks.offsets[row] : masks.offsets[row + 1]].tolist(), strict=True))
    return counts


def test_passages_are_counted_that_hold_the_span_and_not_the_sentence(stores, tokenizer):
    # Row 0 holds the first sentence and is left out; "Nicaraguans" is another word than "Nicaragua".
    assert by_span(stores, tokenizer) == {
        "Managua": 1,
        "the capital of": 1,
        "Nicaragua": 1,
        "copper": 2,
        "Honduras": 1,
        "Atlantis": 0,
        "lake": 1,  # of two: row 0 ends with the whole sentence, "a lake."
    }


def test_spans_that_too_many_passages_hold_are_not_kept(stores, tokenizer):
    sentences, passages = stores
    masks = find_recurring_masks(sentences, passages, tokenizer, most_passages=1)
    assert by_span(stores, tokenizer, most_passages=1)["copper"] == 2, "one more than the limit stands for all above"
    assert [masks.kept(row).tolist() for row in range(4)] == [[True] * 3, [False, True], [False], [True]]
    assert masks.share == pytest.approx(5 / 7)


def test_counts_equal_a_search_in_the_texts(stores, tokenizer):
    """The same by brute force over wordpieces."""
    sentences, passages = stores
    masks = find_recurring_masks(sentences, passages, tokenizer)
    continues = [piece.startswith("##") for piece in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
    for row, sentence in enumerate(sentences):
        for number, (start, end) in enumerate(sentence.spans):
            span, count = sentence.input_ids[start:end].tolist(), 0
            for passage in range(len(passages)):
                body = passages.body_ids(passage).tolist()
                places = [
                    at
                    for at in range(len(body) - len(span) + 1)
                    if body[at : at + len(span)] == span
                    and not (at + len(span) < len(body) and continues[body[at + len(span)]])
                ]
                trivial = passages.contains(sentence.input_ids, np.array([passage]))[0]
                count += bool(places) and not trivial
            assert masks.counts[masks.offsets[row] + number] == count


def test_they_come_back_from_their_file_and_only_for_their_stores(stores, tokenizer, tmp_path):
    sentences, passages = stores
    masks = find_recurring_masks(sentences, passages, tokenizer)
    masks.save(tmp_path / "masks.npz")
    again = RecurringMasks.load(tmp_path / "masks.npz", passages, sentences)
    assert np.array_equal(again.counts, masks.counts) and again.most_passages == 50
    other = passages_from_rows(
        Dataset.from_dict({"text": ["Other words."]}), tokenizer, tmp_path / "o", title_column=None
    )
    with pytest.raises(ValueError, match="was made of passages, sentences and format"):
        RecurringMasks.load(tmp_path / "masks.npz", other, sentences)
