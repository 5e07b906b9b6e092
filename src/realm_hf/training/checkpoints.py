"""Checkpoints: everything that the next step depends on, and nothing else.

    step-1000/model/            weights and configuration, as `save_pretrained` writes them
    step-1000/optimizer.safetensors  `<parameter>|exp_avg` ... (the schedule is a function of the step: no state)
    step-1000/ahead.safetensors candidates retrieved for coming steps, of all ranks
    step-1000/state.json        step, data cursor, served generation ...; sizes of all files: the marker, written last

The random state is not there because there is none: each micro-batch seeds the generators from (seed, step, slice), so
that dropout repeats on any number of processes, and an evaluation between two steps changes nothing. Rejected:
`accelerator.save_state`, which pickles, and loads with `weights_only=False`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as hf_logging

from realm_hf.refresh.errors import RunDirectoryError
from realm_hf.storage.directories import StagedDirectory, retire_directory
from realm_hf.storage.errors import explained
from realm_hf.storage.files import read_json, write_json
from realm_hf.training.finite import require_finite, require_finite_weights

logger = logging.getLogger(__name__)

PROTOCOL = 1
_NAME = re.compile(r"step-(\d+)")


def micro_batch_seed(seed: int, step: int, index: int) -> int:
    """Seed of torch's generators for one micro-batch: 63 bits of a hash of (seed, step, global slice index)."""
    value = 0
    for part in (seed, step, index):
        value = (value ^ part) * 0x9E3779B97F4A7C15 % 2**64
        value ^= value >> 29
    return value >> 1


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Args:
        path: Its directory.
        state: The content of `state.json`.
    """

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.state["step"])

    def tensors(self) -> dict[str, torch.Tensor]:
        """What was saved as `tensors`."""
        return load_file(self.path / "ahead.safetensors")

    def load_model(self, model: nn.Module) -> None:
        """Put the weights into `model`, in place.

        Raises:
            RunDirectoryError: The weights are of another architecture, or damaged.
        """
        file = self.path / "model" / "model.safetensors"
        try:
            load_model(model, str(file), strict=True)
        except (RuntimeError, SafetensorError) as error:
            raise RunDirectoryError(
                f"{file} does not fit the model: {error}. Resume with the run's own model."
            ) from error

    def load_optimizer(self, optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
        """Put the moments into `optimizer`; parameters that had none (frozen so far) start without.

        Raises:
            RunDirectoryError: A moment belongs to no parameter of `model`.
        """
        parameters = dict(model.named_parameters())
        state: dict[torch.Tensor, dict[str, torch.Tensor]] = {}
        for key, tensor in load_file(self.path / "optimizer.safetensors").items():
            name, _, kind = key.rpartition("|")
            if name not in parameters:
                raise RunDirectoryError(f"{self.path} has optimizer state of {name}, which the model does not have.")
            # The fused AdamW keeps its step counter, like the moments, beside the parameter.
            state.setdefault(parameters[name], {})[kind] = tensor.to(parameters[name].device)
        optimizer.state.clear()
        optimizer.state.update(state)


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """`save_pretrained` into one file, without its progress bar in the middle of the training's.

    Raises:
        TrainingDiverged: A weight is NaN or infinite.
    """
    require_finite_weights(model, "saved")
    shown = hf_logging.is_progress_bar_enabled()
    hf_logging.disable_progress_bar()
    try:
        model.save_pretrained(folder, max_shard_size="10TB")
    finally:
        if shown:
            hf_logging.enable_progress_bar()


def save_checkpoint(
    root: Path,
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    *,
    state: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
) -> Path:
    """Write `root/step-<n>` so that it is there as a whole or not at all. Called on the main process only.

    Args:
        root: The run's checkpoints directory.
        model: The unwrapped model.
        optimizer: Whose state is saved under the parameters' names.
        state: JSON; must hold "step".
        tensors: Further arrays, as `Checkpoint.tensors` gives them back.

    Returns:
        The checkpoint's directory. One that exists already (resumed, and saved again at the same step) stays.

    Raises:
        OSError: The file system is full, read-only or not permitted; earlier checkpoints are untouched.
        RunDirectoryError: The same, as far as safetensors tells.
        TrainingDiverged: A weight or a moment is NaN or infinite.
    """
    final = root / f"step-{state['step']}"
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[parameter]}|{kind}": value.detach().cpu().contiguous()
        for parameter, entries in optimizer.state.items()
        for kind, value in entries.items()
    }
    require_finite(moments.items(), "saved")
    with explained("write the checkpoint", final):
        if final.exists():
            if read_checkpoint(final) is not None:
                return final
            retire_directory(final)
        with StagedDirectory(final) as staged:
            folder = staged.path
            try:
                save_model(model, folder / "model")
                save_file(moments, folder / "optimizer.safetensors")
                save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "ahead.safetensors")
            except SafetensorError as error:
                # safetensors wraps the system's error in words of its own; a full disk is the likely one.
                raise RunDirectoryError(f"Could not write the checkpoint {final}: {error}.") from error
            files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
            write_json(folder / "state.json", {**state, "protocol": PROTOCOL, "files": files}, durable=False)
    return final


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, or `None` where it is torn: no marker, or a file missing or of another size."""
    try:
        state = read_json(path / "state.json", RunDirectoryError)
    except (OSError, RunDirectoryError):
        return None
    if state.get("protocol") != PROTOCOL or "step" not in state:
        return None
    for name, size in state["files"].items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            return None
    return Checkpoint(path, state)


def list_checkpoints(root: Path) -> list[Checkpoint]:
    """All complete checkpoints, oldest first; torn ones are named in a warning and passed over."""
    found = []
    for path in root.iterdir() if root.is_dir() else ():
        if _NAME.fullmatch(path.name):
            checkpoint = read_checkpoint(path)
            if checkpoint is None:
                logger.warning("%s is incomplete or damaged: it is passed over. Remove it at leisure.", path)
            else:
                found.append(checkpoint)
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def find_checkpoint(root: Path, resume: bool | str | Path | None) -> Checkpoint | None:
    """The checkpoint to resume from.

    Args:
        root: The run's checkpoints directory.
        resume: `True` for the newest complete one, a path, or `None`/`False` to start afresh.

    Raises:
        RunDirectoryError: None is there, or the named one is incomplete, or a fresh start would mix with an old run.
    """
    present = list_checkpoints(root)
    if resume is None or resume is False:
        if present:
            raise RunDirectoryError(
                f"{root} holds checkpoints up to step {present[-1].step} of an earlier training. Go on from there "
                "with resume_from_checkpoint=true, or choose another output_dir."
            )
        return None
    if resume is True:
        if not present:
            logger.warning("There is no complete checkpoint in %s: training starts from the beginning.", root)
            return None
        return present[-1]
    checkpoint = read_checkpoint(Path(resume))
    if checkpoint is None:
        raise RunDirectoryError(
            f"resume_from_checkpoint={resume} is no complete checkpoint. Complete ones: "
            f"{', '.join(str(c.path) for c in present) or 'none'}."
        )
    return checkpoint


def prune_checkpoints(root: Path, limit: int | None) -> list[Checkpoint]:
    """Remove all but the newest `limit` complete checkpoints (`None`: keep all); returns the kept ones."""
    present = list_checkpoints(root)
    doomed = [] if limit is None else present[: max(0, len(present) - limit)]
    for checkpoint in doomed:
        retire_directory(checkpoint.path)
    return present[len(doomed) :]
