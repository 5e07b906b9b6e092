"""Answers are found in stored passages wherever a plain search would find them, and nowhere else."""

import re

import numpy as np
import pytest
from datasets import Dataset

from realm_hf import RealmTokenizer
from realm_hf.data.passages.build import passages_from_rows
from realm_hf.data.questions.answer_finder import AnswerFinder


@pytest.fixture(scope="module")
def finder(passages, tokenizer):
    return AnswerFinder(passages, tokenizer)


def store_of(texts, tokenizer, folder):
    rows = Dataset.from_dict({"title": [""] * len(texts), "text": texts})
    return passages_from_rows(rows, tokenizer, folder / "store", max_length=64)


def as_text(passages, tokenizer, row, start, end):
    """The characters of wordpieces `start` to `end` of a passage."""
    text = passages.text(row)
    offsets = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return text[offsets[start][0] : offsets[end][1]]


def found_texts(finder, rows, answers, **options):
    found = finder.find(np.asarray(rows), answers, **options)
    spans = zip(found.passage.tolist(), found.start.tolist(), found.end.tolist(), strict=True)
    return [(place, as_text(finder.passages, finder.tokenizer, rows[place], a, b)) for place, a, b in spans]


def naive(passages, tokenizer, rows, answers):
    """Every answer at every position of every passage, one comparison after the other."""
    pieces = {number: piece for piece, number in tokenizer.get_vocab().items()}
    spans = set()
    for place, row in enumerate(rows):
        body = passages.body_ids(row).tolist() if row >= 0 else []
        for answer in answers:
            ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
            for start in range(len(body) - len(ids) + 1):
                end = start + len(ids)
                inside_a_word = end < len(body) and pieces[body[end]].startswith("##")
                if ids and body[start:end] == ids and not inside_a_word:
                    spans.add((place, start, end - 1))
    return sorted(spans)


def test_plain_answer_is_found_with_its_characters(finder, passages):
    rows = list(range(len(passages)))
    found = found_texts(finder, rows, ["Paris", "21 january 1793"])
    assert {text for _, text in found} == {"Paris", "21 January 1793"}
    has = finder.find(np.array(rows), ["Paris", "21 january 1793"]).has_answer
    expected = [bool(re.search(r"paris|21 january 1793", passages.text(row), re.IGNORECASE)) for row in rows]
    assert has.tolist() == expected and any(expected) and not all(expected)


def test_search_equals_the_naive_loop_over_passages_and_answers(tokenizer, tmp_path):
    rng = np.random.default_rng(0)
    # Few words, so that answers overlap, repeat, begin alike and cross into each other.
    words = ["red", "red", "river", "rivers", "north", "6", "67", "the", "of"]
    texts = [" ".join(rng.choice(words, rng.integers(1, 40))) for _ in range(60)]
    passages = store_of(texts, tokenizer, tmp_path)
    finder = AnswerFinder(passages, tokenizer)
    hits = 0
    for _ in range(40):
        rows = rng.integers(-2, len(passages), 50)
        answers = [" ".join(rng.choice(words, rng.integers(1, 4))) for _ in range(rng.integers(1, 6))]
        found = finder.find(rows, answers)
        spans = list(zip(found.passage.tolist(), found.start.tolist(), found.end.tolist(), strict=True))
        assert spans == naive(passages, tokenizer, rows, answers)
        assert np.array_equal(found.has_answer, np.isin(np.arange(50), found.passage))
        hits += len(spans)
    assert hits > 1000


def test_answer_does_not_run_from_one_passage_into_the_next(tokenizer, tmp_path):
    passages = store_of(["It is in New", "York is a city"], tokenizer, tmp_path)
    finder = AnswerFinder(passages, tokenizer)
    for rows in ([0, 1], [1, 0]):
        assert not finder.find(np.array(rows), ["New York"]).has_answer.any()
    assert finder.find(np.array([0, 1]), ["New"]).has_answer.tolist() == [True, False]


def test_answer_at_the_very_beginning_and_end_of_a_body_is_found(tokenizer, tmp_path):
    passages = store_of(["Paris", "The city is Paris"], tokenizer, tmp_path)
    found = AnswerFinder(passages, tokenizer).find(np.array([1, 0]), ["paris"])
    assert found.has_answer.all()
    assert found.end.tolist() == [len(passages.body_ids(1)) - 1, len(passages.body_ids(0)) - 1]
    assert found.start[1] == 0


