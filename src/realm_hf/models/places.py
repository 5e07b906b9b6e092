"""What lies at a path that a user gives, and where the model of it is.

A run directory, its `model` folder, a saved retriever and a publication are told apart by the file that each of them
writes last. Nothing is imported here, so that models and retriever can both ask.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from os import PathLike
from pathlib import Path

__all__ = [
    "ANSWERING",
    "CONFIG_FILE",
    "DESCRIPTION",
    "MODEL_FOLDER",
    "PRE_TRAINING",
    "PUBLICATION",
    "RUN_FILE",
    "TOKENIZER_FOLDER",
    "architectures_in",
    "check_kind",
    "find_model",
    "is_run",
    "what_is",
]

RUN_FILE = "run.json"
"""In a run directory, from its beginning."""
DESCRIPTION = "realm_retriever.json"
"""Of a published retriever: what it consists of."""
PUBLICATION = "realm_publication.json"
"""In a model's repository: which retriever belongs to it, at which commit, and the fingerprints of both."""
MODEL_FOLDER, TOKENIZER_FOLDER = "model", "tokenizer"
CONFIG_FILE = "config.json"
PRE_TRAINING, ANSWERING = "RealmForPreTraining", "RealmForOpenQA"

_KINDS = {
    "retriever.json": "a saved retriever",
    PUBLICATION: "a published model",
    DESCRIPTION: "a published retriever",
    "passages.json": "a passage store",
    "generation.json": "an index generation of a run",
    "snapshot.json": "a snapshot of a run's passage tower",
    "state.json": "a checkpoint of a run, to resume from",
    "block_records.npy": "a retriever of transformers 4",
}
_FINE_TUNE = (
    "Fine-tune it first: `RealmForOpenQA.from_pretraining({place!r})` is where that starts, and "
    "`realm-hf finetune --model_name_or_path {place}` does it."
)

_PRE_TRAINED = f"a pre-trained model, {PRE_TRAINING}, which cannot answer yet: it fills in masked words. {_FINE_TUNE}"
_FINE_TUNED = (
    f"a fine-tuned model ({ANSWERING}), whose encoder has become a reader: load it with "
    f"`{ANSWERING}.from_pretrained`, or give the pre-trained model that it began with."
)
_ENCODER = "an encoder alone (RealmKnowledgeAugEncoder), which has learned no retrieval: "
_TOWER = "one tower alone (RealmEmbedder), without an encoder: "
_READER = f"a reader alone (RealmReader): give the {ANSWERING} that it is a part of."
_START = f"`{PRE_TRAINING}.from_bert({{place!r}})` starts pre-training from it."
_WHOLE = f"give the {PRE_TRAINING} that it is a part of."
_REFUSED = {
    (ANSWERING, PRE_TRAINING): _PRE_TRAINED,
    ("RealmReader", PRE_TRAINING): _PRE_TRAINED,
    (PRE_TRAINING, ANSWERING): _FINE_TUNED,
    ("RealmKnowledgeAugEncoder", ANSWERING): _FINE_TUNED,
    ("RealmScorer", ANSWERING): f"a fine-tuned model ({ANSWERING}), which embeds questions only: the tower of its "
    "passages is `RealmRetriever.from_pretrained({place!r}).embedder`.",
    **{
        (wanted, "RealmKnowledgeAugEncoder"): _ENCODER + _START
        for wanted in (PRE_TRAINING, ANSWERING, "RealmEmbedder", "RealmScorer", "RealmReader")
    },
    **{
        (wanted, "RealmEmbedder"): _TOWER + _WHOLE
        for wanted in (PRE_TRAINING, "RealmKnowledgeAugEncoder", "RealmReader", ANSWERING)
    },
    ("RealmScorer", "RealmEmbedder"): "one tower alone (RealmEmbedder): "
    "`RealmScorer(embedder.config, query_embedder=...)` makes a scorer of two.",
    **{
        (wanted, "RealmReader"): _READER
        for wanted in (PRE_TRAINING, ANSWERING, "RealmKnowledgeAugEncoder", "RealmEmbedder", "RealmScorer")
    },
    ("RealmEmbedder", "RealmScorer"): "two towers (RealmScorer): `RealmScorer.from_pretrained({place!r}).embedder` is "
    "the passages', `.query_embedder` the questions'.",
    **{
        (wanted, "RealmScorer"): "two towers (RealmScorer), without an encoder: " + _WHOLE
        for wanted in (PRE_TRAINING, ANSWERING, "RealmKnowledgeAugEncoder", "RealmReader")
    },
}
"""What a checkpoint is, by the class that is wanted and the class that it holds."""


