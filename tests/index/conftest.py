"""A small corpus with what goes wrong in real ones: duplicates, very unequal lengths, one long passage."""

import os
import traceback

import numpy as np
import pytest
import torch
from datasets import Dataset

from realm_hf.data.passages.build import PassageStore, passages_from_rows
from realm_hf.index.faiss_index import build_index

TEXTS = [
    "The river runs north to the sea. Its water is cold.",
    "Managua is the capital of Nicaragua. It lies on a lake.",
    "The river runs north to the sea. Its water is cold.",
    "Copper and iron are the main exports. Trade grows.",
    "the river runs north to the sea; its water is cold",
    "A short one.",
    "The people speak two languages. Many speak three. " * 12,
    "Wheat, maize and rice are grown. The river runs north to the sea.",
]


@pytest.fixture(scope="session")
def passages(tmp_path_factory, tokenizer) -> PassageStore:
    """40 passages; rows 0, 2 and 4 are duplicates, and row 7 shares a sentence with them."""
    texts = TEXTS + [f"Province {n} has {n * 7} towns. " + "They are small. " * (n % 5) for n in range(32)]
    rows = Dataset.from_dict({"title": [f"Page {n}" for n in range(len(texts))], "text": texts})
    return passages_from_rows(rows, tokenizer, tmp_path_factory.mktemp("passages") / "store", max_length=96)


@pytest.fixture
def embedder(tiny_config):
    from realm_hf import RealmEmbedder

    torch.manual_seed(0)
    return RealmEmbedder(tiny_config)


@pytest.fixture
def vectors() -> np.ndarray:
    """`[300, 16]` float32."""
    return np.random.default_rng(0).standard_normal((300, 16)).astype(np.float32)


@pytest.fixture
def in_child():
    """Run a function in a forked child and return its text: limits and dropped rights end with the child."""

    def run(function):
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:
            status = 1
            try:
                os.close(reader)
                os.write(writer, function().encode())
                status = 0
            except BaseException:  # noqa: BLE001 - whatever it is, it must not run the rest of pytest in the child
                traceback.print_exc()
            finally:
                os._exit(status)
        os.close(writer)
        with os.fdopen(reader, "rb") as pipe:
            text = pipe.read().decode()
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 0, "the child failed, see its traceback above"
        return text

    return run


@pytest.fixture
def write(vectors):
    """Write a generation of `vectors` into a store."""

    def write(store, step=5, embeddings=vectors, factory="Flat", **changes):
        fields = {
            "passages_fingerprint": "passages",
            "tokenizer_fingerprint": "tokenizer",
            "embedder_fingerprint": "embedder",
            "factory": factory,
        }
        index = build_index(embeddings, factory)
        return store.write(embeddings, index, snapshot_step=step, **{**fields, **changes})

    return write
