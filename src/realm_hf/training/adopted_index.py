"""A generation that another run has built, taken over as the first of this one: nothing is embedded again."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from realm_hf.generations.manifest import INDEX_FILE, newest_generation
from realm_hf.generations.store import GenerationStore
from realm_hf.models.fingerprints import state_fingerprint
from realm_hf.runs.directory import RunDirectory
from realm_hf.runs.snapshots import copy_embedder_state, write_snapshot

if TYPE_CHECKING:
    from realm_hf.models.modeling_realm import RealmEmbedder

logger = logging.getLogger(__name__)


def adopt_newest_generation(run: RunDirectory, source: str | Path, embedder: RealmEmbedder) -> str | None:
    """Copy the newest generation of another run into this one, as if it had been built here at step 0.

    Args:
        run ([`RunDirectory`]): The run that takes it over, locked by the caller.
        source (`str` or `pathlib.Path`): The run directory that has it.
        embedder ([`RealmEmbedder`]): The passage tower with which this run goes on.

    Returns:
        The copy's name; `None`, with the reason in the log, if the run has no generation, or the newest comes from
        other passages, other weights than `embedder`'s or another index factory.

    Raises:
        CorruptGenerationError: Its bytes are not those that were written.
        OSError: There is no room for the copy.
    """
    theirs = GenerationStore(Path(source) / "index")
    newest = newest_generation(theirs.list())
    if newest is None:
        logger.warning("%s has no index: it is built here.", theirs.root)
        return None
    weights = copy_embedder_state(embedder)
    differences = {
        "passages": (newest.passages_fingerprint, run.config.passages_fingerprint),
        "passage tower": (newest.embedder_fingerprint, state_fingerprint(weights)),
        "index factory": (newest.factory, run.config.index_factory),
    }
    other = [what for what, (their, ours) in differences.items() if their != ours]
    if other:
        logger.warning(
            "The newest generation of %s, %s, belongs to another %s than this run's: an index is built here.",
            source,
            newest.name,
            " and ".join(other),
        )
        return None
    epoch = run.config.epoch
    with theirs.open(newest.name, verify="sha256") as original:
        snapshot = write_snapshot(run, embedder, 0, epoch, state=weights)
        copy = GenerationStore(run.index).write(
            original.embeddings,
            original.index if INDEX_FILE in newest.files else None,
            snapshot_step=0,
            passages_fingerprint=newest.passages_fingerprint,
            tokenizer_fingerprint=newest.tokenizer_fingerprint,
            embedder_fingerprint=snapshot.fingerprint,
            factory=newest.factory,
            epoch=epoch,
            build_seconds=newest.build_seconds,
            encode_dtype=newest.encode_dtype,
            place=run.place,
        )
    copy.close()
    logger.info("Serving %s of %s as %s.", newest.name, source, copy.name)
    return copy.name
