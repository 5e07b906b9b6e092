"""When a prediction is right: the benchmarks' rules, by the reference implementations' own scores."""

import json
import re
import time
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from realm_hf.data.questions.matching import (
    answer_places,
    answer_tokens,
    compile_pattern,
    contains_answer,
    contains_regex,
    exact_match,
    normalize_answer,
    regex_match,
    token_f1,
)

REFERENCE = Path(__file__).parents[2] / "fixtures" / "reference_scores.jsonl"
TEXTS = st.text(st.sampled_from("aAnthe éE\u0301ÅΣßİ.-'½9 \n≠"), max_size=12)
ENDLESS = r"(a|aa)+$", "a" * 60 + "b"


@pytest.fixture(scope="module")
def reference() -> list[dict]:
    """Pairs with their scores; `make_reference_scores.py` says by which code."""
    return [json.loads(line) for line in REFERENCE.read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def strings(reference) -> list[dict]:
    return [row for row in reference if "answers" in row]


@pytest.fixture(scope="module")
def patterns(reference) -> list[dict]:
    """Without those that do not compile: the reference calls the answer wrong, here they are an error."""
    return [row for row in reference if "patterns" in row and compiles(row["patterns"][0])]


def compiles(pattern: str) -> bool:
    try:
        re.compile(pattern)
    except re.error:
        return False
    return True


# Scores of the reference implementations


def test_there_are_enough_pairs_of_both_outcomes(strings, patterns):
    assert len(strings) >= 1000 and len(patterns) >= 1000
    for rows, score in ((strings, "exact_match"), (strings, "contains"), (patterns, "regex_match")):
        share = sum(row[score] for row in rows) / len(rows)
        assert 0.2 < share < 0.9, (score, share)


def test_exact_match_equals_orqa(strings):
    ours = [exact_match(row["text"], row["answers"]) for row in strings]
    assert ours == [row["exact_match"] for row in strings]


def test_regex_match_equals_orqa(patterns):
    ours = [regex_match(row["text"], row["patterns"]) for row in patterns]
    assert ours == [row["regex_match"] for row in patterns]


def test_token_f1_equals_squad(strings):
    ours = [token_f1(row["text"], row["answers"]) for row in strings]
    assert ours == pytest.approx([row["token_f1"] for row in strings], abs=1e-12)


def test_containment_equals_dpr(strings, patterns):
    def passage(row):
        return f"It is {row['text']}, they say."

    ours = [contains_answer(passage(row), row["answers"]) for row in strings]
    ours += [contains_regex(passage(row), row["patterns"]) for row in patterns]
    assert ours == [row["contains"] for row in strings + patterns]


# The rules by hand


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Beatles!", "beatles"),
        ("Beyoncé", "beyonce\u0301"),
        ("mid-1990s", "mid1990s"),
        ("a an the", ""),
        ("Athena", "athena"),
        ("“quoted”", "“quoted”"),
        ("", ""),
    ],
)
def test_normalized_form(text, expected):
    assert normalize_answer(text) == expected


def test_composed_and_decomposed_letters_are_the_same_answer():
    decomposed = unicodedata.normalize("NFD", "Beyoncé")
    assert exact_match(decomposed, ["Beyoncé"]) and token_f1(decomposed, ["Beyoncé"]) == 1
    assert contains_answer(f"{decomposed} sang", ["Beyoncé"]) and contains_regex("Beyoncé sang", [decomposed])


def test_exact_match_is_by_any_answer():
    assert exact_match("Rome", ["Milan", "rome"]) and not exact_match("Rome", ["Milan", "Romeo"])


def test_regex_match_begins_at_the_start_and_search_does_not():
    assert regex_match("Crimean War", ["crimea"]) and not regex_match("the Crimean War", ["crimea"])
    assert contains_regex("the Crimean War", ["crimea"])


def test_regex_line_anchors_hold_at_every_line():
    assert regex_match("Ohio\nriver", ["^Ohio$"]) and contains_regex("the\nOhio\nriver", ["^ohio$"])
    assert not regex_match("the\nOhio", ["^Ohio$"]), "match begins at the text's start, not at a line's"


def test_regex_sees_the_prediction_as_it_is():
    assert not regex_match(" Rome", ["Rome"]) and not regex_match("Rome,", ["Rome$"])


def test_token_f1_counts_repeated_words_once_each():
    assert token_f1("new new york", ["new york city"]) == pytest.approx(2 / 3)
    assert token_f1("Rome", ["Milan"]) == 0


