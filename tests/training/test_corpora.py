"""A corpus is built once, by one rank, and a build that was killed leaves nothing half done."""

import json

import pytest
import torch
from datasets import Dataset
from example_programs import run_example
from tiny_bert import tiny_bert
from tiny_worlds import FIXTURES

from realm_hf import RealmKnowledgeAugEncoder, RealmTokenizer, fit_projection
from realm_hf.cli import corpora
from realm_hf.cli.corpus_arguments import KnowledgeArguments
from realm_hf.cli.new_encoders import new_tokenizer
from realm_hf.data import passages_from_rows


def test_corpus_whose_build_was_killed_is_built_again_with_the_settings_of_then_or_now(tmp_path):
    folder = tmp_path / "passages"

    def killed():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        corpora.once(folder, {"max_length": 96}, killed)
    assert not folder.exists()
    corpora.once(folder, {"max_length": 64}, folder.mkdir)
    assert json.loads((tmp_path / "passages-settings.json").read_text()) == {"max_length": 64}
    corpora.once(folder, {"max_length": 64}, killed)  # it is there: nothing is built
    with pytest.raises(SystemExit, match="max_length: 64 then, 96 now"):
        corpora.once(folder, {"max_length": 96}, killed)


def test_a_sentence_encoder_is_read_as_it_was_made_and_its_projection_is_fitted_at_the_start(tmp_path):
    bert = str(tiny_bert(tmp_path / "bert"))
    rows = {"title": ["Nile"] * 40, "text": [f"They sell number {number} here." for number in range(40)]}
    passages = passages_from_rows(Dataset.from_dict(rows), RealmTokenizer.from_pretrained(bert), tmp_path / "passages")
    reading = {"pooling_mode": "mean", "normalize": True}
    own = corpora.load_model(corpora.ModelArguments(bert, projection="none", **reading), 0)
    assert (own.config.retriever_proj_size, own.config.score_scale) == (32, 20.0)
    asked = corpora.ModelArguments(bert, projection="pca", retriever_proj_size=8, score_scale="auto", **reading)
    drawn, fitted = corpora.load_model(asked, 0), corpora.load_model(asked, 0, passages)
    assert not torch.equal(drawn.embedder.cls.dense.weight, fitted.embedder.cls.dense.weight)
    fitted_by_hand = corpora.load_model(asked, 0)
    fit_projection(fitted_by_hand.embedder, passages)
    assert torch.equal(fitted_by_hand.embedder.cls.dense.weight, fitted.embedder.cls.dense.weight)
    paper = corpora.load_model(corpora.ModelArguments(bert, score_scale="0.5", document_prompt="they : "), 0).config
    assert (paper.score_scale, paper.retriever_proj_size, len(paper.document_prompt_ids)) == (0.5, 128, 2)


def test_towers_and_encoder_start_from_what_train_masked_lm_leaves(tmp_path, monkeypatch, capsys):
    sizes = "hidden_size=32,num_hidden_layers=1,num_attention_heads=2,intermediate_size=64"
    settings = {
        "knowledge_corpus": FIXTURES / "countries.jsonl",
        "output_dir": tmp_path / "run",
        "from_nothing": sizes,
        "vocab_size": 400,
        "max_steps": 2,
        "per_device_train_batch_size": 2,
        "heldout_fraction": 0.1,
        "eval_examples": 4,
        "use_cpu": "true",
    }
    options = [part for name, value in settings.items() for part in (f"--{name}", value)]
    run_example("train_masked_lm", monkeypatch, *options)
    folder = tmp_path / "run" / "model"
    assert f"Done at step 2: {folder}" in capsys.readouterr().out

    model = corpora.load_model(corpora.ModelArguments(str(folder), pooler="identity", retriever_proj_size=16), seed=0)
    words = RealmKnowledgeAugEncoder.from_pretrained(folder).realm.embeddings.word_embeddings.weight
    for tower in (model.embedder.realm, model.encoder.realm):
        assert torch.equal(tower.embeddings.word_embeddings.weight, words)


def test_a_vocabulary_is_made_of_streamed_documents_too(tmp_path):
    """Not always the same one: of pieces that occur equally often the trainer takes any."""
    streamed = KnowledgeArguments(str(FIXTURES / "countries.jsonl"), streaming=True)
    made = new_tokenizer(streamed, "bert", 400, tmp_path / "tokenizer")
    assert 300 < len(made) <= 400 and "the" in made.get_vocab()
