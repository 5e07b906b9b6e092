"""The published kinds of checkpoints, as transformers 4.57.6 wrote them, by name from a Hub: the same answers."""

from pathlib import Path

import pytest
from hub_client import ClientFailedError, HubClient
from hub_repos import Repository
from hub_server import HubServer

pytestmark = pytest.mark.multiprocess
HERE = Path(__file__).parent
FIXTURES = HERE.parent / "parity" / "fixtures"
NAMES = {
    "google/realm-cc-news-pretrained-embedder": ("published", "RealmEmbedder"),
    "google/realm-cc-news-pretrained-encoder": ("published", "RealmKnowledgeAugEncoder"),
    "google/realm-cc-news-pretrained-scorer": ("published", "RealmScorer"),
    "google/realm-cc-news-pretrained-openqa": ("published", "RealmForOpenQA"),
    "google/realm-orqa-nq-openqa": ("bert", "RealmForOpenQA"),
    "google/realm-orqa-nq-reader": ("published", "RealmReader"),
    "google/realm-orqa-wq-openqa": ("untied", "RealmForOpenQA"),
    "google/realm-orqa-wq-reader": ("bert", "RealmReader"),
}


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """A client with an empty cache, on a Hub that holds all of them."""
    folder = tmp_path_factory.mktemp("hub")
    with HubServer(folder / "hub") as server:
        for number, (name, (shape, kind)) in enumerate(
            [*NAMES.items(), ("google/no-retriever", ("bert", "RealmReader"))]
        ):
            repository = Repository("model", name, False, folder / f"repository-{number}")
            repository.add_folder(FIXTURES / shape / kind / "bin")
            server.repositories["model", name] = repository
        environment = {"DISABLE_SAFETENSORS_CONVERSION": "1"}
        with HubClient(
            server.url, folder / "reader", "client_of_old_checkpoints", HERE, token=None, **environment
        ) as client:
            yield client


@pytest.mark.parametrize("name", NAMES)
def test_a_published_name_answers_as_4_57_6(reader, name):
    shape, kind = NAMES[name]
    expected = FIXTURES / shape / kind / "expected.safetensors"
    found = reader.call("differences", repo_id=name, kind=kind, expected=str(expected))
    assert found["names"] == []
    assert found["largest"] < 1e-5


def test_a_repository_without_a_retriever_is_told(reader):
    with pytest.raises(ClientFailedError) as failure:
        reader.call("load_retriever", repo_id="google/no-retriever")
    assert "FileNotFoundError" in failure.value.said
    assert "google/no-retriever" in failure.value.said
