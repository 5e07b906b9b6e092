"""`realm-hf pretrain`: one command from text to model, index and report, which takes up where it was stopped."""

import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from example_programs import EXAMPLES, run_example
from tiny_bert import tiny_bert
from tiny_worlds import FIXTURES

from realm_hf import RealmForPreTraining, RealmTokenizer
from realm_hf.cli.main import main
from realm_hf.runs.records import read_log, read_run
from realm_hf.training.inverse_cloze import InverseClozeTrainer
from realm_hf.training.masked_lm import MaskedLMTrainer
from realm_hf.training.recurring_spans import RecurringSpanTrainer


@pytest.fixture(scope="module")
def bert(tmp_path_factory) -> Path:
    return tiny_bert(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def configuration(bert, tmp_path) -> Path:
    file = tmp_path / "run.yaml"
    settings = {
        "knowledge_corpus": str(FIXTURES / "countries.jsonl"),
        "model_name_or_path": str(bert),
        "output_dir": str(tmp_path / "run"),
        "heldout_fraction": 0.2,
        "retriever_proj_size": 16,
        "max_candidate_length": 96,
        "per_device_train_batch_size": 2,
        "num_candidates": 3,
        "max_steps": 4,
        "save_steps": 2,
        "refresh": "sync",
        "refresh_steps": 2,
        "max_eval_sentences": 4,
        "inverse_cloze_steps": 2,
        "inverse_cloze_batch_size": 4,
        "use_cpu": True,
        "disable_tqdm": True,
    }
    file.write_text(json.dumps(settings), encoding="utf-8")  # JSON is YAML
    return file


def test_one_command_leaves_model_index_examples_and_report(configuration, tmp_path, monkeypatch, capsys):
    run_example("pretrain", monkeypatch, configuration)
    run = tmp_path / "run"
    printed = capsys.readouterr().out
    assert "trainable parameters" in printed and "no salient span" in printed and "Done at step 4" in printed
    assert isinstance(RealmForPreTraining.from_pretrained(run / "model"), RealmForPreTraining)
    assert RealmTokenizer.from_pretrained(run / "model").vocab_size == 2048
    assert (run / "report.html").stat().st_size > 10_000
    assert json.loads((run / "examples.json").read_text())
    assert len([r for r in read_log(run / "inverse_cloze" / "log.jsonl") if "loss" in r]) == 2
    summary = json.loads((run / "summary.json").read_text())
    assert [generation["snapshot_step"] for generation in summary["generations"]] == [0, 2, 4]

    built = (run / "passages" / "passages.json").stat().st_mtime_ns
    run_example("pretrain", monkeypatch, configuration, "--max_steps", 6, "--resume_from_checkpoint", "true")
    assert (run / "passages" / "passages.json").stat().st_mtime_ns == built, "the corpus is built once"
    assert [r["step"] for r in read_log(run / "log.jsonl") if "loss" in r] == [1, 2, 3, 4, 5, 6]
    with pytest.raises(SystemExit, match=r"min_sentences: 1 then, 2 now"):
        run_example("pretrain", monkeypatch, configuration, "--min_sentences", 2)


def test_warm_start_that_is_stopped_ends_the_program_with_a_status_and_the_command_that_goes_on(
    configuration, tmp_path, monkeypatch, capsys
):
    accumulate = InverseClozeTrainer.accumulate

    def stopped(trainer, step):
        os.kill(os.getpid(), signal.SIGTERM)
        return accumulate(trainer, step)

    words = ["pretrain.py", str(configuration), "--inverse_cloze_steps", "3"]
    monkeypatch.setattr(sys, "argv", words)
    monkeypatch.setattr(sys, "orig_argv", ["python", *words])
    with monkeypatch.context() as once:
        once.setattr(InverseClozeTrainer, "accumulate", stopped)
        assert main(["pretrain", *words[1:]]) == 143
    printed = capsys.readouterr().out
    command = f"python pretrain.py {configuration} --inverse_cloze_steps 3 --resume_from_checkpoint true"
    assert "Interrupted (SIGTERM) after step 1" in printed and command in printed
    assert not (tmp_path / "run" / "log.jsonl").exists(), "pre-training has not begun"

    assert main(["pretrain", *command.split()[2:]]) == 0
    assert [r["step"] for r in read_log(tmp_path / "run" / "inverse_cloze" / "log.jsonl")][-1] == 3
    assert "Done at step 4" in capsys.readouterr().out


WARM_STARTS = ["masked_lm", "inverse_cloze", "recurring_spans"]


def test_all_warm_starts_that_are_stopped_in_turn_end_where_one_sitting_ends(
    configuration, tmp_path, monkeypatch, capsys
):
    words = ["--masked_lm_steps", 3, "--masked_lm_batch_size", 4, "--masked_lm_max_length", 48]
    words += ["--inverse_cloze_steps", 3, "--recurring_span_steps", 3, "--recurring_span_batch_size", 4]
    words += ["--pooling_mode", "mean", "--projection", "pca", "--normalize", "--query_prompt", "find : "]
    words += ["--max_steps", 1, "--refresh", "off", "--save_steps", 0]

    def call(run):
        return main(["pretrain", *map(str, [configuration, *words, "--output_dir", run])])

    def stops(trainer):
        accumulate = trainer.accumulate

        def stopped(self, step):
            if step == 2:
                os.kill(os.getpid(), signal.SIGTERM)
            return accumulate(self, step)

        return stopped

    parted, whole = tmp_path / "parted", tmp_path / "whole"
    for number, trainer in enumerate([MaskedLMTrainer, InverseClozeTrainer, RecurringSpanTrainer]):
        with monkeypatch.context() as once:
            once.setattr(trainer, "accumulate", stops(trainer))
            assert call(parted) == 143
        assert "Interrupted (SIGTERM) after step 2" in capsys.readouterr().out
        begun = [name for name in WARM_STARTS if (parted / name).exists()]
        assert begun == WARM_STARTS[: number + 1] and not (parted / "log.jsonl").exists()
    assert call(parted) == call(whole) == 0
    for name in WARM_STARTS:
        assert [record["step"] for record in read_log(parted / name / "log.jsonl") if "loss" in record] == [1, 2, 3]
    assert "eval_loss" in read_log(whole / "masked_lm" / "log.jsonl")[-1]
    model, other = (RealmForPreTraining.from_pretrained(run / "model") for run in (parted, whole))
    assert (model.config.projection, model.config.score_scale, model.config.query_prompt) == (
        "linear",
        20.0,
        "find : ",
    )
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, other.state_dict()[name]), name


