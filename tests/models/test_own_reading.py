"""Models that start from a folder of sentence-transformers are read as it is, unless the caller says otherwise."""

import json
import logging
import shutil

import numpy as np
import pytest
import torch
from tiny_bert import tiny_bert
from tiny_encoders import TEXT
from transformers import BertModel, HfArgumentParser

from realm_hf import RealmConfig, RealmEmbedder, RealmForPreTraining
from realm_hf.cli import corpora
from realm_hf.cli.arguments import ModelArguments
from realm_hf.models import sentence_transformer_reading
from realm_hf.models.sentence_transformer_reading import own_reading
from realm_hf.models.tower_files import same_tower

READINGS = {
    "minilm": {"projection": "none", "retriever_proj_size": 32, "pooling_mode": "mean", "normalize": True},
    "dense": {"projection": "linear", "retriever_proj_size": 8, "pooling_mode": "mean", "query_prompt": "where is "},
    "realm": {"projection": "layer_norm", "retriever_proj_size": 8},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tokenizer):
    """A folder for each reading; "first token" is read at [CLS] without a pooler, as BGE is."""
    place = tmp_path_factory.mktemp("folders")
    for number, (name, fields) in enumerate(READINGS.items()):
        torch.manual_seed(number)
        config = RealmConfig(
            vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
            intermediate_size=48, max_position_embeddings=64, initializer_range=0.2, **fields,
            query_prompt_ids=tokenizer("where is", add_special_tokens=False)["input_ids"]
            if "query_prompt" in fields
            else None,
        )  # fmt: skip
        RealmEmbedder(config).eval().to_sentence_transformer(place / name, tokenizer=tokenizer, max_length=32)
    shutil.copytree(place / "minilm", place / "first token")
    pooling = place / "first token" / "1_Pooling" / "config.json"
    pooling.write_text(json.dumps({"embedding_dimension": 32, "pooling_mode": "cls"}))
    return place


@pytest.mark.parametrize("name", [*READINGS, "first token"])
def test_from_bert_embeds_as_the_folder_does(folders, name):
    wanted = RealmEmbedder.from_sentence_transformer(folders / name)
    model = RealmForPreTraining.from_bert(folders / name)
    for tower in (model.embedder, model.query_embedder):
        found = tower.encode(TEXT)
        np.testing.assert_allclose(found, wanted.encode(TEXT), atol=1e-6)
    assert (wanted.config.score_scale, wanted.max_text_length) == (model.config.score_scale, 32)
    assert wanted.config.query_prompt == model.config.query_prompt == READINGS.get(name, {}).get("query_prompt", "")


@pytest.mark.parametrize("name", ["minilm", "dense", "first token"])
def test_from_encoders_embeds_as_the_folder_does(folders, name):
    wanted = RealmEmbedder.from_sentence_transformer(folders / name)
    found = RealmEmbedder.from_encoders(embedder=folders / name)
    np.testing.assert_allclose(found.encode(TEXT), wanted.encode(TEXT), atol=1e-6)


def test_berts_pooler_has_no_place_in_another_tower(folders):
    with pytest.raises(ValueError, match="start from it with `from_bert`"):
        RealmEmbedder.from_encoders(embedder=folders / "realm")


