"""An old checkpoint's directory: which files are in it, and where its passages' embeddings are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError

from realm_hf.legacy.block_records import BLOCK_RECORDS_FILE
from realm_hf.storage.checkpoint_tensors import CheckpointRefusedError, StoredTensor, find_tensor
from realm_hf.storage.files import read_json
from realm_hf.untrusted.checks import check_name

__all__ = ["EMBEDDINGS_NAME", "find_block_embeddings", "old_checkpoint_folder", "weights_files"]

EMBEDDINGS_NAME = "block_emb"
_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_FILES = [BLOCK_RECORDS_FILE, *_WEIGHTS, *(f"{name}.index.json" for name in _WEIGHTS), "*-of-*.bin"]
_FILES += ["*-of-*.safetensors", "config.json", "vocab.txt", "tokenizer*.json", "special_tokens_map.json"]


def old_checkpoint_folder(
    name_or_path: str | Path, *, revision: str | None = None, needs: str = BLOCK_RECORDS_FILE, **hub: Any
) -> Path | None:
    """
    The directory of an old checkpoint; one on the Hub is downloaded into the cache.

    Args:
        name_or_path (`str` or `Path`): A directory, or `"google/realm-..."`.
        revision (`str`, *optional*): A branch, tag or commit.
        needs (`str`, *optional*, defaults to `"block_records.npy"`): A file that it must have.
        hub (*optional*): `token`, `cache_dir`, `local_files_only`, as for `huggingface_hub`.

    Returns:
        `Path`, or `None` if there is no such place or it lacks that file.
    """
    folder = Path(name_or_path).expanduser()
    if folder.is_dir():
        return folder if (folder / needs).exists() else None
    try:
        hf_hub_download(str(name_or_path), needs, revision=revision, **hub)
    except (EntryNotFoundError, LocalEntryNotFoundError, RepositoryNotFoundError, ValueError):
        return None
    return Path(snapshot_download(str(name_or_path), revision=revision, allow_patterns=_FILES, **hub))


def weights_files(folder: Path) -> list[Path]:
    """
    The files with the weights of a checkpoint, whole or in parts; none if there are none.

    Raises:
        HubArtefactError: If the list of parts names a file outside the directory.
        CheckpointRefusedError: If the list of parts is damaged.
    """
    for name in _WEIGHTS:
        if (folder / name).is_file():
            return [folder / name]
        parts = folder / f"{name}.index.json"
        if parts.is_file():
            listed = read_json(parts, CheckpointRefusedError).get("weight_map")
            if not isinstance(listed, dict):
                raise CheckpointRefusedError(f"{parts} has no weight_map: get it again.")
            return [folder / check_name(part) for part in sorted(set(listed.values()), key=str)]
    return []


def find_block_embeddings(folder: Path) -> StoredTensor | None:
    """
    Where the passages' embeddings lie: the buffer `block_emb` of the former `RealmForOpenQA`.

    Args:
        folder (`Path`): The checkpoint's directory.

    Returns:
        [`StoredTensor`] of shape `[num_block_records, D]`, or `None` if no weights file has it.

    Raises:
        CheckpointRefusedError: If a weights file is damaged, or the tensor is no matrix.
    """
    for file in weights_files(folder):
        found = find_tensor(file, EMBEDDINGS_NAME)
        if found is None:
            continue
        if len(found.shape) != 2 or 0 in found.shape:
            raise CheckpointRefusedError(f"{file}: {EMBEDDINGS_NAME} has shape {list(found.shape)}, not [N, D].")
        return found
    return None
