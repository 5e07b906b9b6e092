"""Is a run's index what it says it is? Hashes of all files, and random rows recomputed from the snapshots behind
them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from realm_hf.data.passages.store import PassageStore
from realm_hf.generations.embedding import embed_passages
from realm_hf.generations.store import Generation, GenerationError, GenerationInfo, GenerationStore
from realm_hf.index.exact import recall_at_k
from realm_hf.models.precision import encoding_in, resolved_encode_dtype
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.snapshots import list_snapshots, load_snapshot, snapshot_name

_RECALL_DEPTH = 10

TOLERANCES = {"float32": 1e-3, "tf32": 0.02, "bfloat16": 0.1}
"""Largest difference of a coordinate of one passage, computed twice, by `encode_dtype`: another device or batch rounds
elsewhere, or has no tf32 at all.
"""


@dataclass(frozen=True)
class Finding:
    """What was found about one part of a run.

    Args:
        part: "passages", or the name of a generation.
        is_good: Whether all checks passed.
        words: What was checked, or what is wrong.
    """

    part: str
    is_good: bool
    words: str


def verify_run(
    run: RunDirectory, *, rows: int = 100, tolerance: float | None = None, seed: int = 0, device: str = "cpu"
) -> Iterator[Finding]:
    """Check the passages and each generation of a run, the oldest first.

    A generation is good if its files have the recorded hashes, it was built from this run's passages, `rows` random
    rows of it equal those that its snapshot gives for the same passages, and a Flat index finds what exact search
    finds.

    Args:
        run: The run directory.
        rows: How many random rows of each generation are recomputed; 0 for none.
        tolerance: Largest difference of a coordinate; by default what embedding in the generation's own `encode_dtype`
            allows, see [`TOLERANCES`]. Stored float16 may differ by its own rounding on top of that.
        seed: Draws the rows.
        device: Where they are recomputed.

    Yields:
        A finding for the passages, then one for each generation.
    """
    try:
        passages = PassageStore.load(run.passages, verify=True)
    except (OSError, ValueError) as error:
        yield Finding("passages", False, str(error))
        return
    if passages.fingerprint != run.config.passages_fingerprint:
        words = f"fingerprint {passages.fingerprint}, but run.json says {run.config.passages_fingerprint}"
        yield Finding("passages", False, words)
        return
    yield Finding("passages", True, f"{len(passages)} passages, {len(passages.info['files'])} files")
    store = GenerationStore(run.index)
    snapshots = {snapshot.name: snapshot.fingerprint for snapshot in list_snapshots(run)}
    generator = np.random.default_rng(seed)
    for name in sorted(path.name for path in run.index.glob("step-*/")):
        sample = np.sort(generator.choice(len(passages), min(rows, len(passages)), replace=False))
        try:
            with store.open(name, verify="sha256") as generation:
                words = _check(run, generation, passages, sample, snapshots, tolerance, device)
        except (GenerationError, RunDirectoryError, OSError, ValueError) as error:
            yield Finding(name, False, str(error))
        else:
            yield Finding(name, True, words)


def _check(
    run: RunDirectory,
    generation: Generation,
    passages: PassageStore,
    sample: np.ndarray,
    snapshots: Mapping[str, str],
    tolerance: float | None,
    device: str,
) -> str:
    info = generation.info
    if info.passages_fingerprint != passages.fingerprint:
        raise ValueError(f"it was built from passages {info.passages_fingerprint}, the run has {passages.fingerprint}")
    told = [f"{len(info.files)} files, {info.rows} rows of {info.dimension}"]
    name = snapshot_name(info.snapshot_step, info.epoch)
    if not len(sample):
        told.append("no rows recomputed")
    elif name not in snapshots:
        told.append(f"rows not recomputed: snapshot {name} is not kept any more")
    else:
        if snapshots[name] != info.embedder_fingerprint:
            raise ValueError(f"it was built from other weights than {name} holds (fingerprints differ)")
        difference = _recompute(run, info, generation, passages, sample, name, tolerance, device)
        told.append(f"{len(sample)} rows recomputed from {name}, largest difference {difference:.1e}")
    if len(sample):
        queries = np.asarray(generation.embeddings[sample], np.float32)
        recall = recall_at_k(generation.embeddings, generation.index, queries, _RECALL_DEPTH)
        told.append(f"recall@{_RECALL_DEPTH} of {info.factory} {recall:.3f}")
        if info.factory == "Flat" and recall < 1.0:
            raise ValueError(f"its Flat index finds only {recall:.3f} of what exact search finds")
    return ", ".join(told)


def _recompute(
    run: RunDirectory,
    info: GenerationInfo,
    generation: Generation,
    passages: PassageStore,
    sample: np.ndarray,
    snapshot: str,
    tolerance: float | None,
    device: str,
) -> float:
    tolerance = TOLERANCES[info.encode_dtype] if tolerance is None else tolerance
    on = torch.device(device)
    with encoding_in(resolved_encode_dtype(info.encode_dtype, on), on):
        again = embed_passages(load_snapshot(run, snapshot, device), passages, rows=sample)
    stored = np.asarray(generation.embeddings[sample], np.float32)
    difference = np.abs(stored - again)
    # Half a unit in the last place: what rounding to the stored type may cost.
    rounding = np.abs(again) * float(np.finfo(info.dtype).eps) / 2
    excess = difference - rounding
    if excess.max() > tolerance:
        row, column = np.unravel_index(int(excess.argmax()), excess.shape)
        raise ValueError(
            f"row {sample[row]} differs from what {snapshot} gives by {difference[row, column]:.2e} in coordinate "
            f"{column} (at most {tolerance:.0e} is allowed)"
        )
    return float(difference.max())
