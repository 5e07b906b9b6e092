"""Evaluation by a tiny model: the figures are those of the rules, whatever the batches, the beam and the questions."""

import json
from dataclasses import replace

import numpy as np
import pytest
from tiny_answerers import tiny_answerer

from realm_hf.data.questions.load import OpenQAExample
from realm_hf.data.questions.matching import answer_places, contains_answer, exact_match, token_f1
from realm_hf.qa import evaluation as open_qa
from realm_hf.qa.evaluation import evaluate_open_qa
from realm_hf.qa.predictions import read_predictions, write_predictions
from realm_hf.qa.results import OpenQAResult

QUESTIONS = [
    "How many people has the island number 8?",
    "Where does the river lie?",
    "Which city has 45 people",
    "What is in the north?",
    "Where is the harbour number 11",
    "Which forest has a road?",
]


@pytest.fixture(scope="module")
def answerer(tiny_passages):
    return tiny_answerer(tiny_passages)


@pytest.fixture(scope="module")
def examples(answerer) -> list[OpenQAExample]:
    """The model is right about the even ones, and its passages hold the answers to those and to number 1."""
    said = [answer.text for answer in answerer(QUESTIONS)]
    answers = [(text,) if number % 2 == 0 else ("nowhere",) for number, text in enumerate(said)]
    answers[1] = ("nothing", "people and a road")
    return [OpenQAExample(q, a, id=f"q{n}") for n, (q, a) in enumerate(zip(QUESTIONS, answers, strict=True))]


@pytest.fixture(scope="module")
def result(answerer, examples) -> OpenQAResult:
    return evaluate_open_qa(answerer, examples, (1, 5, 20), latency_questions=2)


def test_figures_are_means_over_the_questions(result, examples):
    assert result.questions == len(examples) == 6
    assert result.exact_match == pytest.approx(0.5)
    expected = np.mean([token_f1(r.answer.text, r.answers) for r in result.records])
    assert result.token_f1 == pytest.approx(expected) and result.token_f1 >= result.exact_match
    assert result.unanswered == result.pattern_timeouts == 0


def test_records_keep_the_order_and_say_what_was_judged(result, examples):
    assert [record.id for record in result.records] == [example.id for example in examples]
    for record, example in zip(result.records, examples, strict=True):
        assert record.question == record.answer.question == example.question
        assert record.correct == exact_match(record.answer.text, example.answers)
        assert record.best_string_correct == exact_match(record.answer.best_string, example.answers)


def test_recall_is_that_of_the_retrieved_passages(result, answerer, examples):
    found = answerer.retrieve(QUESTIONS, top_k=20).batch.rows
    for k in (1, 5, 20):
        hits = [
            any(contains_answer(text, example.answers) for text in answerer.retriever.texts(rows[:k]))
            for rows, example in zip(found, examples, strict=True)
        ]
        assert result.answer_recall[k] == pytest.approx(np.mean(hits))
    assert 0 < result.answer_recall[1] <= result.answer_recall[20] < 1
    assert result.records[1].answer_rank == 1, "all passages hold one of its answers"
    assert result.records[3].answer_rank is None


def test_recall_beyond_the_corpus_is_over_all_of_it(answerer, examples, tiny_passages):
    beyond = evaluate_open_qa(answerer, examples, (1000,), latency_questions=0, retrieval_utility=False)
    texts = [tiny_passages.text(row) for row in range(len(tiny_passages))]
    held = [any(contains_answer(text, example.answers) for text in texts) for example in examples]
    assert beyond.answer_recall == {1000: pytest.approx(np.mean(held))}


def test_batches_change_nothing(result, answerer, examples):
    other = evaluate_open_qa(answerer, examples, (1, 5, 20), batch_size=1, latency_questions=0)
    assert [r.answer.text for r in other.records] == [r.answer.text for r in result.records]
    same = ("exact_match", "token_f1", "answer_recall", "shuffled_exact_match", "best_string_match")
    assert [getattr(other, name) for name in same] == [getattr(result, name) for name in same]


def test_utility_is_what_the_questions_own_passages_add(result, answerer, examples):
    """By hand: every question is read with the passages of exactly one other question."""
    rows = answerer.retrieve(QUESTIONS, top_k=answerer.model.config.reader_beam_size).batch.rows
    order = np.random.default_rng(0).permutation(len(examples))
    partner = dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
    assert all(partner[number] != number for number in partner)
    others = np.stack([rows[partner[number]] for number in range(len(examples))])
    right = [
        exact_match(answer.text, example.answers)
        for answer, example in zip(answerer.read(QUESTIONS, others), examples, strict=True)
    ]
    assert [record.shuffled_correct for record in result.records] == right
    assert result.shuffled_exact_match == pytest.approx(np.mean(right))
    assert result.retrieval_utility == pytest.approx(result.exact_match - np.mean(right))


def test_utility_of_a_single_question_is_left_out(answerer, examples):
    single = evaluate_open_qa(answerer, examples[:1], latency_questions=0)
    assert single.retrieval_utility is None and single.records[0].shuffled_correct is None


