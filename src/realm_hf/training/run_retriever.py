"""What a run leaves for whoever loads it by its name: the retriever beside RUN/model, and which model it trains."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from realm_hf.data.passages.store import PassageStore
from realm_hf.generations.store import GenerationStore
from realm_hf.knowledge.files import link_retriever_files
from realm_hf.models.places import CONFIG_FILE, MODEL_FOLDER
from realm_hf.runs.snapshots import load_snapshot, snapshot_name
from realm_hf.storage.directories import StagedDirectory
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import write_json
from realm_hf.training.checkpoints import save_model

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from realm_hf.runs.directory import RunDirectory
    from realm_hf.training.loop import TrainingLoop


def save_run_retriever(run: RunDirectory, name: str, folder: Path) -> None:
    """Make a retriever of a generation in the folder of the model whose tower embeds the queries.

    Passages, embeddings and index are not copied where the file system has hard links. The passage tower goes with
    them, unless its snapshot is gone; without it nothing but adding passages and the null passage's share is missed.

    Args:
        run ([`RunDirectory`]): The run.
        name (`str`): The generation.
        folder (`pathlib.Path`): Where model and tokenizer are saved.

    Raises:
        GenerationError: The generation cannot be opened.
        OSError: The disk is full or read-only.
    """
    with GenerationStore(run.index).open(name) as generation:
        embedder = None
        with suppress(OSError):
            embedder = load_snapshot(run, snapshot_name(generation.info.snapshot_step, generation.info.epoch))
        link_retriever_files(folder, PassageStore.load(run.passages), generation, embedder)


def name_model(run: RunDirectory, model: PreTrainedModel, place: Path | None = None) -> None:
    """Write RUN/config.json, the configuration of the model that the run trains.

    With it transformers' Auto classes and `pipeline` take the run directory for RUN/model, and a run that has left no
    model yet can say what it is.

    Args:
        run ([`RunDirectory`]): The run.
        model ([`~transformers.PreTrainedModel`]): What it trains.
        place (`pathlib.Path`, *optional*): The trainer's own: one that was replaced writes nothing any more.
    """
    content = json.loads(model.config.to_json_string())
    write_json(run.root / CONFIG_FILE, {**content, "architectures": [type(model).__name__]}, place=place)


@contextmanager
def staged_model(trainer: TrainingLoop) -> Iterator[Path]:
    """A folder to write a model into, which becomes RUN/model, whole or not at all, when the block ends well; on the
    main process.

    Raises:
        OSError: The disk is full or read-only.
    """
    final = trainer.directory / MODEL_FOLDER
    with (
        explain_os_errors("write the model into", final),
        StagedDirectory(final, replace=True, place=trainer.place) as staged,
    ):
        yield staged.path


def save_trained_model(trainer: TrainingLoop, tokenizer: PreTrainedTokenizerBase) -> Path:
    """Write RUN/model of a training that leaves only checkpoints, such as ICT, whole or not at all.

    Args:
        trainer ([`TrainingLoop`]): When its training is done; on the main process.
        tokenizer ([`~transformers.PreTrainedTokenizerBase`]): The model's.

    Returns:
        The folder.

    Raises:
        OSError: The disk is full or read-only.
        TrainingDiverged: A weight is NaN or infinite.
    """
    with staged_model(trainer) as folder:
        save_model(trainer.model, folder)
        tokenizer.save_pretrained(folder)
    return trainer.directory / MODEL_FOLDER
