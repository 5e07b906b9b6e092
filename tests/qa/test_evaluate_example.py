"""The command over benchmarks, run by two processes as a launcher would, and its refusals."""

import json
from pathlib import Path

import pytest
from accelerate import Accelerator
from launching import finish, start_programs
from tiny_answerers import tiny_answerer

from realm_hf.cli import evaluate
from realm_hf.cli.main import main
from realm_hf.data.questions.load import load_questions
from realm_hf.qa.evaluation import evaluate_open_qa
from realm_hf.qa.predictions import read_predictions

QUESTIONS = [
    {"question": "How many people has the island number 8?", "answer": ["59 people", "59"]},
    {"question": "Where does the river lie?", "answer": "in the north"},
    {"question": "Which city has 45 people", "answers": {"text": ["nowhere"]}},
    {"question": "What lies in the north?", "answer": [r"(the )?river( number \d+)?"], "regex": True},
    {"question": "What has a road?", "answer": ["a road"]},
]


@pytest.fixture
def example():
    return evaluate


@pytest.fixture(scope="module")
def saved(tiny_passages, tmp_path_factory) -> Path:
    """Model and corpus as fine-tuning leaves them, and questions beside."""
    folder = tmp_path_factory.mktemp("saved")
    answerer = tiny_answerer(tiny_passages)
    answerer.retriever.save_pretrained(folder / "model")
    answerer.model.save_pretrained(folder / "model")
    lines = [json.dumps(question) + "\n" for question in QUESTIONS]
    (folder / "questions.jsonl").write_text("".join(lines), encoding="utf-8")
    return folder


@pytest.mark.multiprocess
def test_two_processes_find_what_one_finds(saved, tiny_passages):
    output = saved / "evaluation"
    words = ["evaluate", "--use_cpu", "true", "--ks", "1", "5", "--latency_questions", "2"]
    words += ["--model", str(saved / "model"), "--questions", str(saved / "questions.jsonl")]
    ranks = start_programs("realm_hf.cli.main", [[*words, "--output_dir", str(output)]], saved)
    printed = "".join(finish(ranks, timeout=600))

    examples = load_questions(saved / "questions.jsonl")
    alone = evaluate_open_qa(tiny_answerer(tiny_passages), examples, (1, 5), latency_questions=0)
    figures = json.loads((output / "metrics.json").read_text())
    timings = {"latency_p50", "latency_p99", "latency_questions", "questions_per_second"}
    for name, value in alone.to_dict().items():
        assert name in timings or figures[name] == pytest.approx(value), name
    assert figures["processes"] == 2 and figures["latency_questions"] == 2 and figures["latency_p99"] > 0
    said = [
        (line["id"], line["prediction"], line["correct"]) for line in read_predictions(output / "predictions.jsonl")
    ]
    assert said == [(record.id, record.answer.text, record.correct) for record in alone.records]
    assert "<details" in (output / "answers.html").read_text(encoding="utf-8")
    assert "exact match" in printed and printed.count("questions a second") == 1, "one process prints"


def asked(example, **options):
    return example.load_examples(example.AskedArguments(**options), Accelerator(cpu=True))


def test_benchmark_names_split_and_rule(example, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr(
        example, "load_questions", lambda *args, **options: calls.append((args, options)) or ["q"] * 3610
    )
    assert len(asked(example, benchmark="nq_open")) == 3610
    asked(example, benchmark="curated_trec", questions="trec.jsonl")
    (nq, nq_options), (trec, trec_options) = calls
    assert nq == ("google-research-datasets/nq_open", "validation") and not nq_options["regex"]
    assert trec == ("trec.jsonl", "test") and trec_options["regex"]
    assert "Not comparable" in capsys.readouterr().out, "CuratedTREC has 694 questions"


def test_first_questions_only(example, saved):
    assert [e.question for e in asked(example, questions=str(saved / "questions.jsonl"), max_questions=2)] == [
        QUESTIONS[0]["question"],
        QUESTIONS[1]["question"],
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [({}, "no questions"), ({"benchmark": "curated_trec"}, "--questions"), ({"benchmark": "trivia"}, "nq_open")],
)
def test_missing_questions_are_refused_in_words(example, options, message):
    with pytest.raises(SystemExit, match=message):
        asked(example, **options)


def test_arguments_that_are_not_understood_end_in_one_line_of_one_process(monkeypatch, capsys):
    with pytest.raises(SystemExit) as end:
        main(["evaluate", "--model", "m", "--output_dir", "o", "--questoins", "own.jsonl"])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        "realm-hf evaluate: There is no argument 'questoins'. Did you mean 'questions'?\n"
    )
    # Rank 0 speaks, and the launcher ends the others while they wait for that.
    waited = []

    def ended_by_the_launcher(seconds):
        waited.append(seconds)
        raise SystemExit(143)

    monkeypatch.setattr("realm_hf.training.command_errors.time.sleep", ended_by_the_launcher)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit):
        main(["evaluate", "missing.yaml"])
    assert waited and not capsys.readouterr().err


def test_what_cannot_be_used_is_said_before_there_is_work(saved, capsys):
    words = ["evaluate", "--use_cpu", "true", "--questions", str(saved / "questions.jsonl")]
    with pytest.raises(SystemExit) as end:
        main([*words, "--model", str(saved / "no_model"), "--output_dir", str(saved / "questions.jsonl")])
    assert str(end.value).startswith("realm-hf evaluate: ") and "a file of that name is there already" in str(
        end.value
    )
    with pytest.raises(SystemExit) as end:
        main([*words, "--model", str(saved / "no_model"), "--output_dir", str(saved / "judged")])
    assert str(end.value).startswith("realm-hf evaluate: ") and "no_model" in str(end.value)
    assert len(str(end.value).splitlines()) == 1


def test_help_names_every_benchmark(capsys):
    with pytest.raises(SystemExit):
        main(["evaluate", "--help"])
    said = capsys.readouterr().out
    assert "usage: realm-hf evaluate" in said and ", ".join(evaluate.BENCHMARKS) in " ".join(said.split())
