"""Checkpoints: everything that the next step depends on, and nothing else.

    step-1000/model/            weights and configuration, as `save_pretrained` writes them
    step-1000/optimizer.safetensors  `<parameter>|exp_avg` ... (the schedule is a function of the step: no state)
    step-1000/ahead.safetensors candidates retrieved for coming steps, of all ranks
    step-1000/state.json        step, term, data cursor, served generation ...; sizes and sha256 of all files, and of
                                itself: the marker, written last
    aside/step-1200-term-2/     what a resume from an earlier checkpoint left: kept, never resumed unless named

All `step-*` belong to one line of training. A resume from an earlier checkpoint moves the later ones to `aside/`, so
that they are neither taken for the newest nor in the way of new ones; pruning never touches them.

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
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, load_model, save_file
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import logging as hf_logging

from realm_hf.runs.errors import RunDirectoryError
from realm_hf.storage.directories import StagedDirectory, retire_directory
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import describe_files, file_sha256
from realm_hf.storage.sealed_json import read_sealed_json, write_sealed_json
from realm_hf.training.aside import set_aside
from realm_hf.training.finite import require_finite, require_finite_weights
from realm_hf.training.model_weights import as_sharded, whole_tensor

logger = logging.getLogger(__name__)

PROTOCOL = 2
_UNSEALED_PROTOCOL = 1
# What every state.json of the first protocol holds, which has no hash of itself, and what it may hold.
_UNSEALED_FIELDS: dict[str, type] = {"step": int, "cursor": int, "world_size": int, "seed": int}
_UNSEALED_GROUPS: tuple[dict[str, type], ...] = ({"generation": str, "snapshot": str}, {"ahead": list, "layout": list})
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
        path (`pathlib.Path`): Its directory.
        state (`dict[str, Any]`): The content of `state.json`.
    """

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self.state["step"])

    @property
    def term(self) -> int:
        """Number of the trainer's term that wrote it; 0 if it is of a version that counted none."""
        return int(self.state.get("term", 0))

    def damage(self) -> str | None:
        """What is wrong with the content of its files, all of which are read; `None` if nothing is."""
        try:
            for name, expected in self.state.get("sha256", {}).items():
                if file_sha256(self.path / name) != expected:
                    return f"{self.path / name} does not have its recorded sha256"
            if "sha256" not in self.state:  # of the first protocol: at least the headers
                for file in sorted(self.path.rglob("*.safetensors")):
                    with safe_open(file, "pt"):
                        pass
        except (OSError, SafetensorError) as error:
            return f"a file of {self.path} cannot be read ({error})"
        return None

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
        state: dict[torch.Tensor, dict[str, torch.Tensor | int]] = {}
        for key, tensor in load_file(self.path / "optimizer.safetensors").items():
            name, _, kind = key.rpartition("|")
            if name not in parameters:
                raise RunDirectoryError(f"{self.path} has optimizer state of {name}, which the model does not have.")
            # Adafactor counts its steps by a Python number; the fused AdamW by a tensor beside the parameter.
            is_count = tensor.dtype == torch.int64
            value = int(tensor) if is_count else as_sharded(tensor, parameters[name].detach())
            state.setdefault(parameters[name], {})[kind] = value
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


