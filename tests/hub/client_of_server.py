"""Calls of the plain client, without this package: does the local Hub do what the Hub does?"""

import time
from pathlib import Path

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    HfApi,
    hf_hub_download,
    snapshot_download,
)
from huggingface_hub.errors import HfHubHTTPError


def outcome(function, *args, **kwargs) -> str:
    """The name of the error that a call raises, and the status behind it."""
    try:
        function(*args, **kwargs)
    except HfHubHTTPError as error:
        return f"{type(error).__name__} {error.response.status_code}"
    except Exception as error:  # noqa: BLE001 - its name is the answer
        return type(error).__name__
    return "nothing"


def round_trip(folder: str) -> dict:
    api, root = HfApi(), Path(folder)
    root.mkdir()
    (root / "big.bin").write_bytes(bytes(range(256)) * 4000)
    url = api.create_repo("alice/thing")
    again = api.create_repo("alice/thing", exist_ok=True)
    first = api.upload_folder(repo_id="alice/thing", folder_path=root)
    api.create_tag("alice/thing", tag="v1")
    api.create_branch("alice/thing", branch="side")
    operations = [
        CommitOperationAdd("note.txt", b"hello"),
        CommitOperationAdd("sub/other.txt", b"there"),
        CommitOperationDelete("big.bin"),
    ]
    second = api.create_commit("alice/thing", operations, commit_message="notes", revision="side")
    tree = [entry.path for entry in api.list_repo_tree("alice/thing", revision="side", recursive=True)]
    refs = api.list_repo_refs("alice/thing")
    path = Path(hf_hub_download("alice/thing", "big.bin", revision="v1"))
    snapshot = Path(snapshot_download("alice/thing", revision="side"))
    return {
        "who": api.whoami()["name"],
        "urls": [str(url), str(again)],
        "same": path.read_bytes() == (root / "big.bin").read_bytes(),
        "commit of the tag": path.parent.name == first.oid,
        "tree": tree,
        "snapshot": sorted(file.relative_to(snapshot).as_posix() for file in snapshot.rglob("*") if file.is_file()),
        "snapshot is of the commit": snapshot.name == second.oid,
        "branches": sorted(ref.name for ref in refs.branches),
        "tags": [ref.name for ref in refs.tags],
        "sha": api.model_info("alice/thing", revision="side").sha == second.oid,
        "commits": [commit.title for commit in api.list_repo_commits("alice/thing", revision="side")],
        "exists": [api.file_exists("alice/thing", name, revision="side") for name in ("note.txt", "big.bin")],
    }


def errors() -> dict[str, str]:
    api = HfApi()
    api.create_repo("alice/private", private=True)
    api.create_repo("alice/open")
    head = api.model_info("alice/open").sha
    operations = [CommitOperationAdd("a.txt", b"a")]
    api.create_commit("alice/open", operations, commit_message="one", parent_commit=head)
    late = [CommitOperationAdd("b.txt", b"b")]
    return {
        "no repository": outcome(api.model_info, "alice/none"),
        "no revision": outcome(api.model_info, "alice/open", revision="none"),
        "no file": outcome(hf_hub_download, "alice/open", "none.txt"),
        "no file, cached": outcome(hf_hub_download, "alice/open", "none.txt", local_files_only=True),
        "private, other user": outcome(api.model_info, "alice/private", token="hf_bob"),
        "private, nobody": outcome(api.model_info, "alice/private", token=False),
        "wrong token": outcome(api.whoami, token="hf_wrong"),
        "foreign namespace": outcome(api.create_repo, "bob/thing"),
        "exists": outcome(api.create_repo, "alice/open"),
        "stale parent": outcome(api.create_commit, "alice/open", late, commit_message="two", parent_commit=head),
        "bad card": outcome(
            api.upload_file, path_or_fileobj=b"---\n[\n---\n", path_in_repo="README.md", repo_id="alice/open"
        ),
    }


def upload_three(pause: float = 0.0) -> str:
    """Three LFS objects one after the other, then the commit."""
    api = HfApi()
    api.create_repo("alice/three", exist_ok=True)
    operations = [CommitOperationAdd(f"{number}.bin", bytes([number]) * 1000) for number in range(3)]
    for operation in operations:
        api.preupload_lfs_files("alice/three", [operation])
        time.sleep(pause)
    return api.create_commit("alice/three", operations, commit_message="three").oid
