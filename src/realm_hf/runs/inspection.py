"""What is in a run directory, as text for a person or as a dictionary for a program. Reads only."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from realm_hf.generations.store import GenerationStore
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.heartbeat import read_beat
from realm_hf.runs.lock import read_holder
from realm_hf.runs.snapshots import list_snapshots


def describe_run(run: RunDirectory) -> dict[str, Any]:
    """
    All that can be read from a run directory, ready for JSON.

    Returns:
        `dict[str, Any]`: `run` (its configuration), `trainer` (the lock's holder, with `is_alive` true, false, or
        `None` if that cannot be known from here), `snapshots`, `generations`, `quarantined` (name -> reason),
        `builders` (heartbeats), `checkpoints` (names).
    """
    store = GenerationStore(run.index)
    beats = [read_beat(path) for path in sorted(run.heartbeats.glob("*.json"))]
    return {
        "root": str(run.root),
        "run": asdict(run.config),
        "trainer": _trainer(run),
        "snapshots": [{"name": s.name, "bytes": s.bytes, "created": s.created} for s in list_snapshots(run)],
        "generations": [asdict(info) | {"total_bytes": info.total_bytes} for info in store.list()],
        "quarantined": store.quarantined(),
        "builders": [asdict(beat) for beat in beats if beat is not None],
        "checkpoints": sorted(path.parent.name for path in run.checkpoints.glob("*/state.json")),
    }


def run_as_text(run: RunDirectory) -> list[str]:
    """The same, as lines."""
    facts = describe_run(run)
    config = facts["run"]
    lines = [
        facts["root"],
        f"  {config['rows']:,} passages, index {config['index_factory']}, stored as {config['embedding_dtype']}",
        f"  epoch {config['epoch']}, created {config['created']}",
        f"  trainer: {_trainer_as_text(facts['trainer'])}",
        f"  checkpoints: {', '.join(facts['checkpoints']) or 'none'}",
        f"  snapshots: {', '.join(s['name'] for s in facts['snapshots']) or 'none'}",
    ]
    lines += [
        f"  builder: process {beat['pid']} on {beat['host']}, {beat['phase']} {beat['snapshot']}"
        + (f" ({beat['done']:,} of {beat['total']:,} passages)" if beat["total"] else "")
        for beat in facts["builders"]
    ]
    lines.append("  generations:" if facts["generations"] else "  generations: none")
    for info in facts["generations"]:
        created = datetime.fromtimestamp(info["created"], UTC).isoformat(timespec="seconds")
        lines.append(
            f"    {info['name']}  step {info['snapshot_step']}, epoch {info['epoch']}, {info['rows']:,} x "
            f"{info['dimension']}, {info['total_bytes'] / 2**20:.1f} MiB, built in {info['build_seconds']:.1f} s by "
            f"process {info['builder_pid']} on {info['builder_host']}, {created}"
        )
    lines += [f"    {name}  quarantined: {why}" for name, why in facts["quarantined"].items()]
    return lines


def _trainer(run: RunDirectory) -> dict[str, Any] | None:
    if not run.lock_path.exists():
        return None
    try:
        holder = read_holder(run.lock_path)
    except (RunDirectoryError, FileNotFoundError):
        return None  # it ended between the two lines
    return asdict(holder) | {"is_alive": holder.is_alive() if holder.is_judged_from_here() else None}


def _trainer_as_text(trainer: dict[str, Any] | None) -> str:
    if trainer is None:
        return "none"
    alive = {True: "running", False: "dead; the next one takes over", None: "cannot be known from here"}
    who = f"process {trainer['pid']} on {trainer['host']} since {trainer['since']} (term {trainer['term']})"
    return f"{who}, {alive[trainer['is_alive']]}"
