"""The local Hub, and clients of it."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from hub_client import HubClient
from hub_server import HubServer
from published_folder import DIMENSION, ROWS, Folder

HERE = Path(__file__).parent
CLIENTS = "client_of_publishing,client_of_retriever"


@pytest.fixture(scope="session")
def hub(tmp_path_factory):
    """One Hub, in which each test module has repositories of its own."""
    with HubServer(tmp_path_factory.mktemp("hub")) as server:
        yield server


@pytest.fixture(scope="session")
def at_home(hub, tmp_path_factory):
    """A client that publishes; it takes seconds to start, and serves all test modules."""
    with HubClient(hub.url, tmp_path_factory.mktemp("publisher"), CLIENTS, HERE) as client:
        yield client


@pytest.fixture(scope="session")
def elsewhere(hub, tmp_path_factory):
    """Another client, with another cache, which is empty at first."""
    with HubClient(hub.url, tmp_path_factory.mktemp("loader"), CLIENTS, HERE) as client:
        yield client


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
