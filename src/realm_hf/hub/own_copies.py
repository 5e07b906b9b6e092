"""A publication's files where only this user changes them, hashed where they lie then.

Files of the Hub are in the user's own cache and get a second name there. Those of a directory are somebody else's: he
may change them after they were hashed, and what is mapped would change with them. They are copied once, at about 1
GB/s; hashing them again at every load was rejected: it takes as long each time, and what changes afterwards is mapped
all the same.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from huggingface_hub import cached_assets_path

from realm_hf.hub.hub_files import HubFiles
from realm_hf.hub.manifest import HubManifest
from realm_hf.storage.directories import StagedDirectory
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import file_sha256, json_sha256, link_or_copy, write_json
from realm_hf.untrusted.checks import HubArtefactError

__all__ = ["COMPLETE", "check_hash", "own_copy", "place_of", "take", "write_once"]

COMPLETE = "complete.json"
"""Written last into a directory of the cache."""
_NAMESPACE = "publications"  # earlier versions had "retrievers", with second names of the publishers' own files


def place_of(source: HubFiles, name: str) -> Path:
    """A directory of the cache for what has that name, made of a hash."""
    assets = None if source.cache_dir is None else Path(source.cache_dir)
    return cached_assets_path("realm_hf", namespace=_NAMESPACE, subfolder=name, assets_dir=assets)


def check_hash(path: Path, expected: str, name: str | Path | None = None) -> None:
    """Raise a `HubArtefactError` if a file has another SHA-256; `name` is what it is called, its path by default."""
    if file_sha256(path) != expected:
        raise HubArtefactError(
            f"{name or path} does not have the SHA-256 that its description names ({expected[:16]}...): it is damaged "
            "or was changed; remove it and load again."
        )


def take(source: HubFiles, path: Path, target: Path) -> None:
    """Have a fetched file under another name: linked if it is in the Hub's cache here, else copied."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.repo_id is not None:
        link_or_copy(path, target)
    else:
        shutil.copyfile(path, target)


def write_once(place: Path, what: str, write: Callable[[Path], None]) -> None:
    """
    Make a directory of the cache; nothing is done if another process is faster.

    Args:
        place (`Path`): Of [`place_of`]; `COMPLETE` is not in it yet.
        what (`str`): What is done, for an error of the disk: "write the passages into".
        write (`Callable[[Path], None]`): Fills the directory that becomes `place`; writes `COMPLETE` last.

    Raises:
        OSError: If the disk has too little room, in words.
    """
    with explain_os_errors(what, place):
        try:
            with StagedDirectory(place) as staged:
                write(staged.path)
        except FileExistsError:  # another process was faster
            if not (place / COMPLETE).exists():
                raise


def own_copy(source: HubFiles, manifest: HubManifest, part: str, prepare: Callable[[Path], None]) -> Path:
    """
    A folder of a publication (its tokenizer, its passage tower) in the cache, made once for each content.

    Args:
        source ([`HubFiles`]): Where it is.
        manifest ([`HubManifest`]): Its description.
        part (`str`): The folder.
        prepare (`Callable[[Path], None]`): Refuses it, or makes it fit to be loaded; called once.

    Returns:
        `Path`: The folder in the cache.

    Raises:
        HubArtefactError: If a file is missing or was changed, or `prepare` refuses it.
    """
    names = manifest.below(part)
    content = json_sha256({name: asdict(manifest.files[name]) for name in names})
    place = place_of(source, f"{part}-{content[:40]}")
    if not (place / COMPLETE).exists():
        paths = source.fetch(names, manifest.sizes())

        def write(folder: Path) -> None:
            for name, path in paths.items():
                take(source, path, folder / name)
                check_hash(folder / name, manifest.files[name].sha256, path)
            prepare(folder / part)
            write_json(folder / COMPLETE, {"content": content}, durable=False)

        write_once(place, f"copy the {part} into", write)
    return place / part