def test_answer_is_not_found_inside_a_word(tokenizer, tmp_path):
    whole, part = "rivers", "river"
    ids = tokenizer([whole, part], add_special_tokens=False)["input_ids"]
    if ids[0][: len(ids[1])] != ids[1]:
        whole, part = next(
            (word, word[:n])
            for word in ("parisian", "northerner", "redish", "islander", "countryman")
            for n in range(2, len(word))
            if tokenizer(word, add_special_tokens=False)["input_ids"][:-1]
            == tokenizer(word[:n], add_special_tokens=False)["input_ids"]
        )
    passages = store_of([f"It was {whole} then", f"It was {part} then"], tokenizer, tmp_path)
    assert AnswerFinder(passages, tokenizer).find(np.array([0, 1]), [part]).has_answer.tolist() == [False, True]


def test_absent_rows_and_the_null_passage_hold_nothing(finder):
    for regex in (False, True):
        found = finder.find(np.array([-2, 0, -1, -2]), ["Paris"], regex=regex)
        assert found.has_answer.tolist() == [False, True, False, False]
        assert set(found.passage.tolist()) == {1}
        nothing = finder.find(np.array([-2, -1]), ["Paris"], regex=regex)
        assert not nothing.has_answer.any() and len(nothing.start) == 0
        assert len(finder.find(np.zeros(0, np.int64), ["Paris"], regex=regex).has_answer) == 0


@pytest.mark.parametrize("answers", [[], [""], ["  "], ["中文答案"], ["\x00"]])
def test_answer_that_has_no_known_wordpiece_is_never_found(tokenizer, tmp_path, answers):
    passages = store_of(["Paris is a city", "☃ ☃ unknown"], tokenizer, tmp_path)
    found = AnswerFinder(passages, tokenizer).find(np.array([0, 1]), answers)
    assert not found.has_answer.any() and len(found.start) == 0


def test_spans_are_given_for_the_first_rows_only_and_has_answer_for_all(finder, passages):
    rows = np.flatnonzero([bool(re.search("Paris", passages.text(row))) for row in range(len(passages))])
    rows = np.concatenate([rows, rows])
    for regex in (False, True):
        found = finder.find(rows, ["Paris"], regex=regex, span_rows=1)
        assert found.has_answer.all() and set(found.passage.tolist()) == {0}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        (r"1[78]\d\d", {"1789", "1792", "1793", "1799", "1870"}),
        (r"king\s+louis (XVI|XIV)", {"King Louis XVI"}),
        (r"6,?650 ?km", {"6,650 km"}),
        (r"(?<=River of )afric", set()),  # what it finds is not what an answer would match from its beginning
        (r"z*", set()),  # nothing is no answer
    ],
)
def test_regular_expression_gives_the_wordpieces_that_it_touches(finder, passages, pattern, expected):
    rows = list(range(len(passages)))
    found = found_texts(finder, rows, [pattern], regex=True)
    assert {text for _, text in found} == expected
    for _, text in found:
        assert re.match(pattern, text, re.IGNORECASE)


def test_regular_expression_inside_a_word_takes_the_whole_wordpiece(finder, passages):
    found = found_texts(finder, list(range(len(passages))), ["republi"], regex=True)
    assert found and all(text.startswith("republi") for _, text in found)


def test_remembered_rows_of_a_regular_expression_answer_like_new_ones(passages, tokenizer):
    kept = AnswerFinder(passages, tokenizer)
    rng = np.random.default_rng(1)
    for _ in range(8):
        rows = rng.integers(-2, len(passages), 6)
        fresh = AnswerFinder(passages, tokenizer).find(rows, ["paris|nile", "1870"], regex=True)
        again = kept.find(rows, ["paris|nile", "1870"], regex=True)
        for name in ("has_answer", "passage", "start", "end"):
            assert np.array_equal(getattr(fresh, name), getattr(again, name))


def test_wrong_rows_patterns_and_tokenizers_are_refused(finder, passages):
    with pytest.raises(IndexError, match=r"-2\.\."):
        finder.find(np.array([len(passages)]), ["Paris"])
    with pytest.raises(IndexError, match="one dimension"):
        finder.find(np.zeros((2, 2), np.int64), ["Paris"])
    with pytest.raises(ValueError, match=r"\(unclosed.*no valid regular expression"):
        finder.find(np.array([0]), ["(unclosed"], regex=True)
    other = RealmTokenizer(vocab={piece: n for n, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])})
    with pytest.raises(ValueError, match="not the one that made the passages"):
        AnswerFinder(passages, other)
