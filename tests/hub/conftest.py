"""The local Hub, and clients of it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hub_server import HubServer
from published_folder import DIMENSION, ROWS, Folder


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A Hub of the test module's own."""
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((ROWS, DIMENSION)).astype(np.float32)


@pytest.fixture(scope="module")
def honest(tmp_path_factory, tiny_passages, tokenizer, vectors) -> Path:
    from tiny_worlds import tiny_model

    from realm_hf import RealmRetriever
    from realm_hf.hub.export import ExportSettings
    from realm_hf.hub.retriever import add_retriever

    root = tmp_path_factory.mktemp("honest")
    tower = tiny_model(seed=1).embedder
    add_retriever(
        Folder(root), RealmRetriever(tiny_passages, tokenizer, embeddings=vectors, embedder=tower), ExportSettings()
    )
    return root


@pytest.fixture
def folder(honest, tmp_path) -> Path:
    """A copy to do evil to."""
    return Path(shutil.copytree(honest, tmp_path / "published"))


@pytest.fixture
def load(folder, tmp_path):
    from realm_hf import RealmRetriever

    def load(**arguments):
        return RealmRetriever.from_pretrained(folder, cache_dir=tmp_path / "cache", **arguments)

    return load