@pytest.mark.parametrize(
    ("name", "given", "wanted"),
    [
        ("minilm", {"normalize": False}, {"projection": "none", "retriever_proj_size": 32, "normalize": False}),
        ("minilm", {"retriever_proj_size": 8}, {"projection": "linear", "retriever_proj_size": 8, "normalize": True}),
        ("minilm", {"projection": "layer_norm"}, {"pooling_mode": "mean", "retriever_proj_size": 128}),
        ("dense", {"projection": "none"}, {"pooling_mode": "mean", "retriever_proj_size": 32}),
        ("dense", {"query_prompt": ""}, {"projection": "linear", "query_prompt": "", "retriever_proj_size": 8}),
        ("dense", {"retriever_proj_size": 16}, {"projection": "linear", "retriever_proj_size": 16}),
        # Both given: nothing but the prompts is the folder's.
        ("minilm", {"pooling_mode": "mean", "projection": "none"}, {"normalize": False, "score_scale": 1.0}),
        ("dense", {"pooling_mode": "mean", "projection": "linear"}, {"query_prompt": "where is "}),
    ],
    ids=str,
)
def test_the_caller_wins(folders, name, given, wanted):
    tower = RealmEmbedder.from_bert(folders / name, **given)
    assert {field: getattr(tower.config, field) for field in wanted} == wanted
    folder = RealmEmbedder.from_sentence_transformer(folders / name)
    if tower.cls.dense is not None:
        kept = tower.cls.dense.weight.shape == folder.cls.dense.weight.shape if folder.cls.dense is not None else False
        is_the_folders = kept and torch.equal(tower.cls.dense.weight, folder.cls.dense.weight)
        assert is_the_folders == ("query_prompt" in given), "the folder's projection, unless another one was asked for"


def test_without_modules_all_is_as_before(folders, tmp_path):
    shutil.copytree(folders / "minilm", tmp_path / "plain")
    (tmp_path / "plain" / "modules.json").unlink()
    config = RealmEmbedder.from_encoders(embedder=tmp_path / "plain").config
    assert (config.pooling_mode, config.projection, config.normalize) == ("mean", "layer_norm", False)
    config = RealmEmbedder.from_bert(tmp_path / "plain", pooler="identity").config
    assert (config.pooling_mode, config.projection, config.normalize) == ("cls", "layer_norm", False)
    assert own_reading(tmp_path / "plain", {"normalize": True}) == ({"normalize": True}, None)


def test_the_programs_read_a_folder_as_it_is_and_say_so(folders, tmp_path, caplog):
    with caplog.at_level(logging.INFO, logger="realm_hf"):
        model = corpora.load_model(ModelArguments(str(folders / "minilm")), 0)
    wanted = RealmEmbedder.from_sentence_transformer(folders / "minilm")
    assert same_tower(model.embedder, wanted) and model.config.projection_dropout == 0.1
    said = [line for line in caplog.messages if "is read as sentence-transformers reads it" in line]
    assert (
        len(said) == 1 and "pooling_mode='mean', projection='none', retriever_proj_size=32, normalize=True" in said[0]
    )
    asked = ModelArguments(str(folders / "minilm"), projection="pca", retriever_proj_size=8)
    config = corpora.load_model(asked, 0).config
    assert (config.pooling_mode, config.projection, config.normalize) == ("mean", "linear", True)
    plain = corpora.load_model(ModelArguments(str(tiny_bert(tmp_path / "bert", BertModel))), 0).config
    assert (plain.pooling_mode, plain.projection, plain.retriever_proj_size) == ("cls", "layer_norm", 128)


@pytest.mark.parametrize(
    ("words", "normalize"), [([], None), (["--normalize"], True), (["--normalize", "false"], False)], ids=str
)
def test_normalize_is_a_switch_that_may_be_left_to_the_folder(words, normalize):
    (asked,) = HfArgumentParser(ModelArguments).parse_args_into_dataclasses(
        ["--model_name_or_path", "x", *words, "--projection", "pca"]
    )
    assert (asked.normalize, asked.projection, asked.pooling_mode) == (normalize, "pca", None)


def test_of_the_hub_only_the_small_files_are_fetched(folders, tmp_path, monkeypatch):
    fetched = []

    def cached(name, file, **ignored):
        if not (folders / "dense" / file).is_file():
            return None
        fetched.append(file)
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        return str(shutil.copy(folders / "dense" / file, tmp_path / file))

    monkeypatch.setattr(sentence_transformer_reading, "cached_file", cached)
    fields, modules = own_reading("owner/dense", {"query_prompt": ""})
    assert fields["retriever_proj_size"] == modules.dense.out_features == 8 and modules.max_length == 32
    assert "model.safetensors" not in fetched and "2_Dense/model.safetensors" in fetched
