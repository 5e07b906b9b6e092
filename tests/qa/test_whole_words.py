"""What is shown of a span that ends inside a word; what is judged stays the span."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from realm_hf import Answer
from realm_hf.qa.answers import Evidence
from realm_hf.qa.predictions import write_predictions
from realm_hf.qa.results import QuestionRecord
from realm_hf.qa.whole_words import whole_words


@pytest.mark.parametrize(
    ("text", "span", "shown"),
    [
        ("by Lazo Pekevski in 1901", "Lazo Peke", "Lazo Pekevski"),
        ("It had 68,636 people.", "68,", "68,636"),
        ("It had 68,636 people.", "68", "68,636"),
        ("It had 68,636 people.", "636", "68,636"),
        ("about 3.5 km", "5", "3.5"),
        ("in 1901, 1902 and", "1901", "1901"),
        ("in 1901,1902", "1901", "1901,1902"),
        ("He lies. Then", "lies", "lies"),
        ("Obama's wife", "Obama", "Obama"),
        ("the Austro-Hungarian army", "Hungarian", "Hungarian"),
        ("São Paulo", "S", "São"),
        ("東京都庁", "東京", "東京"),
        ("ends with 68,", "68,", "68,"),
    ],
)
def test_a_span_is_shown_in_whole_words(text, span, shown):
    start = text.index(span)
    first, last = whole_words(text, start, start + len(span))
    assert text[first:last] == shown


@given(st.text("ab1 ,.é'-", max_size=20), st.integers(0, 20), st.integers(0, 20))
def test_widening_holds_the_span_and_is_done_once(text, first, second):
    start, end = sorted((min(first, len(text)), min(second, len(text))))
    wide = whole_words(text, start, end)
    assert wide[0] <= start <= end <= wide[1] and whole_words(text, *wide) == wide
    assert start < end or wide == (start, end)
    for place in wide if start < end else ():  # no letter or digit is parted
        assert not text[max(place - 1, 0) : place + 1].isalnum() or place in (0, len(text))


def test_what_is_judged_stays_the_span(tmp_path):
    passage = Evidence(3, "Ohrid", "It had 68,636 people.", 0.5, 1.0, "68,", 7, 10, 0.5)
    answer = Answer("How many?", "68,", 3, "Ohrid", 7, 10, 0.5, 0.5, 1.0, "68,", (passage,), None)
    assert (answer.text, answer.shown, answer.to_dict()["shown"]) == ("68,", "68,636", "68,636")
    record = QuestionRecord("0", "How many?", ("68,636",), False, answer, False, True, 0.0, 1)
    line = json.loads(write_predictions([record], tmp_path / "p.jsonl").read_text(encoding="utf-8"))
    assert (line["prediction"], line["shown"], line["shown_span"]) == ("68,", "68,636", [7, 13])
    assert line["evidence"][0]["shown_span"] == [7, 13] and line["correct"] is False


def test_without_an_answer_nothing_is_shown():
    assert Answer.none("Who?").shown == ""
