"""The demo's corpus: whole facts, gold passages that hold their answers, and no held-out country in the statements."""

import json
import sys

import pytest
from example_programs import EXAMPLES

sys.path.insert(0, str(EXAMPLES))

from factbook import factbook_passages, factbook_questions, factbook_statements, is_seen, load_facts
from factbook_files import write_files


@pytest.fixture(scope="module")
def corpus():
    return factbook_passages()


def test_every_passage_states_two_or_three_facts_and_names_its_country_in_each(corpus):
    facts = {(fact.country, fact.sentence) for fact in load_facts()}
    for row in corpus:
        stated = [sentence for country, sentence in facts if country == row["title"] and sentence in row["text"]]
        assert len(stated) in (2, 3)
        assert all(f" of {row['title']}: " in sentence for sentence in stated)


def test_every_fact_stands_in_one_passage(corpus):
    assert sum(row["text"].count(f" of {row['title']}: ") for row in corpus) >= len(load_facts())


def test_a_questions_gold_passage_is_its_countrys_and_states_its_field(corpus):
    labels = {fact.field.name: fact.field.label for fact in load_facts()}
    for question in factbook_questions():
        gold = corpus[question.passage]
        assert gold["title"] == question.country
        assert f"{labels[question.field]} of {question.country}: " in gold["text"]


def test_questions_do_not_give_their_answer_away():
    for question in factbook_questions():
        asked = question.question.replace(question.country, "")
        assert question.answer and question.answer.lower() not in asked.lower()


def test_statements_speak_of_seen_countries_and_trained_fields_only():
    statements = factbook_statements(seed=0)
    assert statements and all(is_seen(row["title"]) and row["title"] in row["text"] for row in statements)
    trained = {(fact.country, fact.answer) for fact in load_facts() if fact.field.statements}
    answers = {country: [a for c, a in trained if c == country] for country in {row["title"] for row in statements}}
    assert all(any(answer.lower() in row["text"].lower() for answer in answers[row["title"]]) for row in statements)


def test_about_a_quarter_of_the_countries_is_held_out_and_all_four_cells_are_asked():
    questions = factbook_questions()
    countries = {question.country for question in questions}
    assert 0.15 < sum(not is_seen(country) for country in countries) / len(countries) < 0.35
    cells = {(question.country_seen, question.field_seen) for question in questions}
    assert cells == {(True, True), (True, False), (False, True), (False, False)}


def test_statements_repeat_by_seed_and_differ_between_seeds():
    assert factbook_statements(seed=1) == factbook_statements(seed=1)
    assert factbook_statements(seed=1) != factbook_statements(seed=2)


def test_files_for_the_commands_hold_articles_and_questions_of_their_countries(tmp_path):
    counts = write_files(tmp_path, countries=8)
    rows = {name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").open()] for name in counts}
    assert {name: len(lines) for name, lines in rows.items()} == counts and counts["articles"] == 8
    titles = {article["title"] for article in rows["articles"]}
    for name, seen in (("questions", True), ("held_out", False)):
        about = {title for title in titles for row in rows[name] if title in row["question"]}
        assert {is_seen(title) for title in about} == {seen}
