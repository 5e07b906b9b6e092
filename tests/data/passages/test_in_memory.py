import filecmp

import numpy as np
import pytest
from datasets import Dataset

from realm_hf.data.passages.build import PassageStore, passages_from_rows
from realm_hf.data.passages.in_memory import pack_passages, write_edited_passages

TOKENS = [f"{name}_tokens{end}.bin" for name in ("title", "body") for end in ("", "_offsets")]


def rows_of(count: int) -> dict[str, list[str]]:
    return {
        "title": [f"Place {number}" for number in range(count)],
        "text": [f"The river {number} runs north. It has {number * 7} bridges." for number in range(count)],
    }


def build(rows, tokenizer, folder) -> PassageStore:
    return passages_from_rows(Dataset.from_dict(rows), tokenizer, folder, max_length=48)


@pytest.fixture(scope="module")
def store(tmp_path_factory, tokenizer) -> PassageStore:
    return build(rows_of(150), tokenizer, tmp_path_factory.mktemp("edited") / "store")


def packed(tokenizer, *texts: str, titles=None):
    return pack_passages(texts, titles or [""] * len(texts), tokenizer, 48)


def test_an_edited_store_equals_one_that_was_built_from_the_edited_rows(store, tokenizer, tmp_path):
    new = packed(tokenizer, "The lake is deep. Fish live in it.", "Roads lead to the north.", titles=["Lake", "Roads"])
    rows = rows_of(150)
    rows["title"][7], rows["text"][7] = "Lake", "The lake is deep. Fish live in it."
    rows["title"].append("Roads")
    rows["text"].append("Roads lead to the north.")
    for column in rows.values():
        del column[70:80], column[3]
    expected = build(rows, tokenizer, tmp_path / "expected")

    kept = np.setdiff1d(np.arange(151), [3, *range(70, 80)])
    (tmp_path / "edited").mkdir()
    write_edited_passages(store, kept, {7: new.records[0], 150: new.records[1]}, tmp_path / "edited")
    edited = PassageStore.load(tmp_path / "edited", verify=True)
    assert edited.fingerprint == expected.fingerprint
    assert all(filecmp.cmp(tmp_path / "edited" / f, tmp_path / "expected" / f, shallow=False) for f in TOKENS)
    assert [edited.text(i) for i in range(len(edited))] == [expected.text(i) for i in range(len(expected))]
    np.testing.assert_array_equal(edited.duplicate_groups, expected.duplicate_groups)
    assert edited.documents.tolist() == [*kept[:-1].tolist(), -1]
    assert {path.name for path in (tmp_path / "edited").iterdir()} == {
        path.name for path in (tmp_path / "expected").iterdir()
    }


def test_passages_in_memory_have_the_wordpieces_that_a_store_gives_them(store, tokenizer):
    texts = [store.text(row) for row in range(20)]
    memory = pack_passages(texts, [store.title(row) for row in range(20)], tokenizer, 48)
    assert len(memory) == 20
    for name, array in store.pad_candidates(np.arange(20)).items():
        np.testing.assert_array_equal(memory.pad_candidates(np.arange(20))[name], array)
    np.testing.assert_array_equal(memory.lengths, store.lengths[:20])
    sentence = tokenizer("It has 7 bridges", add_special_tokens=False)["input_ids"]
    assert np.flatnonzero(memory.contains(np.array(sentence), np.arange(20))).tolist() == [1]
    assert np.flatnonzero(store.contains(np.array(sentence), np.arange(20))).tolist() == [1]


def test_texts_that_are_too_long_are_cut_and_told(tokenizer, caplog):
    from transformers.utils import logging

    logging.enable_propagation()
    try:
        memory = packed(tokenizer, "The river runs north. " * 40, "Short.")
    finally:
        logging.disable_propagation()
    assert memory.lengths.max() <= 48 and len(memory.records[0].text) < 200
    assert "1 of 2 texts do not fit 48 wordpieces" in caplog.text


@pytest.mark.parametrize("text", ["", "  \n ", "\u200b"])
def test_a_text_without_a_wordpiece_is_refused(tokenizer, text):
    with pytest.raises(ValueError, match=r"Text 1 .* holds nothing to read"):
        packed(tokenizer, "Fine.", text)


def test_odd_input_is_refused_in_words(tokenizer):
    with pytest.raises(TypeError, match="None, a NoneType"):
        packed(tokenizer, "Fine.", None)
    with pytest.raises(ValueError, match="1 titles for 2 texts"):
        packed(tokenizer, "a", "b", titles=["x"])
    assert len(packed(tokenizer)) == 0
    assert packed(tokenizer, "Fine \ud800 so far.").records[0].text == "Fine ? so far."
