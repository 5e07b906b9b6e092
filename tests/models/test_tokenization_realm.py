"""`batch_encode_candidates` encodes each candidate as the tokenizer alone would, stacked; bad shapes are named."""

import pytest
import torch

TEXTS = [["The river is long.", ""], ["A mountain.", "The sea and the land."]]


def test_each_candidate_is_encoded_as_if_alone(tokenizer):
    batch = tokenizer.batch_encode_candidates(TEXTS, max_length=12, truncation=True, return_tensors="pt")
    for b, k in [(0, 0), (0, 1), (1, 0), (1, 1)]:
        alone = tokenizer(TEXTS[b][k], padding="max_length", max_length=12, truncation=True, return_tensors="pt")
        for name in ("input_ids", "attention_mask", "token_type_ids"):
            assert torch.equal(batch[name][b, k], alone[name][0])


def test_pairs_get_two_segments(tokenizer):
    batch = tokenizer.batch_encode_candidates(TEXTS, text_pair=TEXTS, max_length=24, return_tensors="pt")
    ids, segments = batch.input_ids[1, 0], batch.token_type_ids[1, 0]
    separators = (ids == tokenizer.sep_token_id).nonzero().flatten().tolist()
    assert len(separators) == 2
    assert segments.tolist() == [0] * (separators[0] + 1) + [1] * (separators[1] - separators[0]) + [0] * (
        24 - separators[1] - 1
    )


def test_a_missing_second_text_is_named(tokenizer):
    with pytest.raises(ValueError, match=r"has \[2, 1\] candidates per query where `text` has \[2, 2\]"):
        tokenizer.batch_encode_candidates(TEXTS, text_pair=[["a", "b"], ["c"]], max_length=12)


def test_unequal_numbers_of_candidates_cannot_become_a_tensor(tokenizer):
    ragged = [["a", "b"], ["c"]]
    with pytest.raises(ValueError, match=r"Queries have \[2, 1\] candidates"):
        tokenizer.batch_encode_candidates(ragged, max_length=12, return_tensors="pt")
    assert [len(rows) for rows in tokenizer.batch_encode_candidates(ragged, max_length=12)["input_ids"]] == [2, 1]


def test_a_saved_tokenizer_comes_back_as_the_same_class(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    assert loaded("The river Danube, 1848.").input_ids == tokenizer("The river Danube, 1848.").input_ids
