"""Sequences with masked words: what is masked, what never is, and that a draw is the same draw everywhere."""

import numpy as np
import pytest
from tiny_worlds import store_of

from realm_hf.data import find_recurring_spans
from realm_hf.data.masked_lm import MaskedLMCollator, MaskedLMDataset

TEXTS = [
    (
        "Nile",
        "Lake Victoria feeds the river. Its red water runs north through a wide and dry land.",
    ),
    ("Nile", "The river comes from Lake Victoria in Africa, and nobody knows how old it is. " * 3),
    ("Nile", "Nobody says the river is small."),
    ("Copper", "The price of red copper rose. Trade grows, and the people of the towns are content with it."),
    ("Copper", "In spring the price of red copper fell. In autumn the price of red copper was high again."),
]


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return store_of(TEXTS, tmp_path_factory.mktemp("masked") / "passages", max_length=128)


@pytest.fixture(scope="module")
def recurring(store, tokenizer):
    return find_recurring_spans(store, tokenizer)


def restored(example):
    ids = example.input_ids.copy()
    ids[example.positions] = example.labels
    return ids


@pytest.mark.parametrize("pair_probability", [0.0, 1.0])
def test_masks_hide_whole_words_of_the_text_and_no_special_token(store, recurring, tokenizer, pair_probability):
    data = MaskedLMDataset(
        store, tokenizer, recurring=recurring, max_length=48, pair_probability=pair_probability, mask_probability=0.3
    )
    special = store.special_tokens
    for index in range(len(data)):
        for epoch in range(20):
            example = data.visit(index, epoch)
            whole = restored(example)
            assert len(whole) <= 48 and (example.input_ids[example.positions] == special.mask).all()
            assert not np.isin(example.labels, [special.cls, special.sep, special.pad]).any()
            assert (example.input_ids == special.mask).sum() == len(example.positions) == len(example.words)
            pieces = tokenizer.convert_ids_to_tokens(whole.tolist())
            masked = np.zeros(len(whole), bool)
            masked[example.positions] = True
            for at, piece in enumerate(pieces):
                if piece.startswith("##"):
                    assert masked[at] == masked[at - 1], "a word is masked as a whole"


def test_the_share_of_masked_wordpieces_is_what_was_asked_for(store, tokenizer):
    data = MaskedLMDataset(store, tokenizer, max_length=64, pair_probability=0.0, mask_probability=0.2)
    examples = [data.visit(index, epoch) for index in range(len(data)) for epoch in range(40)]
    shares = [len(e.labels) / (len(e.input_ids) - 2) for e in examples]
    assert 0.17 < np.mean(shares) < 0.26


def test_a_shared_span_is_masked_in_the_first_passage_and_stays_in_the_second(store, recurring, tokenizer):
    data = MaskedLMDataset(store, tokenizer, recurring=recurring, max_length=64, pair_probability=1.0)
    seen = set()
    for epoch in range(30):
        example = data.visit(0, epoch)
        span = tokenizer.decode(example.labels[: example.shared])
        seen.add(span)
        assert span == "lake victoria" and (example.positions[: example.shared] < example.boundary).all()
        assert span in tokenizer.decode(example.input_ids[example.boundary :])
        assert span not in tokenizer.decode(example.input_ids[: example.boundary])
    assert seen == {"lake victoria"}


def test_every_copy_of_the_span_in_the_second_passage_stays(store, recurring, tokenizer):
    data = MaskedLMDataset(store, tokenizer, recurring=recurring, max_length=64, pair_probability=1.0)
    for epoch in range(30):
        example = data.visit(3, epoch)
        second = tokenizer.decode(example.input_ids[example.boundary :])
        assert second.count("price of red copper") == tokenizer.decode(restored(example)[example.boundary :]).count(
            "price of red copper"
        )


def test_without_the_second_passage_the_first_is_the_same(store, recurring, tokenizer):
    data = MaskedLMDataset(store, tokenizer, recurring=recurring, max_length=64)
    (place,) = recurring.places_in(0)
    both = [data.pair(int(place), np.random.default_rng(3), joined=joined, alone=True) for joined in (True, False)]
    first, second = (example.input_ids[: example.boundary] for example in both)
    assert np.array_equal(first, second) and np.array_equal(both[0].labels, both[1].labels)
    assert both[0].shared == len(both[0].labels) and len(both[1].input_ids) == both[1].boundary + 1


def test_a_draw_depends_on_seed_epoch_and_index_alone(store, recurring, tokenizer):
    one, same = (MaskedLMDataset(store, tokenizer, recurring=recurring, seed=1) for _ in range(2))
    other = MaskedLMDataset(store, tokenizer, recurring=recurring, seed=2)
    same.visit(3, 9)
    assert np.array_equal(one.visit(1, 4).input_ids, same.visit(1, 4).input_ids)
    assert any(not np.array_equal(one.visit(i, 0).input_ids, other.visit(i, 0).input_ids) for i in range(len(one)))


def test_packing_goes_on_in_the_article_and_not_beyond(store, tokenizer):
    data = MaskedLMDataset(store, tokenizer, rows=np.array([3, 4]), max_length=128, pair_probability=0.0)
    packed = tokenizer.decode(restored(data.visit(0, 0)))
    assert "content with it. in spring" in packed and "high again" in packed
    assert tokenizer.decode(restored(data.visit(1, 0))).startswith("[CLS] in spring")
    plain = MaskedLMDataset(store, tokenizer, rows=np.array([3]), pair_probability=0.0, pack=False)
    assert "spring" not in tokenizer.decode(restored(plain.visit(0, 0)))


def test_batches_are_trimmed_and_segments_begin_with_the_second_passage(store, recurring, tokenizer):
    data = MaskedLMDataset(store, tokenizer, recurring=recurring, max_length=64, pair_probability=1.0)
    examples = [data.visit(0, 0), data.visit(2, 0)]
    batch = MaskedLMCollator(store.special_tokens.pad)(examples)
    assert batch["input_ids"].shape[1] == max(len(e.input_ids) for e in examples)
    assert batch["token_type_ids"][0].nonzero()[0, 0] == examples[0].boundary
    assert not batch["token_type_ids"][1].any(), "a passage without a recurring span stands alone"
    assert (batch["labels"] != -100).sum() == sum(len(e.labels) for e in examples)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"mask_probability": 0.0}, "mask_probability is 0.0"),
        ({"pair_probability": 1.5}, "pair_probability 1.5"),
        ({"max_length": 8}, "max_length is 8 wordpieces"),
        ({"rows": np.zeros(0, np.int64)}, "no passage with a text"),
    ],
)
def test_what_no_example_can_come_from_is_refused(store, tokenizer, settings, problem):
    with pytest.raises(ValueError, match=problem):
        MaskedLMDataset(store, tokenizer, **settings)
