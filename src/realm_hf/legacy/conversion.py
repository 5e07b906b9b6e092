"""A checkpoint of transformers 4 as a directory of this release: model, tokenizer, passages, embeddings and index."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from transformers import PreTrainedModel

from realm_hf.legacy.block_records import BLOCK_RECORDS_FILE, BlockRecords
from realm_hf.legacy.checkpoint import find_block_embeddings, old_checkpoint_folder, weights_files
from realm_hf.legacy.new_layout import Part, write_new_layout
from realm_hf.models.configuration_realm import RealmConfig
from realm_hf.models.modeling_embedder import RealmEmbedder, RealmScorer
from realm_hf.models.modeling_encoder import RealmKnowledgeAugEncoder
from realm_hf.models.modeling_reader import RealmReader
from realm_hf.models.modeling_realm_qa import RealmForOpenQA
from realm_hf.models.tokenization_realm import RealmTokenizer
from realm_hf.storage.checkpoint_tensors import check_archive
from realm_hf.storage.directories import StagedDirectory
from realm_hf.storage.errors import explain_os_errors

__all__ = ["convert"]

_MODELS: dict[str, type[PreTrainedModel]] = {
    model.__name__: model
    for model in (RealmEmbedder, RealmScorer, RealmKnowledgeAugEncoder, RealmReader, RealmForOpenQA)
}


def convert(
    old: str | Path,
    new: str | Path,
    *,
    revision: str | None = None,
    factory: str = "Flat",
    train_size: int | None = None,
    dtype: Literal["float32", "float16"] = "float32",
    errors: Literal["strict", "replace"] = "strict",
    embedder: str | Path | None = None,
    **hub: Any,
) -> list[Part]:
    """
    Convert a checkpoint of transformers 4.57.6 or before.

    Args:
        old (`str` or `Path`): A directory, or `"google/realm-..."`: one of the five model classes, with or without
            tokenizer; a `RealmForOpenQA` with `block_records.npy` also becomes a retriever.
        new (`str` or `Path`): The directory to make; it appears when all is written.
        revision (`str`, *optional*): A branch, tag or commit of `old`.
        factory (`str`, *optional*, defaults to `"Flat"`): The index, see [`build_index`]. "Flat" is streamed and
            gives the old model's answers; others are held in memory while they are built.
        train_size (`int`, *optional*): See [`build_index`].
        dtype (`str`, *optional*, defaults to `"float32"`): Of the stored embeddings.
        errors (`str`, *optional*, defaults to `"strict"`): `"replace"` puts U+FFFD where records are no UTF-8.
        embedder (`str` or `Path`, *optional*): The passage tower, which an old QA checkpoint lacks: with it passages
            can be added, and the null passage embedded.
        hub (*optional*): `token`, `cache_dir`, `local_files_only`, as for `huggingface_hub`.

    Returns:
        `list[Part]`: What was streamed, and how fast; empty without records.

    Raises:
        FileNotFoundError: If there is no such checkpoint.
        FileExistsError: If `new` already holds something.
        ValueError: If files are damaged, hold what they should not, or do not belong together.
    """
    folder = old_checkpoint_folder(old, revision=revision, needs="config.json", **hub)
    if folder is None:
        raise FileNotFoundError(f"{old} holds no checkpoint: config.json is missing, or there is no such place.")
    parts: list[Part] = []
    with explain_os_errors("write the converted checkpoint into", Path(new)), StagedDirectory(new) as staged:
        if (folder / BLOCK_RECORDS_FILE).exists():
            embeddings = find_block_embeddings(folder)
            if embeddings is None:
                raise ValueError(
                    f"{folder} has {BLOCK_RECORDS_FILE}, but no embeddings (`block_emb`) in its weights: put the "
                    "weights of the RealmForOpenQA that it belongs to beside it."
                )
            tower = None if embedder is None else RealmEmbedder.from_pretrained(embedder)
            parts = write_new_layout(
                staged.path,
                BlockRecords(folder / BLOCK_RECORDS_FILE),
                embeddings,
                factory=factory,
                dtype=dtype,
                errors=errors,
                train_size=train_size,
                write_embedder=None if tower is None else tower.save_pretrained,
            )
        _load_model(folder).save_pretrained(staged.path)
        if any((folder / name).is_file() for name in ("vocab.txt", "tokenizer.json")):
            RealmTokenizer.from_pretrained(folder).save_pretrained(staged.path)
    return parts


def _load_model(folder: Path) -> PreTrainedModel:
    names = RealmConfig.from_pretrained(folder).architectures or []
    model = next((_MODELS[name] for name in names if name in _MODELS), None)
    if model is None:
        raise ValueError(
            f"{folder / 'config.json'} names the architectures {names}; convertible are {', '.join(_MODELS)}: write "
            "the right one into `architectures`."
        )
    files = weights_files(folder)
    if not files:
        raise FileNotFoundError(f"{folder} has no weights: pytorch_model.bin or model.safetensors is needed.")
    for file in files:
        if file.suffix == ".bin":
            check_archive(file)
    return model.from_pretrained(folder)
