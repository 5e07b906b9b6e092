"""A model and its retriever, published together, answer in another process as they did at home."""

import json
import os
import signal
from pathlib import Path

import pytest
from hub_client import Calls, ClientFailedError, HubClient
from promises import same_answers

pytestmark = pytest.mark.multiprocess
HERE = Path(__file__).parent
MODEL, DATA = "alice/realm", "alice/realm-passages"


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tiny_passages, tokenizer):
    folder = tmp_path_factory.mktemp("made")
    (folder / "passages").symlink_to(tiny_passages.directory)
    tokenizer.save_pretrained(folder / "tokenizer")
    return str(folder)


@pytest.fixture(scope="module")
def publisher(at_home):
    return Calls(at_home, "client_of_publishing")


@pytest.fixture(scope="module")
def published(publisher, folder):
    return publisher.call("publish_it", folder=folder, repo_id=MODEL, dataset_repo_id=DATA, tag="v1")


@pytest.fixture(scope="module")
def loader(elsewhere, published):
    return Calls(elsewhere, "client_of_publishing")


def test_another_process_answers_the_same_by_name_tag_and_commit(loader, published):
    expected = published["answers"]
    assert any(answer["text"] for answer in expected)

    assert same_answers(loader.call("answer", name=MODEL), expected)
    assert same_answers(loader.call("answer", name=MODEL, revision="v1"), expected)
    assert same_answers(loader.call("answer", name=MODEL, revision=published["commit"]), expected)


def test_the_pipeline_brings_model_and_retriever(loader, published):
    assert same_answers(loader.call("answer_by_pipeline", name=MODEL), published["answers"])