def is_run(folder: Path) -> bool:
    """Whether a training run writes, or wrote, into this directory."""
    return (folder / RUN_FILE).is_file()


def architectures_in(folder: Path) -> list[str]:
    """The model classes that a directory's `config.json` names; empty where there is none."""
    path = folder / CONFIG_FILE
    if not path.is_file():
        return []
    content = json.loads(path.read_text(encoding="utf-8"))
    return list(content.get("architectures") or [])


def what_is(folder: Path) -> str:
    """
    A directory in words, for an error: `"a run of pre-training without a model yet"`.

    Args:
        folder (`Path`): Any path.
    """
    if not folder.is_dir():
        return "no directory"
    named = architectures_in(folder)
    if is_run(folder):
        kind = {PRE_TRAINING: "pre-training", ANSWERING: "fine-tuning"}.get("".join(named), "training")
        finished = (folder / MODEL_FOLDER / CONFIG_FILE).is_file()
        return f"a run of {kind}" if finished else f"a run of {kind} that has left no model yet"
    found = [words for name, words in _KINDS.items() if (folder / name).is_file()]
    if named:
        found.insert(0, f"a saved {' and '.join(named)}")
    return " with ".join(found) or "a directory without anything of REALM's in it"


def find_model(place: str | PathLike[str], wanted: str) -> str | PathLike[str]:
    """
    Where the model lies that somebody means: the `model` folder of a run, else the place itself.

    Args:
        place (`str` or `PathLike`): What was given to `from_pretrained`.
        wanted (`str`): The class that is loaded.

    Returns:
        What transformers loads from.

    Raises:
        FileNotFoundError: It is a run that has left no model yet, or a directory of ours that never holds one.
    """
    if not Path(place).is_dir():
        return place
    folder = Path(place)
    if is_run(folder):
        folder = folder / MODEL_FOLDER
        if not (folder / CONFIG_FILE).is_file():
            raise FileNotFoundError(
                f"{place} is {what_is(Path(place))}: it is written to {folder} at the end of training. Wait for it, "
                "or resume the run (`--resume_from_checkpoint true`)."
            )
    elif not (folder / CONFIG_FILE).is_file() and any((folder / name).is_file() for name in _KINDS):
        raise FileNotFoundError(
            f"{place} is {what_is(folder)}, without a model: give {wanted}.from_pretrained a run directory, its "
            f"`{MODEL_FOLDER}` folder, or what `save_pretrained` of a model wrote."
        )
    return folder if is_run(Path(place)) else place


def check_kind(wanted: str, found: Sequence[str], place: str, model_type: str | None = None) -> None:
    """
    Refuse a checkpoint that lacks a part of the model that is loaded: that part would be random.

    Args:
        wanted (`str`): The class that is loaded.
        found (sequence of `str`): The classes that the configuration names.
        place (`str`): Where it is, for the message.
        model_type (`str`, *optional*): What the configuration says of itself.

    Raises:
        ValueError: It does. The message says what the checkpoint is for.
    """
    if model_type not in (None, "realm"):
        start = f"from_bert({place!r})" if model_type == "bert" else "from_encoders"
        raise ValueError(
            f"{place} is a checkpoint of type {model_type!r}, not one of REALM's: `{wanted}.{start}` starts from it."
        )
    if wanted in found:
        return
    for kind in found:
        if (wanted, kind) in _REFUSED:
            raise ValueError(f"{place} holds " + _REFUSED[wanted, kind].format(place=place))
