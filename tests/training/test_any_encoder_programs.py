"""The programs with an encoder that is no BERT: pre-training, fine-tuning from it, a question."""

import json

import pytest
import torch
from example_programs import run_example
from tiny_encoders import save_encoder, train_tokenizer
from tiny_worlds import FIXTURES
from transformers import AutoModel, AutoTokenizer

from realm_hf import RealmForOpenQA, RealmForPreTraining, RealmKnowledgeAugEncoder
from realm_hf.cli.arguments import ModelArguments
from realm_hf.cli.corpora import load_model, load_tokenizer
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

    asked = _questions(tmp_path / "asked.jsonl")
    run_example(
        "evaluate_retrieval", monkeypatch, "--run", run, "--questions", asked,
        "--models", f"start={encoder}", f"end={run / 'model'}", "--output", tmp_path / "table.json",
    )  # fmt: skip
    assert list(json.loads((tmp_path / "table.json").read_text())) == ["step 0", "step 2", "start", "end", "BM25"]

    # RUN stands for its model and its tokenizer, whatever their classes.
    assert type(AutoTokenizer.from_pretrained(run)) is type(AutoTokenizer.from_pretrained(encoder))
    words = ["--model_name_or_path", run, "--output_dir", tuned, "--train_questions", asked]
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


def _questions(file):
    asked = [{"question": "where is Angola?", "answer": "Africa"}, {"question": "who won?", "answer": "nobody"}]
    file.write_text("\n".join(map(json.dumps, asked)))
    return file


MASKED_LM = ["warm-start", "masked-lm", "--knowledge_corpus", str(FIXTURES / "countries.jsonl"), "--max_steps", "1"]
MASKED_LM += ["--max_length", "48", "--max_candidate_length", "60", "--per_device_train_batch_size", "2", "--use_cpu"]
MASKED_LM += ["--disable_tqdm", "--eval_steps", "0"]
SIZES = "hidden_size=32,num_hidden_layers=2,num_attention_heads=2,intermediate_size=48"


def test_an_encoder_of_another_kind_from_nothing_is_what_pre_training_starts_from(tmp_path, capsys):
    run = tmp_path / "run"
    words = ["--output_dir", str(run), "--from_nothing", f"model_type=roberta,{SIZES}", "--vocab_size", "300"]
    assert main([*MASKED_LM, *words]) == 0
    assert "Done at step 1" in capsys.readouterr().out
    trained = RealmKnowledgeAugEncoder.from_pretrained(run / "model")
    config = trained.config.encoder_config
    assert (config.model_type, config.vocab_size, config.hidden_dropout_prob) == ("roberta", 300, 0.0)
    assert trained.config.encoder_positions == 512

    start = ModelArguments(str(run / "model"), pooling_mode="mean", projection="none", normalize=True)
    tokenizer, model = load_tokenizer(start), load_model(start, seed=0)
    assert tokenizer.decode(tokenizer("a", "b").input_ids) == "<s>a</s></s>b</s>"
    weights = trained.realm.state_dict()
    for tower in (model.embedder, model.encoder):
        assert all((tower.realm.state_dict()[name] == weight).all() for name, weight in weights.items())
    assert main([*MASKED_LM, "--output_dir", str(tmp_path / "on"), "--model_name_or_path", str(run / "model")]) == 0


def test_an_encoder_without_a_head_learns_to_fill_in_words(tmp_path):
    AutoModel.from_pretrained(save_encoder(tmp_path / "whole", "distilbert")).save_pretrained(tmp_path / "encoder")
    train_tokenizer("distilbert").save_pretrained(tmp_path / "encoder")
    words = ["--output_dir", str(tmp_path / "run"), "--model_name_or_path", str(tmp_path / "encoder")]
    assert main([*MASKED_LM, *words]) == 0
    found = RealmKnowledgeAugEncoder.from_pretrained(tmp_path / "run" / "model").config.encoder_config
    assert found.model_type == "distilbert"


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ("model_type=roberta,hiden_size=32", "An encoder of type 'roberta' has no hiden_size: check the spelling."),
        ("model_type=gpt2,n_embd=32", "'gpt2', a decoder"),
        ("model_type=robertta", "'robertta', which transformers does not know"),
        ("hidden_size", "give names and numbers, as in hidden_size=256"),
    ],
)
def test_a_new_encoder_that_cannot_be_is_refused(sizes, message, tmp_path):
    with pytest.raises(SystemExit, match=message):
        main([*MASKED_LM, "--output_dir", str(tmp_path / "run"), "--from_nothing", sizes])


def test_pre_training_starts_from_a_sentence_encoder_that_is_no_bert(tmp_path):
    """It has no prediction head: as for a BERT, the encoder gets a new one."""
    AutoModel.from_pretrained(save_encoder(tmp_path / "whole", "mpnet")).save_pretrained(tmp_path / "bare")
    train_tokenizer("mpnet").save_pretrained(tmp_path / "bare")
    whole, bare = (
        load_model(ModelArguments(model_name_or_path=str(tmp_path / name), retriever_proj_size=8), seed=0)
        for name in ("whole", "bare")
    )
    assert bare.encoder.realm.state_dict().keys() == whole.encoder.realm.state_dict().keys()
    for name, weight in whole.encoder.realm.state_dict().items():
        assert torch.equal(weight, bare.encoder.realm.state_dict()[name]), name
    assert any(
        not torch.equal(weight, bare.encoder.cls.state_dict()[name])
        for name, weight in whole.encoder.cls.state_dict().items()
    )
