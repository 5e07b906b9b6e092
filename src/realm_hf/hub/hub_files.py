"""Files by name from a directory or from one commit of a repository on the Hub, through `huggingface_hub`.

What a repository says of itself is not believed: names from it must stay inside it, a link must not lead out of it,
and a description that is far larger than any true one is refused before it is downloaded. Nothing loaded is ever run.
"""

from __future__ import annotations

import glob
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from transformers.utils import logging

from realm_hf.untrusted.checks import HubArtefactError, check_name, check_room, human_bytes

__all__ = ["HubFiles", "RepoType", "find_hub_files"]

logger = logging.get_logger(__name__)

RepoType = Literal["model", "dataset"]
_REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
_LARGEST_DESCRIPTION = 8 << 20


@dataclass(frozen=True)
class HubFiles:
    """
    Where files are read from: a directory, or one commit of a repository.

    Args:
        root (`Path`): The directory; for a repository the cache's folder of the commit.
        inside (`Path`): Where the files truly lie; a link that leads out of it is refused.
        repo_id (`str`, *optional*): The repository; `None` for a directory.
        repo_type (`str`): `"model"` or `"dataset"`.
        revision (`str`, *optional*): The commit's id.
        token (`str` or `bool`, *optional*): As for `huggingface_hub`.
        cache_dir (`str` or `Path`, *optional*): As for `huggingface_hub`.
        local_files_only (`bool`): As for `huggingface_hub`.
        folder (`str`): Names are below it.
    """

    root: Path
    inside: Path
    repo_id: str | None = None
    repo_type: RepoType = "model"
    revision: str | None = None
    token: str | bool | None = None
    cache_dir: str | Path | None = None
    local_files_only: bool = False
    folder: str = ""

    @property
    def label(self) -> str:
        """The place, for messages."""
        return str(self.root) if self.repo_id is None else f"{self.repo_id} ({self.repo_type}, {self.revision})"

    def read_description(self, name: str) -> dict[str, Any]:
        """
        A JSON object of the source.

        Raises:
            HubArtefactError: If it is missing, larger than 8 MiB, or no JSON object.
        """
        path = self.fetch([name])[name]
        size = path.stat().st_size
        if size > _LARGEST_DESCRIPTION:
            raise HubArtefactError(
                f"{name} of {self.label} has {human_bytes(size)}; a description has at most "
                f"{human_bytes(_LARGEST_DESCRIPTION)}: it is refused."
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (ValueError, RecursionError) as error:
            raise HubArtefactError(f"{name} of {self.label} is not valid JSON ({error}).") from error
        if not isinstance(content, dict):
            raise HubArtefactError(f"{name} of {self.label} holds a {type(content).__name__}, not a JSON object.")
        return content

    def fetch(self, names: Sequence[str], sizes: Mapping[str, int] | None = None) -> dict[str, Path]:
        """
        Have files of the source on this machine; those in the cache are not downloaded again.

        Args:
            names (sequence of `str`): Names that [`check_name`] passes.
            sizes (`Mapping[str, int]`, *optional*): What the description says their sizes are. A file that the
                repository says is larger is not downloaded.

        Returns:
            `dict[str, Path]`: The path of each.

        Raises:
            HubArtefactError: If one is missing, of another size, or a link that leads elsewhere.
            OSError: If the disk has too little room, or the Hub cannot be reached and the cache lacks a file.
        """
        for name in names:
            check_name(name)
        if self.repo_id is not None and names:
            self._download(names, sizes)
        return {name: self._checked(name, None if sizes is None else sizes[name]) for name in names}

    def below(self, folder: str) -> HubFiles:
        """The same source, for names below a folder of it."""
        return replace(self, folder=check_name(folder))

    def _path(self, name: str) -> Path:
        return self.root / self.folder / name

    def _checked(self, name: str, size: int | None) -> Path:
        path = self._path(name)
        if not path.is_file():
            raise HubArtefactError(f"{self.label} has no file {name}, which its description names: it is incomplete.")
        if not path.resolve().is_relative_to(self.inside):
            raise HubArtefactError(f"{path} is a link out of {self.inside}, which is refused: copy the file there.")
        found = path.stat().st_size
        if size is not None and found != size:
            raise HubArtefactError(f"{path} has {found} bytes, its description says {size}: it is cut or was changed.")
        return path

    def _download(self, names: Sequence[str], sizes: Mapping[str, int] | None) -> None:
        assert self.repo_id is not None
        arguments: dict[str, Any] = {
            "repo_type": self.repo_type,
            "revision": self.revision,
            "cache_dir": self.cache_dir,
            "token": self.token,
        }
        missing = next((name for name in names if not self._path(name).is_file()), None)
        if missing is None:
            return
        if self.local_files_only:
            raise LocalEntryNotFoundError(
                f"{missing} of {self.label} is not in the cache, and `local_files_only` (or offline mode) forbids to "
                "download it: load it once with the network."
            )
        prefix = f"{self.folder}/" if self.folder else ""
        arguments["allow_patterns"] = [glob.escape(prefix + name) for name in names]
        planned = snapshot_download(self.repo_id, dry_run=True, **arguments)
        limits = dict.fromkeys(names, _LARGEST_DESCRIPTION) if sizes is None else sizes
        for file in planned:
            most = limits.get(file.filename.removeprefix(prefix), 0)
            if file.file_size > most:
                raise HubArtefactError(
                    f"{file.filename} of {self.label} has {file.file_size} bytes on the Hub, at most {most} were "
                    "expected: it is not downloaded."
                )
        wanted = sum(file.file_size for file in planned if file.will_download)
        if sizes is not None and wanted:
            logger.info("Downloading %s from %s.", human_bytes(wanted), self.label)
            check_room(self.inside, wanted, "the download")
        snapshot_download(self.repo_id, **arguments)


def find_hub_files(
    name_or_path: str | Path,
    descriptions: Sequence[str],
    *,
    repo_type: RepoType | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
    cache_dir: str | Path | None = None,
    local_files_only: bool = False,
) -> tuple[HubFiles, str]:
    """
    Find the first of some description files in a directory or a repository, and fix the commit that it is of.

    Args:
        name_or_path (`str` or `Path`): A directory, or `"name/repository"`.
        descriptions (sequence of `str`): Names of files; the first that is there is taken.
        repo_type (`str`, *optional*): `"model"` or `"dataset"`; by default both are tried, in this order.
        revision (`str`, *optional*): A branch, a tag or a commit.
        token (`str` or `bool`, *optional*): As for `huggingface_hub`.
        cache_dir (`str` or `Path`, *optional*): As for `huggingface_hub`.
        local_files_only (`bool`, *optional*, defaults to `False`): Do not ask the network.

    Returns:
        `tuple[HubFiles, str]`: The source, and the name that was found.

    Raises:
        FileNotFoundError: If none of the files is there, or there is no such place.
        HubArtefactError: If a description is far too large.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        for name in descriptions:
            if (folder / name).is_file():
                return HubFiles(folder, folder.resolve(), cache_dir=cache_dir), name
        raise FileNotFoundError(f"{folder} holds none of {', '.join(descriptions)}: nothing was published there.")
    if not _REPO_ID.fullmatch(str(name_or_path)):
        raise FileNotFoundError(f"{name_or_path} is no directory here, and no repository's name ('owner/name').")
    repo_id, offline = str(name_or_path), local_files_only or bool(constants.HF_HUB_OFFLINE)
    reasons: list[Exception] = []
    kinds: tuple[RepoType, ...] = (repo_type,) if repo_type else ("model", "dataset")
    for kind in kinds:
        for name in descriptions:
            arguments: dict[str, Any] = {"repo_type": kind, "revision": revision, "cache_dir": cache_dir}
            try:
                if not offline:
                    _refuse_large(repo_id, name, {**arguments, "token": token})
                path = hf_hub_download(repo_id, name, **arguments, token=token, local_files_only=offline)
            except (EntryNotFoundError, RepositoryNotFoundError) as error:
                reasons.append(error)
                if isinstance(error, RepositoryNotFoundError):
                    break
                continue
            root = Path(path).parents[len(PurePosixPath(name).parts) - 1]
            place = (repo_id, kind, root.name, token, cache_dir, offline)
            return HubFiles(root, root.parents[1].resolve(), *place), name
    raise FileNotFoundError(
        f"{repo_id} (revision {revision or 'main'}) holds none of {', '.join(descriptions)}"
        f"{' in the cache' if offline else ' on the Hub'}: {str(reasons[-1]).strip().splitlines()[-1]}"
    ) from reasons[-1]


def _refuse_large(repo_id: str, name: str, arguments: dict[str, Any]) -> None:
    try:
        planned = hf_hub_download(repo_id, name, dry_run=True, **arguments)
    except (OfflineModeIsEnabled, LocalEntryNotFoundError):
        return  # no network: what the cache holds is checked when it is read
    if planned.file_size > _LARGEST_DESCRIPTION:
        raise HubArtefactError(
            f"{name} of {repo_id} has {human_bytes(planned.file_size)}; a description has at most "
            f"{human_bytes(_LARGEST_DESCRIPTION)}: it is not downloaded."
        )
