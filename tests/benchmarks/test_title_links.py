"""Which questions are linked to which article."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

from harness.title_links import TitleLinks, linked_questions

from realm_hf.data.questions.load import OpenQAExample

ARTICLES = {
    "Star Wars (film)": "A film of 1977 by George Lucas.",
    "Star Wars Holiday Special": "It was shown in 1978.",
    "Wars": "Many wars were fought in 1977.",
    "C (musical note)": "C is the first note, 1977.",
    "Zürich": "A city in Switzerland.",
}


@pytest.fixture
def links():
    return TitleLinks(ARTICLES)


@pytest.mark.parametrize(
    ("question", "answer", "titles"),
    [
        ("when was star wars made", "1977", ["Star Wars (film)"]),
        ("where is Zürich?", "switzerland", ["Zürich"]),
        ("when was star wars made", "1978", []),  # the article that is named does not say so
        ("what note is c", "1977", []),  # too short for a name
        ("when was superstar wars made", "1977", []),  # whole words only
        ("when was star wars made", "197", []),  # too short for an answer
    ],
)
def test_a_question_is_linked_to_an_article_that_it_names_and_that_holds_the_answer(links, question, answer, titles):
    assert links.linked(question, [answer]) == titles


def test_of_several_articles_the_one_with_the_longest_name_is_taken_and_of_equal_questions_one(links):
    links = TitleLinks({**ARTICLES, "Holiday": "1978"})
    asked = [OpenQAExample("when was the star wars holiday special shown", ("1978", "no"))] * 2
    (found,) = linked_questions([*asked, OpenQAExample("who", ("1978",))], links)
    assert (found.title, found.example.answers) == ("Star Wars Holiday Special", ("1978",))
