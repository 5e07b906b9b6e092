"""`realm-hf ask`: what it prints for one question, many, and in a conversation."""

import argparse
import io
import json
import sys

import pytest
from tiny_answerers import tiny_answerer
from tiny_worlds import tiny_model

from realm_hf import BM25Source, QuestionAnswerer
from realm_hf.cli.ask import add_parser

QUESTIONS = ["How many people has the island?", "Where does the river lie?", "road"]


@pytest.fixture(scope="module")
def answerer(tiny_passages):
    return tiny_answerer(tiny_passages)


@pytest.fixture(scope="module")
def saved(answerer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("saved")
    answerer.model.save_pretrained(folder)
    answerer.retriever.save_pretrained(folder)
    return folder


class _Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def run(*arguments) -> int:
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    options = parser.parse_args(["ask", *map(str, arguments)])
    return options.command(options)


def test_a_question_is_answered_with_its_evidence(saved, answerer, capsys):
    assert run(QUESTIONS[0], "--model", saved) == 0
    printed = capsys.readouterr()
    (answer,) = answerer(QUESTIONS[0])
    lines = printed.out.splitlines()
    assert lines[0].startswith(f"{answer.text}  (")
    assert sum(", passage " in line for line in lines) == 3, "three passages by default"
    for passage in answer.evidence[:3]:
        assert any(passage.title in line and f"{passage.share:.1%}" in line for line in lines)
        assert f"[{' '.join(passage.best_span.split())}]" in printed.out
    assert printed.err == ""


def test_many_questions_come_with_their_names(saved, capsys):
    assert run(*QUESTIONS, "", "--model", saved, "--retriever", saved, "--evidence", 0, "--top_k", 2) == 0
    printed = capsys.readouterr().out
    assert [block.splitlines()[0] for block in printed.split("\n\n")[:3]] == QUESTIONS
    assert printed.endswith("\n\nno answer\n\n") and ", passage " not in printed


def test_json_has_all_and_a_line_for_each(saved, answerer, capsys):
    assert run(*QUESTIONS, "", "--model", saved, "--json", "--top_k", 7, "--batch_size", 2) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    expected = answerer([*QUESTIONS, ""], top_k=7)
    assert [answer["text"] for answer in found] == [answer.text for answer in expected]
    assert [len(answer["evidence"]) for answer in found] == [7, 7, 7, 0]


def test_the_passages_that_another_source_finds_are_read(saved, answerer, capsys):
    assert run(QUESTIONS[0], "--model", saved, "--json", "--top_k", 3, "--source", "bm25") == 0
    (found,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    retriever = answerer.retriever.snapshot()
    retriever.candidate_source = BM25Source.build(retriever.passages, retriever.tokenizer)
    asked = QuestionAnswerer(answerer.model, retriever)
    rows = asked.retrieve(QUESTIONS[0], top_k=3).batch.rows[0].tolist()
    assert sorted(passage["row"] for passage in found["evidence"]) == sorted(rows)
    assert sorted(rows) != sorted(answerer.retrieve(QUESTIONS[0], top_k=3).batch.rows[0].tolist())


def test_a_pipe_is_a_batch_with_a_line_for_each(saved, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("road\n\nWhere?\r\nمدينة\nlast without an end"))
    assert run("--model", saved, "--json") == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["question"] for answer in found] == ["road", "", "Where?", "مدينة", "last without an end"]
    assert [answer["row"] is None for answer in found] == [False, True, False, False, False]


def test_a_conversation_answers_each_question_before_the_next(saved, monkeypatch, capsys):
    typed = iter(["Where does the river lie?", "road", "  "])
    heard = []

    def typing(prompt):
        heard.append(capsys.readouterr().out)
        return next(typed)

    monkeypatch.setattr(sys, "stdin", _Terminal())
    monkeypatch.setattr("builtins.input", typing)
    assert run("--model", saved) == 0
    assert heard[0] == "" and ", passage " in heard[1] and ", passage " in heard[2]
    assert "river" not in heard[1].splitlines()[0], "what was typed is not repeated"


@pytest.mark.parametrize("end", [EOFError, KeyboardInterrupt])
def test_a_conversation_ends_in_peace(saved, monkeypatch, capsys, end):
    def typing(prompt):
        raise end

    monkeypatch.setattr(sys, "stdin", _Terminal())
    monkeypatch.setattr("builtins.input", typing)
    assert run("--model", saved) == 0
    assert "48 passages" in capsys.readouterr().err


def test_what_cannot_answer_is_refused_with_a_reason(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="There is no directory"):
        run("a", "--model", tmp_path / "nowhere")
    with pytest.raises(ValueError, match="holds no model, which cannot answer"):
        run("a", "--model", tmp_path)
    with pytest.raises(FileNotFoundError, match=tmp_path.name):
        run("a", "--model", saved, "--retriever", tmp_path)
    tiny_model().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="RealmForPreTraining, which cannot answer"):
        run("a", "--model", tmp_path)
    for option in ("--top_k", "--batch_size"):
        with pytest.raises(ValueError, match="at least 1"):
            run("a", "--model", saved, option, 0)


def test_the_model_is_needed(capsys):
    with pytest.raises(SystemExit) as ended:
        run("a")
    assert ended.value.code == 2 and "--model" in capsys.readouterr().err
