"""The local Hub answers the real client as the Hub does."""

import os
import signal
from pathlib import Path

import pytest
from hub_client import ClientFailedError, HubClient

pytestmark = pytest.mark.multiprocess
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def client(hub, tmp_path_factory):
    with HubClient(hub.url, tmp_path_factory.mktemp("home"), "client_of_server", HERE) as client:
        yield client


def test_what_is_pushed_comes_back_by_branch_tag_and_commit(client, hub, tmp_path):
    found = client.call("round_trip", folder=str(tmp_path / "folder"))

    assert found["who"] == "alice"
    assert found["urls"] == [f"{hub.url}/alice/thing"] * 2
    assert found["same"] and found["commit of the tag"] and found["snapshot is of the commit"] and found["sha"]
    assert found["tree"] == [".gitattributes", "note.txt", "sub", "sub/other.txt"]
    assert found["snapshot"] == [".gitattributes", "note.txt", "sub/other.txt"]
    assert found["branches"] == ["main", "side"]
    assert found["tags"] == ["v1"]
    assert found["commits"] == ["notes", "Upload folder using huggingface_hub", "initial commit"]
    assert found["exists"] == [True, False]


def test_errors_have_the_hubs_own_codes(client):
    assert client.call("errors") == {
        "no repository": "RepositoryNotFoundError 404",
        "no revision": "RevisionNotFoundError 404",
        "no file": "RemoteEntryNotFoundError 404",
        "no file, cached": "LocalEntryNotFoundError",
        "private, other user": "RepositoryNotFoundError 404",
        "private, nobody": "RepositoryNotFoundError 401",
        "wrong token": "HfHubHTTPError 401",
        "foreign namespace": "HfHubHTTPError 403",
        "exists": "HfHubHTTPError 409",
        "stale parent": "HfHubHTTPError 412",
        "bad card": "ValueError",
    }


def test_a_push_that_was_killed_uploads_only_what_is_missing_the_second_time(client, hub):
    pid = None

    def kill_at_the_third(number):
        if number == 3:
            os.kill(pid, signal.SIGKILL)

    before = len(hub.uploads)
    hub.before_upload = lambda number: kill_at_the_third(number - before)
    pid = client.start("upload_three", pause=0.3)
    with pytest.raises(ClientFailedError) as raised:
        client.finish()
    hub.before_upload = lambda _: None
    assert raised.value.status == -signal.SIGKILL
    assert list(hub.repository("alice/three").resolve("main").files) == [".gitattributes"]
    killed = len(hub.uploads)

    client.call("upload_three")

    assert set(hub.repository("alice/three").resolve("main").files) >= {"0.bin", "1.bin", "2.bin"}
    assert len(hub.uploads) - killed <= 1
