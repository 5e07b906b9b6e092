"""Publications whose towers are no BERT: what comes back, and what a stranger may not say of an encoder."""

import json
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset
from published_folder import Folder, describe, put
from tiny_encoders import FAMILIES, TEXT, save_encoder, train_tokenizer
from transformers import AutoTokenizer

from realm_hf import RealmForPreTraining, RealmRetriever
from realm_hf.data import build_passages
from realm_hf.hub.export import ExportSettings
from realm_hf.hub.published_tower import read_tower_configuration
from realm_hf.hub.retriever import add_retriever
from realm_hf.untrusted.checks import HubArtefactError

TITLES = [text.split()[0] for text in TEXT]
TOWER = "embedder/config.json"
PROMPTS = {"query_prompt": "query: ", "document_prompt": "passage: "}


def publish(folder: Path, family: str, root: Path, **fields) -> RealmRetriever:
    checkpoint = save_encoder(folder, family)
    model = RealmForPreTraining.from_encoders(embedder=checkpoint, encoder=checkpoint, retriever_proj_size=8, **fields)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    documents = Dataset.from_list([{"title": title, "text": text} for title, text in zip(TITLES, TEXT, strict=True)])
    passages = build_passages(documents, tokenizer, folder / "passages", max_length=60)
    vectors = model.embedder.encode(TEXT, titles=TITLES, tokenizer=tokenizer)
    retriever = RealmRetriever(passages, tokenizer, embeddings=vectors, embedder=model.embedder)
    add_retriever(Folder(root), retriever, ExportSettings())
    return retriever


@pytest.mark.parametrize("family", FAMILIES)
def test_a_tower_of_any_encoder_comes_back_and_searches_the_same(tmp_path, family):
    # Byte-level BPE cannot join titles and texts.
    fields = PROMPTS if family in ("roberta", "modernbert") else PROMPTS | {"document_format": "joined"}
    published = publish(tmp_path / "made", family, tmp_path / "out", **fields)

    found = RealmRetriever.from_pretrained(tmp_path / "out", cache_dir=tmp_path / "cache")

    assert found.embedder.config.embedder_config.model_type == published.embedder.config.embedder_config.model_type
    assert (
        found.embedder.config.query_prompt_ids
        == train_tokenizer(family)("query: ", add_special_tokens=False)["input_ids"]
    )
    assert {name: getattr(found.embedder.config, name) for name in fields} == fields
    for titles in (None, TITLES):
        assert np.array_equal(
            found.embedder.encode(TEXT, titles=titles, tokenizer=found.tokenizer),
            published.embedder.encode(TEXT, titles=titles, tokenizer=published.tokenizer),
        )
    found.query_embedder, published.query_embedder = found.embedder, published.embedder
    ours, theirs = (one.search("What is the capital of France?", k=3) for one in (found, published))
    assert ours.texts == theirs.texts and np.allclose(ours.scores, theirs.scores, rtol=1e-5)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roberta")
    publish(folder / "made", "roberta", folder / "out")
    return folder / "out"


@pytest.fixture
def folder(roberta, tmp_path) -> Path:
    """A copy to do evil to."""
    return Path(shutil.copytree(roberta, tmp_path / "published"))


def change(folder: Path, entries: dict, name: str = "embedder_config") -> None:
    content = json.loads((folder / TOWER).read_text())
    content[name] = content[name] | entries if isinstance(content[name], dict) else entries
    put(folder, TOWER, json.dumps(content).encode())


@pytest.mark.parametrize("name", ["embedder_config", "encoder_config"])
@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"model_type": "gpt2"}, "is of type 'gpt2'; read from publications are bert"),
        ({"model_type": "evil"}, "is of type 'evil'"),
        ({"model_type": ["roberta"]}, "is of type"),
        ({"num_hidden_layers": 10**7}, "has 10000000 layers"),
        ({"num_hidden_layers": "2"}, "has 2 layers"),
        ({"model_type": "distilbert", "n_layers": 10**7}, "has 10000000 layers"),
        ({"model_type": "deberta-v2", "max_position_embeddings": 10**9}, "has 1000000000 positions"),
        ({"vocab_size": 10**30}, r"vocab_size is 1000000"),
        ({"layer_norm_eps": float("nan")}, "layer_norm_eps is nan"),
        ({"hidden_act": "x" * 1000}, "hidden_act is a text of 1000"),
        ({"pad_token_id": [[[[1]]]]}, "pad_token_id has 1 entries, 4 deep"),
        ({"model_type": "modernbert", "layer_types": ["full_attention"] * 2000}, "has 2000 entries"),
        ({"is_decoder": True}, "a decoder"),
    ],
)
def test_entries_of_an_encoder_that_are_beyond_bounds(folder, name, entries, words):
    change(folder, entries, name)
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(ValueError, match=words):
        read_tower_configuration(folder / TOWER)

    assert time.perf_counter() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


@pytest.mark.parametrize(
    "entries",
    [
        {"model_type": "gpt2"}, {"num_hidden_layers": 10**7}, {"vocab_size": 10**9}, {"hidden_size": 10**6},
        {"num_hidden_layers": 100}, {"intermediate_size": -5}, {"num_attention_heads": 0}, {"hidden_act": "none"},
        {"type_vocab_size": 10**9},
    ],
)  # fmt: skip
def test_an_encoder_that_claims_other_weights(folder, tmp_path, entries):
    change(folder, entries)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    with pytest.raises(HubArtefactError, match="The passage tower of"):
        RealmRetriever.from_pretrained(folder, cache_dir=tmp_path / "cache")

    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_entries_that_an_encoder_does_not_need_are_not_read(folder, tmp_path):
    evil = {
        "auto_map": {"AutoModel": "evil.Evil"}, "attn_implementation": "stranger/kernels", "num_labels": 10**6,
        "quantization_config": {"quant_method": "x"}, "_name_or_path": "stranger/model",
    }  # fmt: skip
    change(folder, evil)

    encoder = RealmRetriever.from_pretrained(folder, cache_dir=tmp_path / "cache").embedder.config.embedder_config

    assert encoder.num_labels == 2 and encoder._attn_implementation in ("eager", "sdpa")
    assert not hasattr(encoder, "quantization_config") and not hasattr(encoder, "auto_map")
    assert not encoder._name_or_path


@pytest.mark.parametrize("entry", [{"separators": 3}, {"separators": True}, {"first_word_differs": 1}, {"other": 1}])
def test_templates_that_are_none(folder, tmp_path, entry):
    describe(folder, lambda content: content["store"]["special_tokens"].update(entry))

    with pytest.raises(HubArtefactError, match=r"realm_retriever\.json"):
        RealmRetriever.from_pretrained(folder, cache_dir=tmp_path / "cache")
