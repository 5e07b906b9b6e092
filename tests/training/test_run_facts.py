"""What a run says of itself: where its weights came from, and what it ran on."""

import json

import torch
from accelerate import Accelerator

from realm_hf.training.run_facts import base_model_of, run_facts


def test_a_name_on_the_hub_is_the_base_model_and_a_folder_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    assert base_model_of("google-bert/bert-base-uncased") == "google-bert/bert-base-uncased"
    assert (
        base_model_of("runs/mine") is None and base_model_of("") is None and base_model_of("/not/there/at/all") is None
    )


def test_a_run_that_goes_on_from_another_has_its_base_model(tmp_path):
    model = tmp_path / "run" / "model"
    model.mkdir(parents=True)
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"base_model": "a/bert"}))
    assert base_model_of(str(model)) == base_model_of(str(tmp_path / "run")) == "a/bert"
    (tmp_path / "run" / "summary.json").write_text(json.dumps({"steps": 3}))
    assert base_model_of(str(model)) is None


def test_the_summary_says_the_hardware_and_the_start():
    model = torch.nn.Linear(1, 1)
    assert not {"started_from", "base_model"} & set(run_facts(model, Accelerator(cpu=True), 8))
    model.name_or_path = "a/bert"
    facts = run_facts(model, Accelerator(cpu=True), 8)
    assert (facts["started_from"], facts["base_model"], facts["examples_per_step"]) == ("a/bert", "a/bert", 8)
    assert facts["hardware"]["processes"] == 1 and facts["hardware"]["device"] == "cpu"
    assert json.loads(json.dumps(facts)) == facts
