"""`examples/finetune_open_qa.py`: from a run of pre-training, or from any BERT, to a model that answers by itself."""

import json
from pathlib import Path

import pytest
from example_programs import EXAMPLES, run_example
from tiny_bert import tiny_bert
from tiny_worlds import FIXTURES

from realm_hf import RealmForOpenQA, RealmRetriever
from realm_hf.generations.store import GenerationStore
from realm_hf.qa.answerer import QuestionAnswerer
from realm_hf.runs.records import read_log

QUESTIONS = [
    {"question": "where is Angola?", "answers": {"text": ["Africa", "Southern Africa"]}},
    {"question": "when did the war end?", "answer": ["1945", "1991"]},
    {"question": "what is the capital?", "answer": "independence"},
    {"question": "who won?", "answer": "nobody at all of this name"},
]


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def questions(tmp_path) -> Path:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(map(json.dumps, QUESTIONS)), encoding="utf-8")
    return path


SHORT = ["--max_steps", 2, "--per_device_train_batch_size", 2, "--use_cpu", "--disable_tqdm"]


def test_pretraining_run_becomes_a_model_that_answers_over_its_passages_and_index(
    bert, questions, tmp_path, monkeypatch, capsys
):
    words = ["--knowledge_corpus", FIXTURES / "countries.jsonl", "--model_name_or_path", bert, "--num_candidates", 2]
    words += ["--output_dir", tmp_path / "pre", "--max_candidate_length", 96, "--retriever_proj_size", 16]
    run_example("pretrain", monkeypatch, *words, "--refresh", "off", *SHORT)
    newest = GenerationStore(tmp_path / "pre" / "index").list()[-1]
    file = tmp_path / "qa.yaml"
    settings = {
        "model_name_or_path": str(tmp_path / "pre" / "model"),
        "output_dir": str(tmp_path / "qa"),
        "train_questions": str(questions),
        "dev_questions": str(questions),
        "searcher_beam_size": 20,
        "reader_seq_len": 128,
        "max_span_width": 4,
    }
    file.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    run_example("finetune_open_qa", monkeypatch, file, *SHORT)
    printed = capsys.readouterr().out
    assert "4 to train on, 4 to evaluate on" in printed and "a beam of 20, of which 5 are read" in printed
    assert "Done at step 2" in printed and "Exact match" in printed and "where is Angola?" in printed
    # Without refresh the newest index is of the first weights, not of the model's: it is not taken over.
    assert GenerationStore(tmp_path / "qa" / "index").list()[0].embedder_fingerprint != newest.embedder_fingerprint
    folder = tmp_path / "qa" / "model"
    model, retriever = RealmForOpenQA.from_pretrained(folder), RealmRetriever.from_pretrained(folder)
    assert model.config.max_span_width == 4 and retriever.embedder is not None
    assert QuestionAnswerer(model, retriever)("where is Angola?")[0].row is not None

    run_example("finetune_open_qa", monkeypatch, file, *SHORT, "--max_steps", 3, "--resume_from_checkpoint", "true")
    assert [r["step"] for r in read_log(tmp_path / "qa" / "log.jsonl") if "loss" in r] == [1, 2, 3]
    words = ["--model_name_or_path", folder, "--output_dir", tmp_path / "more", "--train_questions", questions]
    run_example("finetune_open_qa", monkeypatch, *words, *SHORT)
    assert (tmp_path / "more" / "model" / "retriever.json").exists(), "a fine-tuned model is tuned further"


def test_any_bert_is_fine_tuned_over_a_corpus_of_ones_own(bert, questions, tmp_path, monkeypatch, capsys):
    words = ["--model_name_or_path", bert, "--knowledge_corpus", FIXTURES / "countries.jsonl"]
    words += ["--output_dir", tmp_path / "qa", "--train_questions", questions, "--dev_fraction", 0.25]
    words += ["--max_candidate_length", 96, "--retriever_proj_size", 16, "--reader_seq_len", 128]
    run_example("finetune_open_qa", monkeypatch, *words, *SHORT)
    assert "3 to train on, 1 to evaluate on" in capsys.readouterr().out
    summary = json.loads((tmp_path / "qa" / "summary.json").read_text())
    assert summary["trained_questions"]["questions"] == 4


def test_the_gold_column_is_read_and_only_the_reader_learns(bert, tmp_path, monkeypatch, capsys):
    lines = (FIXTURES / "countries.jsonl").read_text(encoding="utf-8").splitlines()
    context = next(text for line in lines if "independence" in (text := json.loads(line)["text"]))
    path = tmp_path / "gold.jsonl"
    rows = [{"question": "where?", "answer": "independence", "context": context}, {**QUESTIONS[0]}]
    path.write_text("\n".join(json.dumps({"context": None, **row}) for row in rows), encoding="utf-8")
    words = ["--model_name_or_path", bert, "--knowledge_corpus", FIXTURES / "countries.jsonl"]
    words += ["--output_dir", tmp_path / "qa", "--train_questions", path, "--gold_column", "context"]
    words += ["--max_candidate_length", 96, "--retriever_proj_size", 16, "--reader_seq_len", 128]
    run_example("finetune_open_qa", monkeypatch, *words, "--gold_passages", "--freeze_retriever", *SHORT)
    assert "a beam of 5, of which 5 are read" in capsys.readouterr().out
    counted = json.loads((tmp_path / "qa" / "summary.json").read_text())["trained_questions"]
    assert counted["questions"] == 4 and counted["reader_answerless"] <= 2
    with pytest.raises(SystemExit, match="but no passage: name yours with gold_column"):
        run_example(
            "finetune_open_qa", monkeypatch, *words[:-8], "--gold_passages", "--gold_column", "passage", *SHORT
        )


def test_missing_or_doubled_corpus_is_said(bert, questions, tmp_path, monkeypatch):
    words = ["--model_name_or_path", bert, "--output_dir", tmp_path / "qa", "--train_questions", questions]
    with pytest.raises(SystemExit, match="There are no passages"):
        run_example("finetune_open_qa", monkeypatch, *words)
    with pytest.raises(SystemExit, match="name one corpus"):
        run_example("finetune_open_qa", monkeypatch, *words, "--passages", "a", "--knowledge_corpus", "b")


def test_shipped_configuration_names_only_arguments_that_exist():
    from dataclasses import fields

    import yaml

    from realm_hf.cli import finetune as example

    kinds = [
        example.QuestionArguments,
        example.PassageArguments,
        example.StartArguments,
        example.OpenQATrainingArguments,
    ]
    shipped = yaml.safe_load((EXAMPLES / "finetune_open_qa.yaml").read_text(encoding="utf-8"))
    assert set(shipped) <= {field.name for kind in kinds for field in fields(kind)}
    example.OpenQATrainingArguments(**{k: v for k, v in shipped.items() if k in {f.name for f in fields(kinds[3])}})
