"""One commit to a repository: large files go up as they come, the commit that names them is made last.

`upload_folder` was rejected: with Xet storage it may split a large folder into several commits, and readers would see
the first of them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.hf_api import RepoFile

from realm_hf.hub.hub_files import RepoType

__all__ = ["HubCommit"]


class HubCommit:
    """
    Collects the files of one commit.

    What was uploaded before a push was interrupted is kept by the Hub under its hash: a second push finds it there.
    Until [`commit`] nobody sees any of it.

    Args:
        repo_id (`str`): `"owner/name"`; made if need be.
        repo_type (`str`): `"model"` or `"dataset"`.
        private (`bool`, *optional*): Visibility of a repository that is made.
        branch (`str`, *optional*): Where to commit; made from `main` if need be.
        token (`str` or `bool`, *optional*): As for `huggingface_hub`.
        parent_commit (`str`, *optional*): Refuse to begin if the branch does not stand there.
        create_pr (`bool`, *optional*, defaults to `False`): Open a pull request instead of moving the branch.

    Raises:
        ValueError: If the branch stands elsewhere than at `parent_commit`.
        HfHubHTTPError: If the token does not allow to write there.
    """

    def __init__(
        self,
        repo_id: str,
        repo_type: RepoType,
        *,
        private: bool | None = None,
        branch: str | None = None,
        token: str | bool | None = None,
        parent_commit: str | None = None,
        create_pr: bool = False,
    ):
        self.repo_type, self.branch, self.create_pr = repo_type, branch, create_pr
        self.api = HfApi(token=token, library_name="realm_hf")
        self.repo_id = self.api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True).repo_id
        if branch is not None and not create_pr:
            self.api.create_branch(self.repo_id, branch=branch, repo_type=repo_type, exist_ok=True)
        self.head = self.api.repo_info(self.repo_id, repo_type=repo_type, revision=branch).sha
        if parent_commit is not None and parent_commit != self.head:
            raise ValueError(
                f"{self.repo_id} stands at commit {self.head}, not at parent_commit {parent_commit}: somebody has "
                "published in between; load what is there and decide again."
            )
        self._operations: dict[str, CommitOperationAdd] = {}

    def add(self, name: str, content: Path | bytes, *, is_temporary: bool = False) -> None:
        """
        Add a file, and upload it now if it is a large one.

        Args:
            name (`str`): In the repository.
            content (`Path` or `bytes`): The file.
            is_temporary (`bool`, *optional*, defaults to `False`): Remove it once it is uploaded.
        """
        operation = CommitOperationAdd(name, content)
        self.api.preupload_lfs_files(
            self.repo_id,
            [operation],
            repo_type=self.repo_type,
            revision=self.branch,
            create_pr=self.create_pr or None,
            free_memory=True,
        )
        self._operations[name] = operation
        if is_temporary and isinstance(content, Path) and operation.path_or_fileobj == b"":
            content.unlink()  # it was uploaded; a small one goes with the commit itself

    def exists(self, name: str) -> bool:
        """Whether the branch has a file of that name now."""
        return self.api.file_exists(self.repo_id, name, repo_type=self.repo_type, revision=self.branch)

    def read_json(self, name: str) -> dict[str, Any] | None:
        """A JSON object of the branch as it is now; `None` if there is none."""
        if not self.exists(name):
            return None
        path = hf_hub_download(
            self.repo_id, name, repo_type=self.repo_type, revision=self.branch, token=self.api.token
        )
        try:
            content = json.loads(Path(path).read_bytes())
        except ValueError:
            return None
        return content if isinstance(content, dict) else None

    def tags(self) -> dict[str, str]:
        """The repository's tags and their commits."""
        refs = self.api.list_repo_refs(self.repo_id, repo_type=self.repo_type)
        return {ref.name: ref.target_commit for ref in refs.tags}

    def tag(self, name: str, commit: str) -> None:
        """Let a tag name a commit; one that an interrupted publication left elsewhere is moved."""
        there = self.tags().get(name)
        if there is not None and there != commit:
            self.api.delete_tag(self.repo_id, tag=name, repo_type=self.repo_type)
        if there != commit:
            self.api.create_tag(self.repo_id, tag=name, revision=commit, repo_type=self.repo_type)

    def keep_small_files(self) -> None:
        """Take files that go with the commit itself into memory, so that their folder may be removed."""
        for operation in self._operations.values():
            if isinstance(operation.path_or_fileobj, str | Path):
                operation.path_or_fileobj = Path(operation.path_or_fileobj).read_bytes()

    def commit(self, message: str, description: str | None = None, *, owns: Callable[[str], bool]) -> str:
        """
        Publish all that was added, in one commit; if nothing changed, none is made.

        Args:
            message (`str`): The commit's first line.
            description (`str`, *optional*): The rest.
            owns (`Callable[[str], bool]`): Whether a file of the repository belongs to what is published here, so that
                it goes if it was not added again.

        Returns:
            `str`: The commit's id.

        Raises:
            ValueError: If somebody else has moved the branch since this push began.
        """
        entries = self.api.list_repo_tree(self.repo_id, recursive=True, revision=self.branch, repo_type=self.repo_type)
        there = [entry.path for entry in entries if isinstance(entry, RepoFile)]
        gone = [CommitOperationDelete(name) for name in there if name not in self._operations and owns(name)]
        try:
            info = self.api.create_commit(
                self.repo_id,
                [*self._operations.values(), *gone],
                commit_message=message,
                commit_description=description,
                repo_type=self.repo_type,
                revision=self.branch,
                parent_commit=self.head,
                create_pr=self.create_pr,
            )
        except HfHubHTTPError as error:
            if error.response is not None and error.response.status_code == 412:
                raise ValueError(
                    f"{self.repo_id} was changed by somebody else while this was published: nothing was committed; "
                    "publish again (what was uploaded is kept)."
                ) from error
            raise
        self.url = info.pr_url or info.commit_url
        return info.oid
