"""What a run recorded of itself, for its card. What was not recorded is not said."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from realm_hf.generations.manifest import MANIFEST_FILE
from realm_hf.storage.files import read_json

__all__ = ["RecordedRun", "read_run"]

_FIGURES = ("loss", "retrieval_utility", "null_mass", "masked_tokens", "lr")


@dataclass(frozen=True)
class RecordedRun:
    """
    The facts of one training run.

    Args:
        steps (`int`, *optional*): Optimizer steps taken.
        seconds (`dict[str, float]`): Seconds by phase.
        evaluation (`dict[str, float]`): Held-out figures after the last step.
        recall (`dict[str, dict[str, float]]`): Recall@k in percent, by stage.
        generations (`list[dict]`): The generations that were served, each with `snapshot_step` and `staleness_steps`.
        generation (`dict`): `generation.json` of the last one.
        packages (`dict[str, str]`): Versions.
        last_step (`dict[str, float]`): The figures of the last training record.
        best_learning_rate (`float`, *optional*): The largest learning rate of the log.
    """

    steps: int | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    evaluation: dict[str, float] = field(default_factory=dict)
    recall: dict[str, dict[str, float]] = field(default_factory=dict)
    generations: list[dict[str, Any]] = field(default_factory=list)
    generation: dict[str, Any] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    last_step: dict[str, float] = field(default_factory=dict)
    best_learning_rate: float | None = None


def read_run(run: str | Path) -> RecordedRun:
    """
    Read `summary.json`, `run.json`, `log.jsonl` and the last generation's manifest of a run directory.

    Args:
        run (`str` or `Path`): The run's `output_dir`.

    Raises:
        FileNotFoundError: If none of the files is there.
        ValueError: If one is damaged.
    """
    root = Path(run)
    paths = {name: root / name for name in ("summary.json", "run.json", "log.jsonl")}
    if not any(path.is_file() for path in paths.values()):
        raise FileNotFoundError(f"{root} holds no {', '.join(paths)}: name the `output_dir` of a training run.")
    summary = read_json(paths["summary.json"]) if paths["summary.json"].is_file() else {}
    settings = read_json(paths["run.json"]) if paths["run.json"].is_file() else {}
    records = _records(paths["log.jsonl"])
    trained = [record for record in records if "loss" in record]
    rates = [record["lr"] for record in trained if _is_number(record.get("lr"))]
    last = {name: trained[-1][name] for name in _FIGURES if _is_number(trained[-1].get(name))} if trained else {}
    manifest = root / "index" / str(summary.get("final_generation")) / MANIFEST_FILE
    return RecordedRun(
        steps=summary.get("steps"),
        seconds=_numbers(summary.get("seconds")),
        evaluation=_numbers(summary.get("evaluation")),
        recall={str(stage): _numbers(figures) for stage, figures in (summary.get("recall") or {}).items()},
        generations=list(summary.get("generations") or []),
        generation=read_json(manifest) if manifest.is_file() else {},
        packages=dict(settings.get("packages") or {}),
        last_step=last,
        best_learning_rate=max(rates, default=None),
    )


def _records(log: Path) -> list[dict[str, Any]]:
    if not log.is_file():
        return []
    records = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except ValueError:  # the torn last line of a killed run
            continue
        if isinstance(record, dict):
            records.append(record)
    return records


def _numbers(content: object) -> dict[str, float]:
    return (
        {str(name): value for name, value in content.items() if _is_number(value)} if isinstance(content, dict) else {}
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
