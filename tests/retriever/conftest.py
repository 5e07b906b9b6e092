"""A small world's passages, embedded by an untrained tower, and their BM25 index; a file may have its own instead."""

import pytest
from tiny_worlds import load_world, tiny_model, tiny_tokenizer

from realm_hf.generations.embedding import embed_passages
from realm_hf.retriever.bm25 import BM25Source
from realm_hf.retriever.retriever import RealmRetriever


@pytest.fixture(scope="module")
def passages(world):
    return load_world(world)[0]


@pytest.fixture(scope="module")
def tower():
    return tiny_model().embedder.eval()


@pytest.fixture(scope="module")
def vectors(passages, tower):
    return embed_passages(tower, passages)


@pytest.fixture(scope="module")
def bm25(passages):
    return BM25Source.build(passages, tiny_tokenizer())


@pytest.fixture
def retriever(passages, vectors, tower):
    return RealmRetriever(passages, tiny_tokenizer(), embeddings=vectors, embedder=tower, query_embedder=tower)
