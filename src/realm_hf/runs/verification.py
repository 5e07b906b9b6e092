"""Is a run's index what it says it is? Hashes of all files, and random rows recomputed from their snapshots."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from realm_hf.data.passages.store import PassageStore
from realm_hf.generations.store import Generation, GenerationError, GenerationInfo, GenerationStore
from realm_hf.generations.tower_check import tower_movements, tower_tolerance
from realm_hf.index.exact import recall_at_k
from realm_hf.knowledge.bm25 import BM25_FOLDER, BM25Index
from realm_hf.models.precision import encoding_in, resolved_encode_dtype
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.errors import RunDirectoryError
from realm_hf.runs.snapshots import list_snapshots, load_snapshot, snapshot_name

_RECALL_DEPTH = 10


@dataclass(frozen=True)
class Finding:
    """
    What was found about one part of a run.

    Args:
        part (`str`): `"passages"`, `"bm25"`, or the name of a generation.
        is_good (`bool`): Whether all checks passed.
        message (`str`): What was checked, or what is wrong.
    """

    part: str
    is_good: bool
    message: str


def verify_run(
    run: RunDirectory, *, rows: int = 100, tolerance: float | None = None, seed: int = 0, device: str = "cpu"
) -> Iterator[Finding]:
    """
    Check the passages and each generation of a run, the oldest first.

    A generation is good if its files have the recorded hashes, it was built from this run's passages, `rows` random
    rows of it equal those that its snapshot gives for the same passages, and a Flat index finds what exact search
    finds.

    Args:
        run ([`RunDirectory`]): The run directory.
        rows (`int`, *optional*, defaults to 100): How many random rows of each generation are recomputed; 0 for none.
        tolerance (`float`, *optional*): Largest movement of an embedding, as a share of its length; by default what
            the generation's own `encode_dtype` explains, see [`tower_tolerance`].
        seed (`int`, *optional*, defaults to 0): Draws the rows.
        device (`str`, *optional*, defaults to `"cpu"`): Where they are recomputed.

    Yields:
        [`Finding`]: One for the passages, one for their BM25 index if there is one, then one for each generation.
    """
    try:
        passages = PassageStore.load(run.passages, verify=True)
    except (OSError, ValueError) as error:
        yield Finding("passages", False, str(error))
        return
    if passages.fingerprint != run.config.passages_fingerprint:
        message = f"fingerprint {passages.fingerprint}, but run.json says {run.config.passages_fingerprint}"
        yield Finding("passages", False, message)
        return
    yield Finding("passages", True, f"{len(passages)} passages, {len(passages.info['files'])} files")
    if (run.root / BM25_FOLDER).exists():
        yield _check_words(run, passages)
    store = GenerationStore(run.index)
    snapshots = {snapshot.name: snapshot.fingerprint for snapshot in list_snapshots(run)}
    generator = np.random.default_rng(seed)
    for name in sorted(path.name for path in run.index.glob("step-*/")):
        sample = np.sort(generator.choice(len(passages), min(rows, len(passages)), replace=False))
        try:
            with store.open(name, verify="sha256") as generation:
                message = _check(run, generation, passages, sample, snapshots, tolerance, device)
        except (GenerationError, RunDirectoryError, OSError, ValueError) as error:
            yield Finding(name, False, str(error))
        else:
            yield Finding(name, True, message)


def _check_words(run: RunDirectory, passages: PassageStore) -> Finding:
    """The BM25 index beside the passages."""
    try:
        index = BM25Index.open(run.root / BM25_FOLDER, verify=True)
    except (OSError, ValueError) as error:
        return Finding(BM25_FOLDER, False, str(error))
    if index.passages_fingerprint != passages.fingerprint:
        message = f"it was built from passages {index.passages_fingerprint}, the run has {passages.fingerprint}"
        return Finding(BM25_FOLDER, False, message)
    return Finding(BM25_FOLDER, True, f"{len(index.terms)} words in {len(index)} passages")


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
    facts = [f"{len(info.files)} files, {info.rows} rows of {info.dimension}"]
    name = snapshot_name(info.snapshot_step, info.epoch)
    if not len(sample):
        facts.append("no rows recomputed")
    elif name not in snapshots:
        facts.append(f"rows not recomputed: snapshot {name} is not kept any more")
    else:
        if snapshots[name] != info.embedder_fingerprint:
            raise ValueError(f"it was built from other weights than {name} holds (fingerprints differ)")
        moved = _recompute(run, info, generation, passages, sample, name, tolerance, device)
        facts.append(f"{len(sample)} rows recomputed from {name}, moved by at most {moved:.1e} of their length")
    if len(sample):
        queries = np.asarray(generation.embeddings[sample], np.float32)
        recall = recall_at_k(generation.embeddings, generation.index, queries, _RECALL_DEPTH)
        facts.append(f"recall@{_RECALL_DEPTH} of {info.factory} {recall:.3f}")
        if info.factory == "Flat" and recall < 1.0:
            raise ValueError(f"its Flat index finds only {recall:.3f} of what exact search finds")
    return ", ".join(facts)


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
    tolerance = tower_tolerance(info.encode_dtype) if tolerance is None else tolerance
    on = torch.device(device)
    with encoding_in(resolved_encode_dtype(info.encode_dtype, on), on):
        tower = load_snapshot(run, snapshot, device)
        moved = tower_movements(tower, passages, generation.embeddings[sample], rows=sample)
    worst = int(moved.argmax())
    if moved[worst] > tolerance:
        raise ValueError(
            f"row {sample[worst]} differs from what {snapshot} gives by {moved[worst]:.2e} of its length (at most "
            f"{tolerance:.1g} is allowed)"
        )
    return float(moved[worst])
