"""Snapshots: the passage tower's weights at one optimizer step, from which a builder makes one index generation.

    RUN/snapshots/step-500-e1/embedder.safetensors    weights as trained, without the prediction head that nothing
    reads
                              snapshot.json           step, epoch, model configuration, fingerprint, size and sha256

A snapshot appears complete or not at all and is never changed. Its name carries the epoch of the trainer that wrote
it: a trainer that resumes from an earlier checkpoint passes the same steps again, with other weights. Whoever builds
from one holds a lease on it (a shared lock on `snapshot.json`), which the kernel drops with its process; collection
leaves it alone until then.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save

from realm_hf.models.fingerprints import state_fingerprint
from realm_hf.models.tower_files import UNREAD, tower_of_weights
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.storage.directories import FileLock, StagedDirectory, remove_stale_staging, retire_directory
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import file_sha256, read_json
from realm_hf.storage.leases import take_lease

if TYPE_CHECKING:
    from realm_hf.models.modeling_realm import RealmEmbedder

_NAME = re.compile(r"step-(\d+)-e(\d+)")
_WEIGHTS = "embedder.safetensors"
_MANIFEST = "snapshot.json"


@dataclass(frozen=True)
class SnapshotInfo:
    """
    The content of `snapshot.json`.

    Args:
        step (`int`): Optimizer step after which the weights were copied.
        epoch (`int`): Epoch of the trainer that wrote it.
        fingerprint (`str`): Hash of the weights, for the generation's manifest.
        config (`dict[str, Any]`): The embedder's configuration.
        bytes (`int`): Size of `embedder.safetensors`.
        sha256 (`str`): Hash of `embedder.safetensors`.
        created (`str`): ISO 8601, UTC.
    """

    step: int
    epoch: int
    fingerprint: str
    config: dict[str, Any]
    bytes: int
    sha256: str
    created: str

    @property
    def name(self) -> str:
        """Name of the directory."""
        return snapshot_name(self.step, self.epoch)


def snapshot_name(step: int, epoch: int) -> str:
    """The directory's name for a step of an epoch."""
    if step < 0 or epoch < 0:
        raise ValueError(f"step and epoch count from 0, got step={step}, epoch={epoch}")
    return f"step-{step}-e{epoch}"


def copy_embedder_state(embedder: RealmEmbedder) -> dict[str, torch.Tensor]:
    """
    The weights that a snapshot keeps, copied to the CPU so that training may go on changing the originals.

    Under FSDP2 the parameters are sharded: every rank must call this at the same point, and rank 0 gets the whole
    weights (the others an empty dict).
    """
    if any(_is_sharded(parameter) for parameter in embedder.parameters()):
        from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        state: dict[str, Any] = get_model_state_dict(embedder, options=options)
        return {name: tensor for name, tensor in state.items() if not name.startswith(UNREAD)}
    return {
        name: tensor.detach().to("cpu", copy=True).contiguous()
        for name, tensor in embedder.state_dict().items()
        if not name.startswith(UNREAD)
    }


def write_snapshot(
    run: RunDirectory, embedder: RealmEmbedder, step: int, epoch: int, state: Mapping[str, torch.Tensor] | None = None
) -> SnapshotInfo:
    """
    Commit a snapshot; one that is there already is returned as it is.

    Args:
        run ([`RunDirectory`]): The run directory.
        embedder ([`RealmEmbedder`]): The passage tower; only its configuration is read if `state` is given.
        step (`int`): The optimizer step just made.
        epoch (`int`): The trainer's epoch.
        state (`Mapping[str, torch.Tensor]`, *optional*): Its weights as [`copy_embedder_state`] returned them, where
            they were copied earlier.

    Raises:
        ValueError: A weight is NaN or infinite: an index built from it would be worthless.
        OSError: The snapshot cannot be written; the message says why.
    """
    final = run.snapshots / snapshot_name(step, epoch)
    if final.exists():
        return read_snapshot(run, final.name)
    weights = dict(copy_embedder_state(embedder) if state is None else state)
    broken = [name for name, tensor in weights.items() if not torch.isfinite(tensor).all()]
    if broken:
        raise ValueError(
            f"The embedder's weight {broken[0]} holds NaN or infinity at step {step} ({len(broken)} such weights): "
            "training has diverged. Resume from an earlier checkpoint with a lower learning rate."
        )
    with (
        explain_os_errors(f"write the snapshot of step {step}", final),
        StagedDirectory(final, place=run.place) as staged,
    ):
        with staged.file(_WEIGHTS) as file:
            file.write(save(weights))
        info = SnapshotInfo(
            step=step,
            epoch=epoch,
            fingerprint=state_fingerprint(weights),
            config=json.loads(embedder.config.to_json_string(use_diff=False)),
            bytes=file.bytes,
            sha256=file.sha256,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
        )
        with staged.file(_MANIFEST) as manifest:
            manifest.write(json.dumps(asdict(info), indent=2).encode() + b"\n")
    return info


