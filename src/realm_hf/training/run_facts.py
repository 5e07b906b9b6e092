"""What a run says of itself beside its figures: what it started from, and what it ran on."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

__all__ = ["base_model_of", "run_facts"]

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")


def run_facts(model: torch.nn.Module, accelerator: Accelerator, examples_per_step: int) -> dict[str, Any]:
    """
    Entries of `summary.json`, for the report and the card.

    Args:
        model (`torch.nn.Module`): What is trained; its `name_or_path` says where its weights came from.
        accelerator (`accelerate.Accelerator`): Where it runs.
        examples_per_step (`int`): Over all processes.

    Returns:
        `dict[str, Any]`: `started_from` (as the user named it), `base_model` (its name on the Hub; that of the run it
        goes on from, where that is known), `examples_per_step` and `hardware`; what is not known is left out.
    """
    name = str(getattr(model, "name_or_path", "") or "")
    base = base_model_of(name)
    return {
        **({"started_from": name} if name else {}),
        **({"base_model": base} if base else {}),
        "examples_per_step": examples_per_step,
        "hardware": _hardware(accelerator),
    }


def base_model_of(name: str) -> str | None:
    """The Hub's name of the weights behind `name`: itself, or what the run that it lies in started from."""
    folder = Path(name)
    if not name or not folder.exists():
        return name if _HUB_NAME.fullmatch(name) else None
    for summary in (folder / "summary.json", folder.parent / "summary.json"):
        if summary.is_file():
            found = json.loads(summary.read_text(encoding="utf-8")).get("base_model")
            return found if isinstance(found, str) else None
    return None


def _hardware(accelerator: Accelerator) -> dict[str, Any]:
    device = accelerator.device
    on_card = device.type == "cuda"
    return {
        "processes": accelerator.num_processes,
        "device": torch.cuda.get_device_name(device) if on_card else device.type,
        "cpu_cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "platform": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
    }
