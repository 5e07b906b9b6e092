"""The programs with an encoder that is no BERT: pre-training, fine-tuning from it, a question."""

import json

import pytest
from example_programs import run_example
from tiny_encoders import save_encoder
from tiny_worlds import FIXTURES
from transformers import AutoTokenizer

from realm_hf import RealmForOpenQA, RealmForPreTraining
from realm_hf.cli.main import main
from realm_hf.runs.records import read_log


@pytest.mark.parametrize("family", ["roberta"])
def test_from_pre_training_to_an_answer(family, tmp_path, monkeypatch, capsys):
    encoder, run, tuned = save_encoder(tmp_path / "encoder", family), tmp_path / "run", tmp_path / "tuned"
    common = {
        "max_candidate_length": 32, "max_query_length": 30, "per_device_train_batch_size": 2, "use_cpu": True,
        "disable_tqdm": True,
    }  # fmt: skip
    file = tmp_path / "run.yaml"
    file.write_text(
        json.dumps(
            common
            | {
                "knowledge_corpus": str(FIXTURES / "countries.jsonl"),
                "model_name_or_path": str(encoder),
                "output_dir": str(run),
                "heldout_fraction": 0.2,
                "retriever_proj_size": 16,
                "num_candidates": 3,
                "max_steps": 2,
                "refresh": "sync",
                "refresh_steps": 2,
                "max_eval_sentences": 2,
                "inverse_cloze_steps": 1,
                "recurring_span_steps": 1,
                "recurring_span_batch_size": 2,
                "masked_lm_steps": 1,
                "masked_lm_batch_size": 2,
                "masked_lm_max_length": 32,
                "inverse_cloze_batch_size": 4,
                "pooling_mode": "mean",
                "query_prompt": "query: ",
            }
        )
    )
    run_example("pretrain", monkeypatch, file)
    model = RealmForPreTraining.from_pretrained(run / "model")
    assert model.config.embedder_config.model_type == family and model.config.query_prompt == "query: "
    assert len([record for record in read_log(run / "log.jsonl") if "loss" in record]) == 2

    questions = tmp_path / "questions.jsonl"
    asked = [{"question": "where is Angola?", "answer": "Africa"}, {"question": "who won?", "answer": "nobody"}]
    questions.write_text("\n".join(map(json.dumps, asked)))
    words = ["--model_name_or_path", run / "model", "--output_dir", tuned, "--train_questions", questions]
    words += ["--searcher_beam_size", 8, "--reader_seq_len", 60, "--max_span_width", 4, "--max_steps", 2]
    words += ["--per_device_train_batch_size", 2, "--use_cpu", "--disable_tqdm"]
    run_example("finetune_open_qa", monkeypatch, *words)
    trained = RealmForOpenQA.from_pretrained(tuned / "model")
    assert trained.config.encoder_config.model_type == family
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    assert AutoTokenizer.from_pretrained(tuned / "model").get_vocab() == tokenizer.get_vocab()

    capsys.readouterr()
    assert main(["ask", "--model", str(tuned / "model"), "--json", "where is Angola?"]) == 0
    answer = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert answer["question"] == "where is Angola?" and "evidence" in answer
