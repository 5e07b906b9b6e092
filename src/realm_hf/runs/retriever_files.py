"""A run as a retriever: its newest generation, or any that it has kept, with the towers that belong to it."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from realm_hf.data.passages.build import PassageStore
from realm_hf.generations.files import map_files
from realm_hf.generations.manifest import GenerationInfo, newest_generation
from realm_hf.generations.store import GenerationStore
from realm_hf.knowledge.files import RetrieverFiles
from realm_hf.models.places import ANSWERING, MODEL_FOLDER, PRE_TRAINING, architectures_in, what_is
from realm_hf.storage.files import read_json

__all__ = ["open_run_index"]


def open_run_index(
    run: Path, name: str | None = None, *, mmap: bool = True, verify: Literal["sizes", "sha256"] = "sizes"
) -> RetrieverFiles:
    """
    Passages, newest generation and towers of a run, as they are now.

    The query tower is that of RUN/model, or, while pre-training has left none, that of the generation's snapshot where
    both towers are one. A run of fine-tuning has none before its end: the snapshot is of the passage tower.

    Args:
        run (`Path`): The run directory.
        name (`str`, *optional*): Another generation than the newest. Its query tower is its snapshot's or none.
        mmap (`bool`, *optional*, defaults to `True`): Map embeddings and index instead of reading them.
        verify (`str`, *optional*, defaults to `"sizes"`): As for [`GenerationStore.open`].

    Returns:
        [`RetrieverFiles`]: They stay readable when the generation is collected.

    Raises:
        FileNotFoundError: The run has no generation yet, or it was fine-tuned without `save_retriever`.
        GenerationError: The generation cannot be opened.
    """
    model = run / MODEL_FOLDER
    if name is None and ANSWERING in architectures_in(model):
        raise FileNotFoundError(
            f"{model} has no retriever beside the model, so nothing says which index it answers from: load that of "
            "the run whose index was taken over, or fine-tune with `save_retriever`, to the end."
        )
    store = GenerationStore(run / "index")
    newest = newest_generation(store.list())
    if newest is None:
        raise FileNotFoundError(
            f"{run} is {what_is(run)}, and no index either: it is built before the first step of training. Wait for "
            f"it, or build one with `realm-hf build-index --once {run}`."
        )
    with store.open(newest.name if name is None else name, verify=verify) as generation:
        info, embeddings, index = generation.info, generation.embeddings, generation.index
        if not mmap:
            embeddings, index = map_files(generation.path, info, mmap=False)
    snapshot = _snapshot_of(run, info)
    query = snapshot if _is_shared(run, snapshot) else None
    if name is None and PRE_TRAINING in architectures_in(model):
        query = model
    return RetrieverFiles(PassageStore.load(run / "passages"), index, embeddings, info.name, snapshot, query)


def _snapshot_of(run: Path, generation: GenerationInfo) -> Path | None:
    """The snapshot that a generation was built from, if the run still has it."""
    for path in sorted((run / "snapshots").glob("*/snapshot.json")):
        if read_json(path).get("fingerprint") == generation.embedder_fingerprint:
            return path.parent
    return None


def _is_shared(run: Path, snapshot: Path | None) -> bool:
    """Whether a snapshot's tower embeds queries, too: of pre-training, and unless there are two towers."""
    if snapshot is None or PRE_TRAINING not in architectures_in(run):
        return False
    return bool(read_json(snapshot / "snapshot.json")["config"].get("share_embedders", True))
