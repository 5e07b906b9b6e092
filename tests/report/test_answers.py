"""The page of an evaluation, out of made-up predictions."""

import json
import re
from html.parser import HTMLParser

import pytest

from realm_hf.report.answers import highlighted, write_answer_report

TEXT = "The capital of <Nicaragua> is Managua & nothing else."


def prediction(number: int, correct: bool, rank: int | None, **other) -> dict:
    start = TEXT.index("Managua")
    passage = {
        "row": 7,
        "title": "Nicaragua",
        "text": TEXT,
        "share": 0.75,
        "retrieval_probability": 0.5,
        "best_span": "Managua",
        "start_char": start,
        "end_char": start + 7,
        "answer_places": [[start, start + 7]] if rank else [],
    }
    other_passage = {**passage, "row": 8, "title": "", "share": 0.25, "start_char": 4, "end_char": 11}
    return {
        "id": str(number),
        "question": f"Question {number}: <where>?",
        "prediction": "Managua",
        "answers": ["Managua & co"],
        "regex": False,
        "correct": correct,
        "answer_rank": rank,
        "probability": 0.625,
        "row": 7,
        "start_char": start,
        "end_char": start + 7,
        "evidence": [passage, other_passage],
        **other,
    }


PREDICTIONS = [prediction(0, True, 1), prediction(1, False, 2), prediction(2, False, None), prediction(3, True, None)]
METRICS = {
    "exact_match": 0.5,
    "token_f1": 0.625,
    "answer_recall": {"1": 0.25, "5": 0.5},
    "retrieval_utility": 0.25,
    "latency_p50": 0.0123,
    "latency_p99": 0.045,
    "questions_per_second": 87.5,
}


class Page(HTMLParser):
    """Tags that were opened and not closed, and addresses that are asked for."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "input"):
            self.open.append(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"{tag} closes what is not open"


def page(folder, predictions=PREDICTIONS, metrics=METRICS, **options) -> str:
    lines = "".join(json.dumps(row) + "\n" for row in predictions)
    (folder / "predictions.jsonl").write_text(lines, encoding="utf-8")
    if metrics is not None:
        (folder / "metrics.json").write_text(json.dumps(metrics), encoding="utf-8")
    return write_answer_report(folder, **options).read_text(encoding="utf-8")


def test_page_is_whole_and_asks_for_nothing_else(tmp_path):
    text = page(tmp_path)
    parsed = Page(text)
    assert parsed.open == [] and parsed.addresses == []
    assert "http" not in text and "url(" not in text and "<script" not in text


def test_every_question_has_the_classes_that_the_filters_name(tmp_path):
    text = page(tmp_path)
    found = re.findall(r'<details class="question card (\w+) (\w+)"', text)
    assert found == [("right", "held"), ("wrong", "held"), ("wrong", "missed"), ("right", "missed")]
    for name, count in (("all", 4), ("right", 2), ("wrong", 2), ("misread", 1), ("missed", 2)):
        label = (
            rf'id="show-{name}"( checked)?><label class="filter" for="show-{name}">[^<]* <span class="quiet">{count}<'
        )
        assert re.search(label, text), name
        assert name == "all" or f"#show-{name}:checked ~ .questions" in text


def test_texts_are_escaped(tmp_path):
    text = page(tmp_path, title="<mine>")
    assert "<where>" not in text and "Question 0: &lt;where&gt;?" in text
    assert "&lt;Nicaragua&gt;" in text and "Managua &amp; co" in text and "<h1>&lt;mine&gt;</h1>" in text


def test_answer_best_spans_and_right_answers_are_marked(tmp_path):
    text = page(tmp_path, PREDICTIONS[:1])
    assert '<mark class="answer"><u class="place">Managua</u></mark> &amp; nothing' in text
    assert "The <mark>capital</mark> of" in text, "the other passage's best span"


def test_figures_stand_above_the_questions(tmp_path):
    text = page(tmp_path)
    for value in ("50.0 %", "62.5 %", "25.0 %", "+25.0", "12 ms", "45 ms", "87.5"):
        assert f"<b>{value}</b>" in text, value


def test_page_without_figures_or_answers(tmp_path):
    nothing = prediction(
        0, False, None, prediction="", row=None, evidence=[], start_char=0, end_char=0, probability=0.0
    )
    text = page(tmp_path, [nothing], metrics=None)
    assert "no answer" in text and Page(text).open == []


def test_more_questions_than_the_limit_are_drawn_at_even_distances(tmp_path):
    text = page(tmp_path, [prediction(number, True, 1) for number in range(10)], limit=5)
    assert re.findall(r"Question (\d+):", text) == ["0", "2", "4", "6", "8"]
    assert "5 of 10 questions, drawn at even distances" in text


@pytest.mark.parametrize(
    ("span", "places", "expected"),
    [
        ((0, 0), [], "a&lt;cdef"),
        ((1, 3), [], "a<mark>&lt;c</mark>def"),
        ((1, 3), [(2, 5)], 'a<mark>&lt;<u class="place">c</u></mark><u class="place">de</u>f'),
        ((2, 4), [(0, 6)], '<u class="place">a&lt;</u><mark><u class="place">cd</u></mark><u class="place">ef</u>'),
        ((0, 0), [(3, 5), (0, 4)], '<u class="place">a&lt;cd</u><u class="place">e</u>f'),
        ((0, 6), [(4, 90)], '<mark>a&lt;cd<u class="place">ef</u></mark>'),
    ],
)
def test_span_and_places_may_overlap(span, places, expected):
    assert highlighted("a<cdef", span, places) == expected


def test_damaged_or_missing_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"predictions\.jsonl does not exist"):
        write_answer_report(tmp_path)
    (tmp_path / "predictions.jsonl").write_text("")
    with pytest.raises(ValueError, match="no prediction"):
        write_answer_report(tmp_path)
    (tmp_path / "predictions.jsonl").write_text('{"question"')
    with pytest.raises(ValueError, match=r"line 1 is not valid JSON"):
        write_answer_report(tmp_path)
    with pytest.raises(ValueError, match="limit is 0"):
        write_answer_report(tmp_path, limit=0)