def optimizer_moments(
    model: nn.Module, optimizer: torch.optim.Optimizer, *, keep: bool = True
) -> dict[str, torch.Tensor]:
    """The optimizer's state in the memory of the host, `<parameter>|<kind>` -> tensor.

    Args:
        model (`nn.Module`): The model whose parameters it has. Where they are sharded, every rank must call this.
        optimizer (`torch.optim.Optimizer`): The optimizer.
        keep (`bool`, *optional*, defaults to `True`): `False` on a rank that only takes part: it gets an empty dict.
    """
    names: dict[torch.Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    moments: dict[str, torch.Tensor] = {}
    # In the order of the model's parameters on every rank.
    for parameter, name in names.items():
        for kind, value in optimizer.state.get(parameter, {}).items():
            gathered = whole_tensor(torch.as_tensor(value).detach())
            if keep:
                moments[f"{name}|{kind}"] = gathered.cpu().contiguous()
    return moments


def save_checkpoint(
    root: Path,
    model: PreTrainedModel,
    moments: Mapping[str, torch.Tensor],
    *,
    state: Mapping[str, Any],
    tensors: Mapping[str, torch.Tensor],
    place: Path | None = None,
) -> Path:
    """Write `root/step-<n>` so that it is there as a whole or not at all. Called on the main process only.

    Args:
        root (`pathlib.Path`): The run's checkpoints directory.
        model ([`~transformers.PreTrainedModel`]): The unwrapped model, with whole weights.
        moments (`Mapping[str, torch.Tensor]`): As [`optimizer_moments`] returns them.
        state (`Mapping[str, Any]`): JSON; must hold "step".
        tensors (`Mapping[str, torch.Tensor]`): Further arrays, as `Checkpoint.tensors` gives them back.
        place (`pathlib.Path`, *optional*): The trainer's own directory, through which it publishes; see [`Term`].

    Returns:
        The checkpoint's directory. An earlier one of this step is set aside.

    Raises:
        OSError: The file system is full, read-only or not permitted; earlier checkpoints are untouched.
        RunDirectoryError: The same, where safetensors reports it.
        TrainingDiverged: A weight or a moment is NaN or infinite.
    """
    final = root / f"step-{state['step']}"
    require_finite(moments.items(), "saved")
    with explain_os_errors("write the checkpoint", final), StagedDirectory(final, replace=True, place=place) as staged:
        folder = staged.path
        try:
            save_model(model, folder / "model")
            save_file(dict(moments), folder / "optimizer.safetensors")
            save_file({name: t.contiguous() for name, t in tensors.items()}, folder / "ahead.safetensors")
        except SafetensorError as error:
            # safetensors hides the system's error, which is most likely a full disk.
            raise RunDirectoryError(f"Could not write the checkpoint {final}: {error}.") from error
        files = describe_files(folder, folder)
        content = {
            **state,
            "protocol": PROTOCOL,
            "files": {name: record["bytes"] for name, record in files.items()},
            "sha256": {name: record["sha256"] for name, record in files.items()},
        }
        write_sealed_json(folder / "state.json", content, durable=False)
        if final.exists():
            set_aside([final], place)
    return final


def read_checkpoint(path: Path) -> Checkpoint | None:
    """The checkpoint at `path`, or `None` where it is torn: no marker or a damaged one, or a file missing or of
    another size. What is in the files is not looked at.
    """
    try:
        return _read(path)
    except (OSError, RunDirectoryError):
        return None


def _read(path: Path) -> Checkpoint:
    state = read_sealed_json(path / "state.json", RunDirectoryError)
    protocol = state.get("protocol")
    if protocol not in (PROTOCOL, _UNSEALED_PROTOCOL):
        raise RunDirectoryError(f"{path} has checkpoint protocol {protocol!r}, this version reads up to {PROTOCOL}.")
    files: object = state.get("files")
    fields: dict[str, type] = {"step": int}
    if protocol == _UNSEALED_PROTOCOL:
        fields |= _UNSEALED_FIELDS
        for group in _UNSEALED_GROUPS:
            fields |= group if group.keys() & state.keys() else {}
    odd = [name for name, kind in fields.items() if type(state.get(name)) is not kind]
    if odd or not isinstance(files, dict):
        raise RunDirectoryError(f"{path / 'state.json'} lacks what it must hold ({', '.join(odd or ['files'])}).")
    for name, size in files.items():
        file = path / name
        if not file.is_file() or file.stat().st_size != size:
            raise RunDirectoryError(f"{file} is missing or is not of its {size} bytes.")
    return Checkpoint(path, state)


def list_checkpoints(root: Path) -> list[Checkpoint]:
    """All complete checkpoints, oldest first, by term and step; torn ones are named in a warning and passed over."""
    found = []
    for path in _folders(root):
        try:
            found.append(_read(path))
        except (OSError, RunDirectoryError) as error:
            logger.warning("%s is incomplete or damaged: it is passed over, and can be removed. (%s)", path, error)
    return sorted(found, key=lambda checkpoint: (checkpoint.term, checkpoint.step))


def _folders(root: Path) -> list[Path]:
    return [path for path in root.iterdir() if _NAME.fullmatch(path.name)] if root.is_dir() else []


def find_checkpoint(root: Path, resume: bool | str | Path | None) -> Checkpoint | None:
    """The checkpoint to resume from; its files are hashed.

    Args:
        root (`pathlib.Path`): The run's checkpoints directory.
        resume (`bool` or `str` or `pathlib.Path`, *optional*): `True` for the newest sound one, a path, or
            `None`/`False` to start afresh.

    Raises:
        RunDirectoryError: None is there, or the named one is incomplete or damaged, or a fresh start would mix with an
            old run.
    """
    if resume is None or resume is False:
        present = list_checkpoints(root)
        if present:
            raise RunDirectoryError(
                f"{root} holds checkpoints up to step {present[-1].step} of an earlier training. Go on from there "
                "with resume_from_checkpoint=true, or choose another output_dir."
            )
        return None
    if resume is True:
        return _newest_sound(root)
    try:
        checkpoint = _read(Path(resume))
        wrong = checkpoint.damage()
    except (OSError, RunDirectoryError) as error:
        wrong = str(error)
    if wrong is not None:
        others = [str(c.path) for c in list_checkpoints(root) if c.path != Path(resume)]
        raise RunDirectoryError(
            f"resume_from_checkpoint={resume} is no complete checkpoint: {wrong}. Others that are complete: "
            f"{', '.join(others) or 'none'}."
        )
    return checkpoint


def _newest_sound(root: Path) -> Checkpoint | None:
    present = list_checkpoints(root)
    passed_over = len(present) < len(_folders(root))
    for checkpoint in reversed(present):
        wrong = checkpoint.damage()
        if wrong is None:
            if passed_over:
                logger.warning("The newest sound checkpoint is %s: training goes on from there.", checkpoint.path)
            return checkpoint
        passed_over = True
        logger.warning("%s is damaged: it is passed over. (%s)", checkpoint.path, wrong)
    logger.warning("There is no complete checkpoint in %s: training starts from the beginning.", root)
    return None


def set_later_aside(root: Path, resumed: Checkpoint | None, place: Path | None = None) -> list[Path]:
    """Set aside what does not lead to where training begins: all that is later than the resumed checkpoint, complete
    or not; everything, if that is not one of `root`.

    Args:
        root (`pathlib.Path`): The run's checkpoints directory.
        resumed ([`Checkpoint`], *optional*): Where training goes on; `None` at its beginning.
        place (`pathlib.Path`, *optional*): The trainer's own directory; see [`Term`].

    Returns:
        Where they are now.
    """
    here = resumed is not None and resumed.path.parent.resolve() == root.resolve()
    reached = resumed.step if resumed is not None and here else -1
    steps = {path: int(path.name.rpartition("-")[2]) for path in _folders(root)}
    return set_aside(sorted((path for path in steps if steps[path] > reached), key=steps.__getitem__), place)


def prune_checkpoints(root: Path, limit: int | None, place: Path | None = None) -> list[Checkpoint]:
    """Remove all but the newest `limit` complete checkpoints (`None`: keep all); returns the kept ones."""
    present = list_checkpoints(root)
    old = [] if limit is None else present[: max(0, len(present) - limit)]
    for checkpoint in old:
        retire_directory(checkpoint.path, place)
    return present[len(old) :]