def test_latency_is_measured_on_single_questions(answerer, examples, monkeypatch):
    asked = []

    class Listening(type(answerer)):
        def __call__(self, questions, **options):
            asked.append(questions)
            return super().__call__(questions, **options)

    listening = Listening(answerer.model)
    timed = evaluate_open_qa(listening, examples, (1,), latency_questions=3, retrieval_utility=False)
    assert asked == [QUESTIONS, QUESTIONS[0], *QUESTIONS[:3]], "all at once; one to warm up; then each alone"
    assert timed.latency_questions == 3 and 0 < timed.latency_p50 <= timed.latency_p99
    assert timed.questions_per_second > 0
    untimed = evaluate_open_qa(answerer, examples, (1,), latency_questions=0, retrieval_utility=False)
    assert untimed.latency_p50 is None and untimed.latency_p99 is None


def test_regular_expressions_match_predictions_and_are_searched_in_passages(answerer):
    said = answerer(QUESTIONS[0])[0].text
    first = said.split()[0]
    patterns = [(rf"{first}\b.*",), (rf"xx{first}",), (r"lies\s+in",)]
    examples = [OpenQAExample(QUESTIONS[0], pattern, regex=True) for pattern in patterns]
    found = evaluate_open_qa(answerer, examples, (1,), latency_questions=0)
    assert [record.correct for record in found.records][:2] == [True, False]
    assert [record.answer_rank for record in found.records][1:] == [None, 1]
    assert found.token_f1 is None and all(record.f1 is None for record in found.records)
    assert "regex match" in found.table() and "F1" not in found.table()


def test_questions_without_an_answer_are_counted(answerer):
    found = evaluate_open_qa(answerer, [OpenQAExample("", ("x",)), OpenQAExample(QUESTIONS[0], ("x",))], (1,))
    assert found.unanswered == 1 and found.exact_match == 0
    assert found.records[0].answer_rank is None and found.records[0].answer.text == ""


def test_progress_ends_at_the_number_of_questions(answerer, examples):
    seen = []
    evaluate_open_qa(
        answerer,
        examples,
        (1,),
        batch_size=4,
        latency_questions=0,
        retrieval_utility=False,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(4, 6), (6, 6)]


# Errors


def test_invalid_pattern_names_the_question_before_anything_is_asked(answerer):
    bad = OpenQAExample("When was that?", ("(Feb",), regex=True)
    with pytest.raises(ValueError, match=r"'When was that\?': the answer '\(Feb' is no valid regular expression"):
        evaluate_open_qa(answerer, [OpenQAExample(QUESTIONS[0], ("x",)), bad])


def test_endless_pattern_costs_its_question_and_no_other(answerer, monkeypatch, caplog):
    def endless(text, patterns):
        if "endless" in patterns:
            raise TimeoutError("the pattern 'endless' was not done")
        return True

    monkeypatch.setattr(open_qa, "regex_match", endless)
    monkeypatch.setattr(open_qa, "contains_regex", endless)
    examples = [OpenQAExample(QUESTIONS[0], (name,), regex=True) for name in ("endless", "fine")]
    found = evaluate_open_qa(answerer, examples, (1,), latency_questions=0, retrieval_utility=False)
    assert [record.correct for record in found.records] == [False, True]
    assert [record.pattern_timed_out for record in found.records] == [True, False]
    assert [record.answer_rank for record in found.records] == [None, 1]
    assert found.pattern_timeouts == 1 and "patterns stopped" in found.table()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"examples": []}, "no questions"),
        ({"ks": (0,)}, "ks must hold depths"),
        ({"ks": ()}, "ks must hold depths"),
        ({"examples": [OpenQAExample("Who?", ())]}, r"'Who\?' has no answer"),
    ],
)
def test_faulty_input_is_an_error(answerer, examples, change, message):
    with pytest.raises(ValueError, match=message):
        evaluate_open_qa(answerer, **{"examples": examples, **change})


# Files


def test_predictions_come_back_with_their_evidence(result, tmp_path):
    path = write_predictions(result.records, tmp_path / "predictions.jsonl")
    lines = read_predictions(path)
    assert [line["prediction"] for line in lines] == [record.answer.text for record in result.records]
    assert [line["correct"] for line in lines] == [record.correct for record in result.records]
    for line, record in zip(lines, result.records, strict=True):
        assert line["answers"] == list(record.answers) and line["answer_rank"] == record.answer_rank
        for passage, read in zip(line["evidence"], record.answer.evidence, strict=True):
            assert passage["text"] == read.text and passage["share"] == read.share
            places = [tuple(place) for place in passage["answer_places"]]
            assert places == answer_places(read.text, record.answers)
        chosen = next(passage for passage in line["evidence"] if passage["row"] == line["row"])
        assert chosen["text"][line["start_char"] : line["end_char"]] == line["prediction"]


def test_predictions_with_any_characters_stay_one_line_a_question(result, tmp_path):
    odd = [
        replace(result.records[0], question=text) for text in ("line\u2028separator\x85\n", "half \ud800 pair", "\x00")
    ]
    lines = read_predictions(write_predictions(odd, tmp_path / "odd.jsonl"))
    assert [line["question"] for line in lines] == [record.question for record in odd]


@pytest.mark.parametrize(("content", "message"), [("{", "line 1 is no JSON"), ('{"x": 1}', "no question and pred")])
def test_damaged_predictions_name_their_line(tmp_path, content, message):
    path = tmp_path / "predictions.jsonl"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_predictions(path)


def test_figures_are_json_and_a_table(result):
    figures = json.loads(json.dumps(result.to_dict()))
    assert figures["answer_recall"]["5"] == result.answer_recall[5] and "records" not in figures
    table = result.table()
    for words in ("exact match", "50.0 %", "token F1", "answer recall@20", "retrieval utility", "questions a second"):
        assert words in table
