"""sentence-transformers itself, where installed: what it computes of our folders, and what we compute of its own."""

import json

import numpy as np
import pytest
import torch
from tiny_worlds import FIXTURES, tiny_tokenizer

from realm_hf import RealmConfig, RealmEmbedder, RealmForPreTraining

library = pytest.importorskip("sentence_transformers")

ARTICLES = [json.loads(line) for line in (FIXTURES / "countries.jsonl").read_text().splitlines()[:25]]
BODIES = [article["text"][:150] for article in ARTICLES]
TITLES = [article["title"] for article in ARTICLES]
QUERIES = [f"what is sold in {title}?" for title in TITLES]
OWN = {"projection": "none", "retriever_proj_size": 32, "pooling_mode": "mean", "normalize": True}
PROMPTS = {"query_prompt": "where is ", "document_prompt": "people say : "}


def tower(**fields):
    torch.manual_seed(3)
    tokenizer = tiny_tokenizer()
    ids = {f"{n}_ids": tokenizer(t, add_special_tokens=False)["input_ids"] for n, t in fields.items() if "prompt" in n}
    config = RealmConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48,
        max_position_embeddings=128, initializer_range=0.2, **fields, **ids,
    )  # fmt: skip
    made = RealmEmbedder(config).eval()
    made.tokenizer = tokenizer
    return made


def loaded(folder):
    return library.SentenceTransformer(str(folder), device="cpu")


def ranks(queries, documents):
    return np.argsort(-(queries @ documents.T), axis=1, kind="stable")[:, :5]


@pytest.mark.parametrize("fields", [OWN, OWN | PROMPTS, {"retriever_proj_size": 8} | PROMPTS], ids=str)
def test_it_embeds_fifty_texts_and_pairs_as_our_tower_does(fields, tmp_path):
    ours = tower(**fields)
    ours.to_sentence_transformer(tmp_path / "out")
    theirs = loaded(tmp_path / "out")
    assert theirs.similarity_fn_name == "dot"
    queries = theirs.encode_query(QUERIES + BODIES)
    np.testing.assert_allclose(queries, ours.encode(QUERIES + BODIES), atol=1e-5)
    pairs = theirs.encode_document(list(zip(TITLES, BODIES, strict=True)))
    passages = ours.encode(BODIES, titles=TITLES)
    np.testing.assert_allclose(pairs, passages, atol=1e-5)
    np.testing.assert_array_equal(ranks(queries[:25], pairs), ranks(ours.encode(QUERIES), passages))
    # What it saves is read too.
    theirs.save(str(tmp_path / "again"), create_model_card=False)
    again = RealmEmbedder.from_sentence_transformer(tmp_path / "again")
    np.testing.assert_array_equal(again.encode(BODIES, titles=TITLES), passages)


def test_joined_passages_are_what_it_embeds_of_title_and_text(tmp_path):
    ours = tower(**OWN, **PROMPTS, document_format="joined")
    ours.to_sentence_transformer(tmp_path / "out")
    found = loaded(tmp_path / "out").encode_document(
        [f"{title} {body}" for title, body in zip(TITLES, BODIES, strict=True)]
    )
    np.testing.assert_allclose(found, ours.encode(BODIES, titles=TITLES), atol=1e-5)


def test_two_towers_are_loaded_without_our_package(tmp_path):
    documents, queries = tower(retriever_proj_size=8, **PROMPTS), tower(retriever_proj_size=8, **PROMPTS)
    with torch.no_grad():
        queries.cls.dense.weight.add_(0.2 * torch.randn(queries.cls.dense.weight.shape))
    documents.to_sentence_transformer(tmp_path / "two", query_embedder=queries)
    theirs = loaded(tmp_path / "two")
    np.testing.assert_allclose(theirs.encode_query(QUERIES), queries.encode(QUERIES), atol=1e-5)
    found = theirs.encode_document(list(zip(TITLES, BODIES, strict=True)))
    np.testing.assert_allclose(found, documents.encode(BODIES, titles=TITLES), atol=1e-5)
    assert not {type(module).__module__.split(".")[0] for module in theirs.modules()} & {"realm_hf"}
    named = [*(tmp_path / "two").rglob("modules.json"), *(tmp_path / "two").rglob("router_config.json")]
    assert len(named) == 2 and not any("realm" in file.read_text() for file in named)


def test_a_model_starts_from_what_the_library_makes(tmp_path):
    """As many on the Hub were made: an encoder, its mean, a Dense, and unit length, with a prompt for queries."""
    from sentence_transformers.models import Dense, Normalize, Pooling, Transformer

    tower(**OWN).to_sentence_transformer(tmp_path / "encoder")
    encoder = Transformer(str(tmp_path / "encoder"), max_seq_length=40)
    dense = Dense(32, 16, activation_function=torch.nn.Identity())
    made = library.SentenceTransformer(
        modules=[encoder, Pooling(32, "mean"), dense, Normalize()], prompts={"query": "where is "}, device="cpu"
    )
    made.save(str(tmp_path / "made"), create_model_card=False)
    model = RealmForPreTraining.from_bert(tmp_path / "made")
    model.embedder.tokenizer = tiny_tokenizer()
    long = [" ".join(BODIES[:4])]
    found = model.embedder.encode(QUERIES + BODIES + long)
    np.testing.assert_allclose(found, made.encode_query(QUERIES + BODIES + long), atol=1e-5)
    assert (model.config.retriever_proj_size, model.config.query_prompt) == (16, "where is ")