def test_warm_start_alone_leaves_a_model_to_go_on_from(bert, tmp_path, monkeypatch):
    words = ["--knowledge_corpus", FIXTURES / "countries.jsonl", "--model_name_or_path", bert]
    words += ["--output_dir", tmp_path / "ict", "--max_steps", 2, "--per_device_train_batch_size", 4]
    words += ["--gradient_accumulation_steps", 2, "--max_candidate_length", 96, "--use_cpu", "--disable_tqdm"]
    run_example("train_inverse_cloze", monkeypatch, *words)
    assert isinstance(RealmForPreTraining.from_pretrained(tmp_path / "ict" / "model"), RealmForPreTraining)


def test_questions_are_asked_while_training_by_gold_passages_or_answers(configuration, tmp_path, monkeypatch, capsys):
    asked = [
        {"question": "Where does the river rise?", "passage": 3},
        {"question": "Who buys oil?", "passage": [1, 5]},
    ]
    file = tmp_path / "questions.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in asked), encoding="utf-8")
    words = ["--eval_questions", file, "--eval_gold_column", "passage", "--inverse_cloze_steps", 0]
    run_example("pretrain", monkeypatch, configuration, *words, "--max_steps", 3)
    run = read_run(tmp_path / "run")
    assert sorted(run.retrieval()) == [0, 2, 3]
    assert set(run.retrieval()[3]) == {"recall@1", "recall@5", "recall@20", "nDCG@10"}
    assert "after 100 steps of warm-up" in capsys.readouterr().out
    assert run.arguments["warmup_steps"] == 100


def test_shipped_configurations_name_only_arguments_that_exist():
    from dataclasses import fields

    import yaml

    from realm_hf.cli import corpora, pretrain
    from realm_hf.training.arguments import RealmTrainingArguments

    kinds = [corpora.KnowledgeArguments, corpora.ModelArguments, pretrain.SentenceArguments]
    kinds += [pretrain.WarmStartArguments, RealmTrainingArguments]
    known = {field.name for kind in kinds for field in fields(kind)}
    shipped = yaml.safe_load((EXAMPLES / "pretrain.yaml").read_text(encoding="utf-8"))
    assert set(shipped) <= known
