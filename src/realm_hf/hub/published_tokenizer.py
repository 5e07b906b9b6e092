"""A published tokenizer: what it may be is compared first, then it is tried in a child process, then it is loaded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from realm_hf.data.vocabulary import tokenizer_fingerprint
from realm_hf.hub.belonging import check_fingerprint
from realm_hf.hub.hub_files import HubFiles
from realm_hf.hub.manifest import HubManifest
from realm_hf.hub.own_copies import own_copy
from realm_hf.hub.tokenizer_bounds import LARGEST_TOKENIZER, check_tokenizer, kept_configuration
from realm_hf.storage.files import write_json
from realm_hf.untrusted.checks import HubArtefactError, human_bytes
from realm_hf.untrusted.limited import run_limited
from realm_hf.untrusted.refusing import refusing

__all__ = ["check_tokenizer_files", "load_published_tokenizer"]

_TOKENIZER, _CONFIGURATION = "tokenizer.json", "tokenizer_config.json"
_NAMES = {_TOKENIZER, _CONFIGURATION, "special_tokens_map.json", "vocab.txt", "vocab.json", "merges.txt"}
_PROBE_SECONDS = 30
"""Processor time for the texts of the probe, which take a tenth of a second."""
_FREE_MEMORY = 512 << 20
_MEMORY_FOR_EACH_BYTE = 32
"""Beside that, for each byte of the tokenizer's file: a vocabulary takes some ten times its text."""


def load_published_tokenizer(
    source: HubFiles, manifest: HubManifest, *, force: bool
) -> PreTrainedTokenizerBase | None:
    """
    The tokenizer of a publication, from a copy in the cache; `None` if it has none. No code of it is run.

    Args:
        source ([`HubFiles`]): Where it is.
        manifest ([`HubManifest`]): Its description.
        force (`bool`): Warn of another tokenizer than the published one instead of refusing it.

    Raises:
        HubArtefactError: It is damaged, of a kind that is not read, takes too much time or memory, or is another one.
    """
    if not manifest.below("tokenizer"):
        return None
    what = f"The tokenizer of {source.label}"
    folder = own_copy(source, manifest, "tokenizer", lambda folder: _prepare(folder, what))
    with refusing(what):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        found = tokenizer_fingerprint(tokenizer)
    check_fingerprint(what, manifest.fingerprints.get("tokenizer"), found, force=force)
    return tokenizer


def check_tokenizer_files(folder: Path) -> dict[str, Any]:
    """
    Compare a tokenizer's files with what is read from strangers, as publishing does before anything is sent.

    Args:
        folder (`Path`): What `save_pretrained` of a tokenizer wrote.

    Returns:
        `dict[str, Any]`: The entries of its `tokenizer_config.json` that are read.

    Raises:
        HubArtefactError: Says what is not read.
    """
    most = human_bytes(LARGEST_TOKENIZER)
    for path in folder.iterdir():
        size = path.stat().st_size
        if size > LARGEST_TOKENIZER:
            raise HubArtefactError(f"{path.name} has {human_bytes(size)}; at most {most} are read")
    if not (folder / _TOKENIZER).is_file():
        raise HubArtefactError(f"it has no {_TOKENIZER}: only fast tokenizers are published")
    check_tokenizer(_read(folder / _TOKENIZER))
    return kept_configuration(_read(folder / _CONFIGURATION))


def _prepare(folder: Path, what: str) -> None:
    with refusing(what):
        try:
            kept = check_tokenizer_files(folder)
        except HubArtefactError as error:
            raise HubArtefactError(f"{what} cannot be loaded: {error}.") from error
    for path in folder.iterdir():
        if path.name not in _NAMES:
            path.unlink()
    (folder / _CONFIGURATION).unlink()  # it may be the Hub cache's own file under another name
    write_json(folder / _CONFIGURATION, kept, durable=False)
    run_limited(
        Path(__file__).with_name("tokenizer_probe_child.py"),
        [folder / _TOKENIZER],
        libraries=["tokenizers"],
        memory=_FREE_MEMORY + _MEMORY_FOR_EACH_BYTE * (folder / _TOKENIZER).stat().st_size,
        seconds=_PROBE_SECONDS,
        what=what,
    )


def _read(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise TypeError(f"{path.name} holds a {type(content).__name__}, not an object")
    return content
