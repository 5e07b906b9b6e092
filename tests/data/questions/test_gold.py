"""Gold passages are found in a store that cut them otherwise, and nothing that merely resembles them is."""

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_hf.data.passages.build import passages_from_rows
from realm_hf.data.questions.gold import find_gold_rows
from realm_hf.data.questions.load import OpenQAExample, load_questions


def rows_of(passages, tokenizer, *gold):
    (rows,) = find_gold_rows([OpenQAExample("?", ("x",), gold=gold)], passages, tokenizer)
    return rows.tolist()


def test_a_document_is_all_of_its_passages(passages, tokenizer, articles):
    for number in range(len(articles)):
        expected = [row for row in range(len(passages)) if passages.documents[row] == number]
        assert rows_of(passages, tokenizer, number) == expected
    assert len(rows_of(passages, tokenizer, 0)) > 1 and rows_of(passages, tokenizer, 1) == []
    assert rows_of(passages, tokenizer, 2, 0, 2)[-1] == rows_of(passages, tokenizer, 0)[-1], "in the order named"


def test_a_text_is_found_whole_cut_in_another_case_and_not_elsewhere(passages, tokenizer, articles):
    first = [row for row in range(len(passages)) if passages.documents[row] == 0]
    assert sorted(rows_of(passages, tokenizer, articles[0]["text"].upper())) == first
    assert rows_of(passages, tokenizer, passages.text(first[1]))[0] == first[1]
    inner = " ".join(passages.text(first[1]).split()[1:-1])
    assert rows_of(passages, tokenizer, inner)[0] == first[1]
    assert (
        rows_of(passages, tokenizer, "In France people said of the old prison that it was older than its walls.") == []
    )
    assert rows_of(passages, tokenizer, "too short") == []


def test_the_passage_that_shares_most_comes_first_and_boilerplate_does_not_count(tokenizer, tmp_path):
    common = "is a small town in the north of the district that it is named after "
    bodies = [f"red {common} and which has a river and a harbor", f"blue {common} where people buy oil and fish today"]
    store = passages_from_rows(
        Dataset.from_dict({"title": ["", ""], "text": bodies}), tokenizer, tmp_path / "store", max_length=64
    )
    assert rows_of(store, tokenizer, bodies[1])[0] == 1
    assert (
        rows_of(store, tokenizer, f"green {common}" + "with many more words of its own that no other has " * 3) == []
    )


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_long_piece_of_a_document_finds_a_passage_that_holds_a_part_of_it(data, passages, tokenizer):
    body = data.draw(st.sampled_from([row for row in range(len(passages)) if len(passages.body_ids(row)) > 12]))
    ids = passages.body_ids(body).tolist()
    start = data.draw(st.integers(0, len(ids) - 10))
    words = tokenizer.decode(ids[start:]).split()
    found = rows_of(passages, tokenizer, " ".join(words))
    retokenized = tokenizer(" ".join(words), add_special_tokens=False)["input_ids"]
    if retokenized == ids[start:]:
        assert body in found


def test_a_number_that_is_no_document_is_refused(passages, tokenizer):
    with pytest.raises(ValueError, match=r"document 99, but the corpus has 0 to 4"):
        rows_of(passages, tokenizer, 99)
    with pytest.raises(ValueError, match=r"document -1"):
        rows_of(passages, tokenizer, -1)


def test_the_column_is_read_where_it_is_named_and_only_there():
    rows = [
        {"question": "a?", "answer": "x", "context": "Some text.", "passage": 3},
        {"question": "b?", "answer": "y", "context": None, "passage": [4, 4, "Other text."]},
    ]
    assert [e.gold for e in load_questions(rows)] == [(), ()]
    assert [e.gold for e in load_questions(rows, gold_column="context")] == [("Some text.",), ()]
    assert [e.gold for e in load_questions(rows, gold_column="passage")] == [(3,), (4, "Other text.")]
    with pytest.raises(ValueError, match=r"row 0 has the columns.*but no gold"):
        load_questions(rows, gold_column="gold")
    with pytest.raises(ValueError, match=r"row 0 has passage 1.5: a gold passage is"):
        load_questions([{**rows[0], "passage": 1.5}], gold_column="passage")
