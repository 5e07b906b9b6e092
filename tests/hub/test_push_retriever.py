"""A retriever goes to the Hub and comes back whole, in another process with an empty cache."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
from hub_client import Calls, ClientFailedError

pytestmark = pytest.mark.multiprocess
REPO = "alice/passages"


@pytest.fixture(scope="module")
def made(tmp_path_factory, tiny_passages, tokenizer, tiny_vocab):
    """A folder with all that a retriever is made of, and queries."""
    import torch
    from tiny_worlds import tiny_model

    folder = tmp_path_factory.mktemp("made")
    (folder / "passages").symlink_to(tiny_passages.directory)
    tokenizer.save_pretrained(folder / "tokenizer")
    model = tiny_model(seed=1)
    model.embedder.save_pretrained(folder / "tower")
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    np.save(folder / "embeddings.npy", rng.standard_normal((len(tiny_passages), 16)).astype(np.float16))
    np.save(folder / "queries.npy", rng.standard_normal((7, 16)).astype(np.float32))
    (folder / "factory").write_text("Flat")
    return folder


@pytest.fixture(scope="module")
def publisher(at_home):
    return Calls(at_home, "client_of_retriever")


@pytest.fixture(scope="module")
def pushed(publisher, made):
    return publisher.call("push", folder=str(made), repo_id=REPO, max_shard_size="4KB")


@pytest.fixture(scope="module")
def loader(elsewhere, pushed):
    return Calls(elsewhere, "client_of_retriever")


@pytest.fixture(scope="module")
def original(publisher, made):
    publisher.call("original", folder=str(made), out=str(made / "original.npz"), queries=str(made / "queries.npy"))
    return dict(np.load(made / "original.npz"))


def same(path: Path, original: dict[str, np.ndarray]) -> bool:
    found = np.load(path)
    assert set(found) == set(original)
    for name, array in original.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, strict=True)  # the null passage's score is NaN in both
    return True


def test_it_comes_back_bit_for_bit(loader, made, original, tmp_path, tiny_passages):
    out = tmp_path / "found.npz"

    found = loader.call("load_and_search", name=REPO, out=str(out), queries=str(made / "queries.npy"))

    assert same(out, original)
    assert found["fingerprint"] == tiny_passages.fingerprint
    assert found["texts"] == tiny_passages.rows["text"][:3]
    assert found["titles"] == tiny_passages.rows["title"][:3]
    assert found["generation"] == "step-5-0123abcd"
    assert found["mapped"]
    assert found["fingerprints"] == ["passage_tower", "passages", "tokenizer"]


def test_it_comes_back_by_tag_by_commit_and_offline(loader, hub, made, original, tmp_path):
    queries = str(made / "queries.npy")
    loader.call("tag", repo_id=REPO, name="v1")
    commit = loader.call("head", repo_id=REPO)
    for number, arguments in enumerate([{"revision": "v1"}, {"revision": commit}]):
        out = tmp_path / f"{number}.npz"
        loader.call("load_and_search", name=REPO, out=str(out), queries=queries, **arguments)
        assert same(out, original)
    asked = len(hub.requests)

    for number, arguments in enumerate([{"revision": "v1"}, {"revision": commit}, {}]):
        out = tmp_path / f"offline-{number}.npz"
        loader.call("load_and_search", name=REPO, out=str(out), queries=queries, local_files_only=True, **arguments)
        assert same(out, original)

    assert len(hub.requests) == asked


def test_the_dataset_loads_without_this_package(loader):
    found = loader.call("rows_of_dataset", name=REPO)

    assert found == {
        "columns": ["title", "text", "embeddings"],
        "rows": 48,
        "title": "Place 0",
        "dimension": 16,
    }


def test_a_second_push_of_the_same_uploads_nothing(publisher, hub, made, pushed):
    before, commit = len(hub.uploads), publisher.call("head", repo_id=REPO)

    publisher.call("push", folder=str(made), repo_id=REPO, max_shard_size="4KB")

    assert len(hub.uploads) == before
    assert publisher.call("head", repo_id=REPO) == commit


def test_only_what_is_asked_for_is_downloaded(loader, hub, tmp_path):
    before = len(hub.downloads)
    found = loader.call("load", name=REPO, index=False, embedder=False, cache_dir=str(tmp_path / "empty"))
    asked = {path.split("/", 5)[-1] for path in hub.downloads[before:]}

    assert found == {"rows": 48, "has index": False}
    assert not [name for name in asked if "index/" in name or "embedder/" in name]
    assert [name for name in asked if "data/train-00000" in name]


def test_a_push_that_is_killed_leaves_the_old_revision_and_the_next_completes_it(publisher, hub, made, tmp_path):
    repo_id = "alice/killed"
    publisher.call("push", folder=str(made), repo_id=repo_id)
    old = hub.repository(repo_id, "dataset").resolve("main")
    changed = tmp_path / "changed"
    changed.mkdir()
    for path in made.iterdir():
        (changed / path.name).symlink_to(path)
    (changed / "embeddings.npy").unlink()
    np.save(changed / "embeddings.npy", np.load(made / "embeddings.npy")[::-1])
    before, pid = len(hub.uploads), 0

    def kill_at_the_second(number):
        if number - before == 2:
            os.kill(pid, signal.SIGKILL)

    hub.before_upload = kill_at_the_second
    pid = publisher.start("push", folder=str(changed), repo_id=repo_id, max_shard_size="4KB")
    with pytest.raises(ClientFailedError) as raised:
        publisher.finish()
    hub.before_upload = lambda _: None
    assert raised.value.status == -signal.SIGKILL
    assert hub.repository(repo_id, "dataset").resolve("main") == old
    assert publisher.call("load", name=repo_id) == {"rows": 48, "has index": True}
    there = hub.uploads[before:]

    publisher.call("push", folder=str(changed), repo_id=repo_id, max_shard_size="4KB")

    new = hub.repository(repo_id, "dataset").resolve("main")
    assert new.parent == old.oid
    assert set(hub.uploads[before + len(there) :]).isdisjoint(there)
    assert len([name for name in new.files if name.startswith("data/train-")]) > 1
    assert "data/train-00000-of-00001.parquet" not in new.files


def test_a_large_index_is_split_and_joined(publisher, hub, made, original, tmp_path):
    publisher.call("push_in_parts", folder=str(made), repo_id="alice/parts", part_bytes=1000)
    files = hub.repository("alice/parts", "dataset").resolve("main").files
    parts = [name for name in files if name.startswith("index/default.faiss-")]
    assert len(parts) == 4
    assert max(files[name].size for name in parts) == 1000

    out, queries = tmp_path / "found.npz", str(made / "queries.npy")
    publisher.call("load_and_search", name="alice/parts", out=str(out), queries=queries)

    assert same(out, original)


def test_another_index_can_be_chosen(publisher, hub, made, original, tmp_path):
    publisher.call("push_with_variants", folder=str(made), repo_id="alice/variants")
    out, queries = tmp_path / "found.npz", str(made / "queries.npy")

    kinds = {
        index: publisher.call("load_and_search", name="alice/variants", out=str(out), queries=queries, index=index)[
            "index"
        ]
        for index in (True, "graph", "lists", "exact")
    }

    assert kinds == {True: "IndexFlatIP", "graph": "IndexHNSWFlat", "lists": "IndexIVFFlat", "exact": "IndexFlat"}
    with pytest.raises(ClientFailedError, match=r"choose among.*default.*graph.*lists"):
        publisher.call("load", name="alice/variants", index="other")