def list_snapshots(run: RunDirectory) -> list[SnapshotInfo]:
    """All complete snapshots, oldest first, by epoch and then by step."""
    return sorted((read_snapshot(run, name) for name in _names(run)), key=lambda info: (info.epoch, info.step))


def latest_snapshot(run: RunDirectory, epoch: int | None = None) -> SnapshotInfo | None:
    """
    The newest complete snapshot of an epoch, by default of the one that `run.json` says is the run's.

    Snapshots of an earlier epoch belong to a trainer that was replaced: nobody would serve what is built from them.
    """
    epoch = run.read_epoch() if epoch is None else epoch
    steps = [step for step, of_epoch in map(_parse, _names(run)) if of_epoch == epoch]
    return read_snapshot(run, snapshot_name(max(steps), epoch)) if steps else None


def read_snapshot(run: RunDirectory, name: str) -> SnapshotInfo:
    """
    Read a snapshot's manifest.

    Raises:
        OSError: There is none.
        RunDirectoryError: Its manifest is damaged.
    """
    content = read_json(run.snapshots / name / _MANIFEST, RunDirectoryError)
    try:
        return SnapshotInfo(**content)
    except TypeError as error:
        raise RunDirectoryError(f"{run.snapshots / name / _MANIFEST} is of another version ({error}).") from error


@contextmanager
def leased_snapshot(run: RunDirectory, name: str) -> Iterator[SnapshotInfo]:
    """
    Keep a snapshot from being collected for the time of a block.

    Raises:
        FileNotFoundError: There is none: it was collected before the lease was taken.
        RunDirectoryError: Its manifest is damaged.
    """
    lease = take_lease(run.snapshots / name / _MANIFEST)
    try:
        yield read_snapshot(run, name)
    finally:
        if lease is not None:
            lease.release()


def load_snapshot(
    run: RunDirectory, snapshot: SnapshotInfo | str, device: str | torch.device = "cpu"
) -> RealmEmbedder:
    """
    The embedder of a snapshot, frozen, in evaluation mode.

    Raises:
        RunDirectoryError: There is no such snapshot, its size or hash is not the recorded one, or its weights do not
            fit its configuration.
    """
    info = read_snapshot(run, snapshot) if isinstance(snapshot, str) else snapshot
    path = run.snapshots / info.name / _WEIGHTS
    with explain_os_errors("read", path):
        size, sha256 = path.stat().st_size, file_sha256(path)
    if (size, sha256) != (info.bytes, info.sha256):
        raise RunDirectoryError(
            f"{path} has {size} bytes with sha256 {sha256[:12]}..., its manifest says {info.bytes} and "
            f"{info.sha256[:12]}...: the file is damaged. Remove {path.parent}; the next snapshot replaces it."
        )
    try:
        embedder = tower_of_weights(info.config, load_file(path))
    except ValueError as error:
        raise RunDirectoryError(f"{path} does not fit its configuration: {error}.") from error
    embedder.requires_grad_(False)
    return embedder.to(torch.device(device))  # type: ignore[arg-type]


def collect_snapshots(run: RunDirectory, keep: Iterable[str] = ()) -> list[str]:
    """
    Remove all snapshots but the newest of the newest epoch, those in `keep`, those that a checkpoint names and those
    that somebody builds from.

    Returns:
        `list[str]`: The names of the removed ones.
    """
    names = _names(run)
    kept = set(keep) | run.named_by_checkpoints()
    if names:
        kept.add(max(names, key=lambda name: tuple(reversed(_parse(name)))))
    unused = [name for name in names if name not in kept]
    removed = [name for name in unused if _retire_unless_leased(run.snapshots / name, run.place)]
    remove_stale_staging(run.snapshots)
    return removed


def _retire_unless_leased(snapshot: Path, place: Path | None) -> bool:
    try:
        if not (snapshot / _MANIFEST).exists():
            retire_directory(snapshot, place)  # damaged: nobody builds from it
            return True
        with FileLock(snapshot / _MANIFEST, exclusive=True, wait=False):
            retire_directory(snapshot, place)
    except (BlockingIOError, FileNotFoundError):
        return False  # somebody builds from it, another collector was faster, or the run was taken over
    return True


def _names(run: RunDirectory) -> list[str]:
    with explain_os_errors("list", run.snapshots):
        return [path.name for path in run.snapshots.iterdir() if _NAME.fullmatch(path.name)]


def _parse(name: str) -> tuple[int, int]:
    found = _NAME.fullmatch(name)
    assert found is not None
    return int(found[1]), int(found[2])


def _is_sharded(parameter: torch.Tensor) -> bool:
    from torch.distributed.tensor import DTensor

    return isinstance(parameter, DTensor)
