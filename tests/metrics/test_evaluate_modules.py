"""The metrics as users meet them: loaded by `evaluate` from the installed package, without a network."""

from pathlib import Path

import evaluate
import pytest

import realm_hf
from realm_hf.data.questions.matching import exact_match
from realm_hf.metrics import METRICS, metric_path


def load(name: str) -> evaluate.EvaluationModule:
    return evaluate.load(metric_path(name))


@pytest.mark.parametrize("name", METRICS)
def test_module_lies_in_the_installed_package_with_its_card(name):
    folder = Path(metric_path(name))
    assert folder.is_relative_to(Path(realm_hf.__file__).parent)
    assert (folder / f"{name}.py").is_file()
    assert f'metric_path("{name}")' in (folder / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", METRICS)
def test_module_describes_itself(name):
    module = load(name)
    assert module.name == name
    assert module.description.strip() and module.citation.strip()
    assert "Args:" in module.inputs_description


def test_exact_match_is_the_share_of_questions():
    scores = load("exact_match").compute(
        predictions=["The Beatles!", "Rome", "paris"], references=[["Fab Four", "Beatles"], ["Milan"], ["Paris"]]
    )
    assert scores == {"exact_match": pytest.approx(2 / 3)}


def test_regex_match_begins_at_the_start_and_may_end_anywhere():
    scores = load("regex_match").compute(
        predictions=["February 2, 1943", "on February 2", "FEB 2"], references=[[r"Feb(ruary)?\s+2"]] * 3
    )
    assert scores == {"regex_match": pytest.approx(2 / 3)}


def test_token_f1_takes_the_best_answer():
    scores = load("token_f1").compute(predictions=["John Lennon"], references=[["Paul", "John Winston Lennon"]])
    assert scores == {"token_f1": pytest.approx(0.8)}


def test_answer_recall_counts_questions_whose_first_passages_hold_an_answer():
    scores = load("answer_recall").compute(
        predictions=[["Rome is old.", "Paris lies on the Seine."], ["The Seine."], []],
        references=[["Seine"], ["the Seine", "Loire"], ["Seine"]],
        ks=(1, 2, 50),
    )
    assert scores == {
        "recall@1": pytest.approx(1 / 3),
        "recall@2": pytest.approx(2 / 3),
        "recall@50": pytest.approx(2 / 3),
    }


def test_answer_recall_searches_patterns_anywhere():
    module = load("answer_recall")
    inputs = {"predictions": [["It ended in Feb 1943."]], "references": [[r"feb(ruary)?\s\d+"]], "ks": [1]}
    assert module.compute(**inputs, regex=True) == {"recall@1": 1.0}
    assert module.compute(**inputs) == {"recall@1": 0.0}


def test_batches_add_up_to_the_whole():
    predictions, references = ["a b", "c", "the d", "e"], [["b"], ["c"], ["d"], ["f"]]
    module = load("exact_match")
    for start in (0, 2):
        module.add_batch(predictions=predictions[start : start + 2], references=references[start : start + 2])
    expected = sum(map(exact_match, predictions, references)) / 4
    assert module.compute() == {"exact_match": expected} == {"exact_match": 0.75}


def test_metrics_combine():
    both = evaluate.combine([metric_path("exact_match"), metric_path("token_f1")])
    scores = both.compute(predictions=["a dog"], references=[["the dog"]])
    assert scores == {"exact_match": 1.0, "token_f1": 1.0}


def test_invalid_pattern_is_an_error_that_names_its_place():
    with pytest.raises(ValueError, match=r"place 1 .*'\(Feb' is no valid regular expression"):
        load("regex_match").compute(predictions=["x", "Feb"], references=[["x"], ["(Feb"]])


@pytest.mark.parametrize("name", ["exact_match", "regex_match", "token_f1"])
def test_no_predictions_or_no_answers_is_an_error(name):
    with pytest.raises(ValueError, match="no predictions"):
        load(name).compute(predictions=[], references=[])
    with pytest.raises(ValueError, match="no answer"):
        load(name).compute(predictions=["x"], references=[[]])


def test_answers_that_are_no_list_are_refused():
    with pytest.raises(ValueError):
        load("exact_match").compute(predictions=["x"], references=["x"])


@pytest.mark.parametrize("ks", [(), (0, 5)])
def test_depths_below_one_are_refused(ks):
    with pytest.raises(ValueError, match="ks must hold depths"):
        load("answer_recall").compute(predictions=[["x"]], references=[["x"]], ks=ks)


def test_unknown_metric_names_those_there_are():
    with pytest.raises(ValueError, match="exact_match"):
        metric_path("bleu")
