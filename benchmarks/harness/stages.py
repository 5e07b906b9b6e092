"""Trainings that build on each other, each done once: what two arms share is trained for the first and found again.

A stage is a folder with the model that it left, its facts, the log and, where it searched one, its index. Its name
ends in a hash of its settings and of the stages before it, so that other settings are another stage. A stage that was
stopped goes on from its checkpoint.
"""

from __future__ import annotations

import json
import shutil
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from realm_hf import RealmForPreTraining
from realm_hf.runs.records import RunRecord, read_log, read_run
from realm_hf.storage.files import json_sha256, write_json

CURVE = ("loss", "retrieval_utility", "null_mass", "entropy", "staleness_steps")
_KEPT = ("log.jsonl", "summary.json", "examples.json")
INDEX = "index"
_POINTS = 40


@dataclass(frozen=True)
class Stage:
    """What a training left.

    Args:
        folder: Its folder.
        key: Hash of what decided it.
        facts: What the training said of itself, with the `seconds` that it took.
    """

    folder: Path
    key: str
    facts: dict[str, Any]

    def model(self) -> RealmForPreTraining:
        """The model that it left."""
        return RealmForPreTraining.from_pretrained(self.folder / "model")

    def log(self) -> RunRecord:
        """Its log."""
        return read_run(self.folder)


class Stages:
    """The stages of one program.

    Args:
        root: Their folder.
    """

    def __init__(self, root: Path):
        self.root = root

    def get(
        self,
        name: str,
        seed: int,
        before: Stage | None,
        settings: dict[str, Any],
        train: Callable[[Path], tuple[PreTrainedModel, dict[str, Any]]],
    ) -> Stage:
        """A stage, trained unless it is there.

        Args:
            name: What it is.
            seed: Of its draws.
            before: The stage that it goes on from.
            settings: What else decides it.
            train: Trains in a run directory, in which an earlier call may have left checkpoints; the model and facts.
        """
        decided = {"name": name, "seed": seed, "before": before and before.key, **settings}
        key = json_sha256(decided)[:12]
        folder = self.root / f"{name}-{seed}-{key}"
        done = folder / "stage.json"
        if not done.is_file():
            run = folder / "run"
            model, facts = train(run)
            model.save_pretrained(folder / "model")
            for kept in _KEPT:
                if (run / kept).is_file():
                    shutil.copy(run / kept, folder / kept)
            if (run / INDEX).is_dir():
                if (folder / INDEX).is_dir():
                    shutil.rmtree(folder / INDEX)  # Of a call that ended here.
                shutil.move(run / INDEX, folder / INDEX)
            write_json(done, {"settings": decided, "facts": facts})
            shutil.rmtree(run)
        return Stage(folder, key, json.loads(done.read_text(encoding="utf-8"))["facts"])


def seconds_of(run: Path) -> float:
    """Seconds that a run took: its steps, each at their median, and its indexes; evaluations are not counted.

    One arm trains for the seconds of another: so a run that was stopped for a while, or had other work beside it at
    times, counts as one that had not.
    """
    log = list(read_log(run / "log.jsonl"))
    # A step that ends in a new index took as long as building it.
    plain = [record["step_seconds"] for record in log if "step_seconds" in record and not record.get("events")]
    indexes = [record["step_seconds"] for record in log if "step_seconds" in record and record.get("events")]
    indexes += [record["index_seconds"] for record in log if "index_seconds" in record]
    return round((statistics.median(plain) * len(plain) if plain else 0.0) + sum(indexes), 3)


def curve(record: RunRecord) -> list[dict[str, float]]:
    """Means of the figures of training over pieces of the run, forty at most, and what was evaluated, by step."""
    points = []
    for piece in np.array_split(np.array(record.steps, object), min(_POINTS, len(record.steps))):
        found = {name: [step[name] for step in piece if step.get(name) is not None] for name in CURVE}
        points.append({"step": piece[-1]["step"], **{n: round(float(np.mean(v)), 4) for n, v in found.items() if v}})
    return points


def evaluations(record: RunRecord, names: Sequence[str]) -> list[dict[str, float]]:
    """What was evaluated while a run went on, by step; those of the figures that there are."""
    return [
        {"step": each["step"], **{name: round(each[f"eval_{name}"], 4) for name in names if f"eval_{name}" in each}}
        for each in record.evaluations
    ]