def test_offline_it_answers_from_the_cache(loader, hub, published, tmp_path):
    loader.call("answer", name=MODEL, revision="v1")
    asked = len(hub.requests)
    home = loader.client.home

    with HubClient(hub.url, home, "client_of_publishing", HERE, HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1") as client:
        assert same_answers(client.call("answer", name=MODEL), published["answers"])
        assert same_answers(client.call("answer", name=MODEL, revision="v1"), published["answers"])

    assert len(hub.requests) == asked


def test_auto_classes_and_load_dataset_take_the_names(loader, published):
    assert loader.call("load_by_auto_classes", name=MODEL, passages=DATA) == {
        "config": "RealmConfig",
        "model": "RealmEmbedder",
        "tokenizer": "RealmTokenizer",
        "columns": ["title", "text", "embeddings"],
        "rows": 48,
    }


def test_both_repositories_name_the_others_commit(hub, published):
    model, data = hub.repository(MODEL), hub.repository(DATA, "dataset")
    pin = json.loads(model.object(model.resolve("main").files["realm_publication.json"].digest).read_bytes())
    back = json.loads(data.object(data.resolve("main").files["realm_model.json"].digest).read_bytes())

    assert pin["retriever"]["repo_id"] == DATA
    assert pin["retriever"]["revision"] == published["dataset_commit"] in data.commits
    assert back == {"repo_id": MODEL, "revision": published["commit"]}
    assert model.tags["v1"] == published["commit"]
    assert data.tags["v1"] == data.branches["main"]


def test_publishing_the_same_again_changes_nothing(publisher, hub, folder, published):
    uploads = len(hub.uploads)
    commits = {name: len(repository.commits) for name, repository in hub.repositories.items()}

    again = publisher.call("publish_it", folder=folder, repo_id=MODEL, dataset_repo_id=DATA)

    assert again["commit"] == published["commit"]
    assert again["dataset_commit"] == published["dataset_commit"]
    assert len(hub.uploads) == uploads
    assert {name: len(repository.commits) for name, repository in hub.repositories.items()} == commits


def test_an_old_revision_keeps_its_own_passages(publisher, loader, hub, folder, published):
    repo_id, data = "alice/moving", "alice/moving-passages"
    old = publisher.call("publish_it", folder=folder, repo_id=repo_id, dataset_repo_id=data, tag="old")
    new = publisher.call("publish_it", folder=folder, repo_id=repo_id, dataset_repo_id=data, seed=1)

    assert not same_answers(old["answers"], new["answers"])
    assert same_answers(loader.call("answer", name=repo_id), new["answers"])
    assert same_answers(loader.call("answer", name=repo_id, revision="old"), old["answers"])


def test_a_publication_that_is_killed_between_its_commits_leaves_the_old_one(publisher, hub, folder):
    names = {"repo_id": "alice/killed", "dataset_repo_id": "alice/killed-passages"}
    old = publisher.call("publish_it", folder=folder, **names)
    data = hub.repository(names["dataset_repo_id"], "dataset")
    head, pid = data.branches["main"], None

    def kill_before_the_model(_):
        if data.branches["main"] != head:
            os.kill(pid, signal.SIGKILL)

    hub.before_upload = kill_before_the_model
    pid = publisher.start("publish_it", folder=folder, seed=1, **names)
    with pytest.raises(ClientFailedError) as raised:
        publisher.finish()
    hub.before_upload = lambda _: None
    assert raised.value.status == -signal.SIGKILL
    assert same_answers(publisher.call("answer", name=names["repo_id"]), old["answers"])
    uploads = len(hub.uploads)

    new = publisher.call("publish_it", folder=folder, seed=1, **names)

    assert len(hub.uploads) - uploads <= 1  # the model's weights; the passages' files were there
    assert same_answers(publisher.call("answer", name=names["repo_id"]), new["answers"])
    assert not same_answers(new["answers"], old["answers"])


def test_one_repository_can_hold_all(publisher, loader, folder, hub):
    published = publisher.call("publish_it", folder=folder, repo_id="alice/one")

    assert same_answers(loader.call("answer", name="alice/one"), published["answers"])
    assert ("dataset", "alice/one") not in hub.repositories
    assert len(hub.repository("alice/one").commits) == 2


def test_a_branch_leaves_main_alone(publisher, loader, folder, hub):
    repo_id, data = "alice/branches", "alice/branches-passages"
    first = publisher.call("publish_it", folder=folder, repo_id=repo_id, dataset_repo_id=data)
    second = publisher.call("publish_it", folder=folder, repo_id=repo_id, dataset_repo_id=data, seed=1, revision="try")

    assert hub.repository(repo_id).branches["main"] == first["commit"]
    assert same_answers(loader.call("answer", name=repo_id, revision="try"), second["answers"])
    assert same_answers(loader.call("answer", name=repo_id), first["answers"])


def test_private_repositories_open_for_their_owner_only(publisher, loader, folder):
    repo_id, data = "alice/secret", "alice/secret-passages"
    published = publisher.call("publish_it", folder=folder, repo_id=repo_id, dataset_repo_id=data, private=True)
    assert same_answers(publisher.call("answer", name=repo_id), published["answers"])

    with pytest.raises(ClientFailedError, match="alice/secret"):
        loader.call("answer_as", user_token="hf_bob", name=repo_id)  # its cache does not hold what is alice's


def test_a_moved_branch_is_refused(publisher, hub, folder, published):
    first = next(iter(hub.repository(MODEL).commits))

    with pytest.raises(ClientFailedError, match="not at parent_commit"):
        publisher.call("publish_it", folder=folder, repo_id=MODEL, dataset_repo_id=DATA, seed=2, parent_commit=first)


def test_a_taken_tag_is_refused_before_anything_is_uploaded(publisher, hub, folder, published):
    uploads = len(hub.uploads)

    with pytest.raises(ClientFailedError, match="has a tag 'v1' already"):
        publisher.call("publish_it", folder=folder, repo_id=MODEL, dataset_repo_id=DATA, seed=2, tag="v1")

    assert len(hub.uploads) == uploads


def test_pre_trained_models_come_back_too(publisher, loader, folder):
    publisher.call(
        "publish_it", folder=folder, repo_id="alice/pre", dataset_repo_id="alice/pre-passages", answers=False
    )

    expected = publisher.call("pretraining_scores", name=None, folder=folder)
    assert same_answers(loader.call("pretraining_scores", name="alice/pre", folder=folder), expected)


QUERIES = ["Where lies the harbour?", "a road"]


def close_search(found, expected) -> bool:
    for (titles, rows, scores), (own_titles, own_rows, own_scores) in zip(found, expected, strict=True):
        assert (titles, rows) == (own_titles, own_rows)
        assert scores == pytest.approx(own_scores, abs=2e-3)
    return True


def test_model_and_passages_are_both_searched_by_the_fine_tuned_query_tower(loader, publisher, hub, folder, published):
    expected = publisher.call("search_at_home", folder=folder, queries=QUERIES)

    for name in (MODEL, DATA):
        assert close_search(loader.call("search", name=name, queries=QUERIES), expected)
    data = hub.repository(DATA, "dataset")
    assert "query_embedder/model.safetensors" in data.commits[data.branches["main"]].files


def test_in_one_repository_the_query_tower_is_the_models(loader, publisher, hub, folder):
    publisher.call("publish_it", folder=folder, repo_id="alice/one-searched")
    expected = publisher.call("search_at_home", folder=folder, queries=QUERIES)

    assert close_search(loader.call("search", name="alice/one-searched", queries=QUERIES), expected)
    one = hub.repository("alice/one-searched")
    assert not [name for name in one.commits[one.branches["main"]].files if "query_embedder" in name]


def test_a_pushed_retriever_brings_its_query_tower_when_it_is_searched(loader, publisher, hub, folder):
    publisher.call("push_retriever", folder=folder, repo_id="alice/alone")
    expected = publisher.call("search_at_home", folder=folder, queries=QUERIES)

    assert close_search(loader.call("search", name="alice/alone", queries=QUERIES), expected)


def test_a_shared_tower_is_published_once(loader, publisher, hub, folder):
    names = {"repo_id": "alice/shared", "dataset_repo_id": "alice/shared-passages"}
    publisher.call("publish_it", folder=folder, answers=False, **names)
    expected = publisher.call("search_at_home", folder=folder, queries=QUERIES, answers=False)

    assert close_search(loader.call("search", name="alice/shared-passages", queries=QUERIES), expected)
    data = hub.repository("alice/shared-passages", "dataset")
    assert not [name for name in data.commits[data.branches["main"]].files if "query_embedder" in name]


def test_a_pretrained_repository_is_refused_as_a_model_that_answers(loader, publisher, folder):
    publisher.call(
        "publish_it", folder=folder, repo_id="alice/no-qa", dataset_repo_id="alice/no-qa-passages", answers=False
    )
    with pytest.raises(ClientFailedError, match=r"alice/no-qa holds a pre-trained model.*cannot answer yet"):
        loader.call("load_as_one_that_answers", name="alice/no-qa")


def test_weights_that_were_pushed_without_their_index_are_refused_unless_forced(publisher, folder):
    repo_id = "alice/pushed-on"
    publisher.call("publish_it", folder=folder, repo_id=repo_id, dataset_repo_id="alice/pushed-on-passages")
    publisher.call("replace_weights", name=repo_id, seed=3)

    with pytest.raises(ClientFailedError, match="query tower has fingerprint"):
        publisher.call("answer", name=repo_id)
    assert len(publisher.call("answer_all_the_same", name=repo_id)) == 4


def test_an_index_of_other_weights_is_not_published_unless_forced(publisher, hub, folder):
    with pytest.raises(ClientFailedError, match="does not make the stored embeddings"):
        publisher.call("publish_a_strangers_index", folder=folder, repo_id="alice/strange", force=False)
    assert ("model", "alice/strange") not in hub.repositories

    publisher.call("publish_a_strangers_index", folder=folder, repo_id="alice/strange", force=True)


def test_cards_pass_the_clients_validation(loader, published):
    cards = loader.call("cards", repo_id=MODEL, dataset_repo_id=DATA)

    assert cards["model"]["library_name"] == "realm_hf"
    assert cards["model"]["pipeline_tag"] == "question-answering"
    assert cards["model"]["license"] == "apache-2.0"
    assert cards["data"]["configs"] == [
        {"config_name": "default", "data_files": [{"split": "train", "path": "data/train-*.parquet"}]}
    ]
    assert f'pipeline("open-domain-qa", model="{MODEL}")' in cards["text"]
    assert "48 places that do not exist." in cards["text"]
