"""`examples/demo.py` that is stopped in any phase ends there in words, and goes on when it is called again."""

import importlib
import itertools
import json
import os
import signal
import sys

import pytest
from example_programs import EXAMPLES
from tiny_bert import tiny_bert

from realm_hf.runs.records import read_log
from realm_hf.training.inverse_cloze import InverseClozeTrainer
from realm_hf.training.open_qa import OpenQATrainer
from realm_hf.training.pretraining import RealmTrainer
from realm_hf.training.recurring_spans import RecurringSpanTrainer

TRAINERS = (InverseClozeTrainer, RecurringSpanTrainer, RealmTrainer, OpenQATrainer)
STEPS = [
    "--inverse_cloze_steps",
    3,
    "--recurring_span_steps",
    2,
    "--reading_steps",
    2,
    "--joint_steps",
    2,
    "--question_steps",
    3,
]
SHORT = [*STEPS, "--batch_size", 2, "--refresh", "sync", "--refresh_steps", 2]


@pytest.fixture
def few_countries(monkeypatch):
    """Every eighth country of the Factbook: the phases are the same, and each embeds all passages."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    factbook = importlib.import_module("factbook")
    records = factbook._country_records
    monkeypatch.setattr(factbook, "_country_records", lambda: itertools.islice(records(), 0, None, 8))
    for cached in (factbook.load_facts, factbook._passages):
        cached.cache_clear()
    yield
    for cached in (factbook.load_facts, factbook._passages):
        cached.cache_clear()


@pytest.fixture
def demo(few_countries, tmp_path, monkeypatch):
    bert = tiny_bert(tmp_path / "bert")
    program = importlib.import_module("demo")

    def call(*words):
        given = ["demo.py", "--weights", bert, "--output_dir", tmp_path / "run", *SHORT, *words]
        monkeypatch.setattr(sys, "argv", [*map(str, given)])
        return program.main()

    return call


@pytest.fixture
def stop_in(monkeypatch):
    """Sends this process a signal in the first step of a phase."""

    def arm(phase, number):
        for trainer in TRAINERS:
            monkeypatch.setattr(trainer, "accumulate", _signalled(trainer, phase, number))

    originals = {trainer: trainer.accumulate for trainer in TRAINERS}

    def _signalled(trainer, phase, number):
        def accumulate(self, step):
            if self.name == phase and step == self.args.max_steps - 1:
                os.kill(os.getpid(), number)
            return originals[trainer](self, step)

        return accumulate

    return arm


def steps(run):
    return [record["step"] for record in read_log(run / "log.jsonl") if "grad_norm" in record]


def test_demo_that_is_stopped_in_every_phase_ends_there_in_words_and_goes_on_to_its_end(
    demo, stop_in, tmp_path, capsys
):
    run = tmp_path / "run"
    stop_in("recurring-spans", signal.SIGTERM)
    assert demo() == 143
    assert "'recurring spans' after step 1" in capsys.readouterr().out

    stop_in("inverse-cloze", signal.SIGTERM)
    assert demo() == 143
    printed = capsys.readouterr().out
    assert "Stopped in the phase 'inverse cloze' after step 2" in printed and "goes on from there" in printed

    with pytest.raises(SystemExit, match=r"joint_steps 2 then, 3 now.*--restart to begin again"):
        demo("--joint_steps", 3)

    stop_in("pre-training", signal.SIGINT)
    assert demo() == 130
    printed = capsys.readouterr().out
    assert "Going on" in printed and "'pre-training' after step 3" in printed
    assert steps(run / "inverse_cloze") == [1, 2, 3]

    stop_in("fine-tuning", signal.SIGTERM)
    assert demo() == 143
    assert "'fine-tuning' after step 2" in capsys.readouterr().out

    stop_in("none", signal.SIGTERM)
    assert demo() == 0
    printed = capsys.readouterr().out
    done = "done: data, initial recall, recurring spans, inverse cloze, pre-training"
    assert done in printed and "Exact match" in printed
    assert steps(run) == [1, 2, 3, 4] and steps(run / "open_qa") == [1, 2, 3]
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["recall"]) == ["initial", "recurring", "ict", "realm", "hybrid", "bm25"]
    assert {len(found) for found in summary["ranks"].values()} == {len(summary["questions"])}
    for name, found in summary["ranks"].items():
        assert summary["recall"][name]["5"] == round(100 * sum(rank < 5 for rank in found) / len(found), 1)
    assert json.loads((run / "demo.json").read_text())["finished"]

    # A finished demo is replaced, as ever; and so is one that was stopped, where that is asked for.
    for words in ([], ["--restart", "--seed", 1]):
        stop_in("inverse-cloze", signal.SIGTERM)
        assert demo(*words) == 143
        record = json.loads((run / "demo.json").read_text())
        assert list(record["results"]) == ["initial", "recurring"] and not (run / "open_qa").exists()