def test_token_f1_without_words():
    assert token_f1("the", ["The A"]) == 1 and token_f1("", ["Rome"]) == 0 and token_f1("Rome", ["a"]) == 0


def test_containment_is_by_whole_tokens():
    assert contains_answer("In 1969, Apollo 11 flew.", ["apollo 11"])
    assert not contains_answer("In 1969, Apollo 112 flew.", ["apollo 11"])
    assert not contains_answer("In 19693.", ["1969"])
    assert contains_answer("the mid-1990s", ["1990s"]) and not contains_answer("a US state", ["the U.S."])


def test_answer_without_visible_characters_is_in_no_passage():
    assert not contains_answer("any text", ["", " \u200b\n"]) and not contains_answer("", [""])


def test_tokens_are_separated_by_one_space():
    assert answer_tokens("It's 5°C") == " it ' s 5 ° c "
    assert answer_tokens(" \n") == " "


@pytest.mark.parametrize("pattern", [r"Jes\ús Gil", r"Ni\ña"])
def test_escaped_accented_letter_is_that_letter(pattern):
    text = pattern.replace("\\", "")
    assert contains_regex(f"by {text}.", [pattern]) and contains_regex(unicodedata.normalize("NFD", text), [pattern])


def test_escaped_backslash_before_an_accented_letter_stays_one():
    assert contains_regex("C:\\été", [r"\\été"]) and not contains_regex("été", [r"\\été"])


# Places for people to look at


def test_places_are_those_of_the_text_as_it_is():
    text = "Beyoncé's U.S. tour, beyonce\u0301 said; Ni\u00f1a"
    assert [text[start:end] for start, end in answer_places(text, ["beyoncé", "u.s."])] == [
        "Beyoncé",
        "U.S.",
        "beyonce\u0301",
    ]
    assert [text[start:end] for start, end in answer_places(text, [r"ni\ña|t\w+"], regex=True)] == ["tour", "Niña"]


def test_places_do_not_overlap_and_the_longer_one_stays():
    text = "New York City"
    assert answer_places(text, ["York City", "New York", "New"]) == [(0, 8)]


@settings(deadline=None)
@given(TEXTS, TEXTS)
def test_there_is_a_place_exactly_where_a_passage_holds_the_answer(text, answer):
    places = answer_places(text, [answer])
    assert bool(places) == contains_answer(text, [answer])
    assert all(0 <= start < end <= len(text) for start, end in places)


# What holds always


@settings(deadline=None)
@given(TEXTS.filter(lambda text: "≠" not in text))  # its stroke is left when its "=" goes
def test_normalization_of_a_normalized_text_changes_nothing(text):
    assert normalize_answer(normalize_answer(text)) == normalize_answer(text)


@settings(deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_f1_is_one_wherever_the_match_is_exact(prediction, answers):
    f1 = token_f1(prediction, answers)
    assert 0 <= f1 <= 1 and (f1 == 1 or not exact_match(prediction, answers))


@settings(deadline=None)
@given(TEXTS, st.lists(TEXTS, min_size=1, max_size=3))
def test_plain_patterns_find_what_is_there(text, parts):
    assert contains_regex(text + parts[0], [re.escape(parts[0])])
    assert regex_match(parts[0] + text, [re.escape(parts[0])])


# Errors


@pytest.mark.parametrize("pattern", ["(a", "[", "*x", "a{2,1}", r"\q", "(?<=a+)b"])
def test_invalid_pattern_is_named(pattern):
    for check in (regex_match, contains_regex):
        with pytest.raises(ValueError, match=rf"{re.escape(repr(pattern))} is no valid regular expression"):
            check("text", [pattern])


def test_endless_pattern_is_stopped_and_named():
    pattern, text = ENDLESS
    for check in (regex_match, contains_regex):
        started = time.perf_counter()
        with pytest.raises(TimeoutError, match=re.escape(pattern)):
            check(text, [pattern], timeout=0.05)
        assert time.perf_counter() - started < 5


@pytest.mark.parametrize("check", [exact_match, token_f1, contains_answer, regex_match, contains_regex, answer_places])
def test_no_answer_or_a_bare_string_is_an_error(check):
    with pytest.raises(ValueError, match="no answer"):
        check("text", [])
    with pytest.raises(TypeError, match="'abc'"):
        check("text", "abc")


def test_patterns_are_compiled_once():
    assert compile_pattern("once") is compile_pattern("once")
