"""Do model, tokenizer, passages and index belong together?

Publishing compares the parts themselves; what was published carries their fingerprints, which loading compares.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from transformers import PreTrainedModel
from transformers.utils import logging

from realm_hf.data.passages.build import PassageStore
from realm_hf.data.vocabulary import tokenizer_fingerprint
from realm_hf.generations.tower_check import tower_movements, tower_tolerance
from realm_hf.models.fingerprints import state_fingerprint
from realm_hf.models.modeling_embedder import RealmEmbedder
from realm_hf.models.modeling_realm import RealmForPreTraining
from realm_hf.untrusted.checks import HubArtefactError

if TYPE_CHECKING:
    from realm_hf.hub.publishable import Publishable

__all__ = ["check_belonging", "check_fingerprint", "query_tower_record"]

logger = logging.get_logger(__name__)

_PROBED_ROWS = 16


def check_belonging(model: PreTrainedModel, retriever: Publishable, *, force: bool) -> RealmEmbedder | None:
    """
    Compare dimensions, tokenizers, and the embeddings of a few passages with what their tower makes of them now.

    Args:
        model (`PreTrainedModel`): The model.
        retriever ([`RealmRetriever`]): The retriever.
        force (`bool`): Warn instead of refusing.

    Returns:
        [`RealmEmbedder`], *optional*: The passage tower: the retriever's, or a pre-training model's own if it makes
        the stored embeddings. `None` if it is not known.

    Raises:
        HubArtefactError: If they do not belong together.
    """
    if retriever.embeddings is None:
        raise ValueError("The retriever was made without embeddings, which are published: give it `embeddings`.")
    if retriever.tokenizer is None:
        raise ValueError("The retriever has no tokenizer, which is published with it: RealmRetriever(..., tokenizer).")
    dimension = retriever.embeddings.shape[1]
    if model.config.retriever_proj_size != dimension:
        raise HubArtefactError(
            f"The model makes embeddings of {model.config.retriever_proj_size} numbers, the index has {dimension}: "
            "build the index with this model's passage tower."
        )
    if len(retriever.tokenizer) > model.config.vocab_size:
        raise HubArtefactError(
            f"The tokenizer has {len(retriever.tokenizer)} wordpieces, the model {model.config.vocab_size}: it is "
            "another model's."
        )
    store = retriever.passages
    if isinstance(store, PassageStore):
        found = tokenizer_fingerprint(retriever.tokenizer)
        check_fingerprint("The retriever's tokenizer", store.tokenizer_fingerprint, found, force=force)
    own: Any = model.embedder if isinstance(model, RealmForPreTraining) else None
    tower = retriever.embedder if retriever.embedder is not None else own
    if tower is None:
        logger.warning(
            "The retriever has no passage tower (`embedder`): nothing says that the index belongs to the model, and "
            "passages cannot be added after loading."
        )
        return None
    if not isinstance(store, PassageStore):
        return tower
    rows = np.random.default_rng(0).choice(len(store), min(_PROBED_ROWS, len(store)), replace=False)
    moved = tower_movements(tower, store, retriever.embeddings[rows], rows=rows).max()
    if moved <= tower_tolerance():
        return tower
    message = (
        f"The passage tower does not make the stored embeddings: it moves them by up to {moved:.3g} of their length, "
        f"where rounding explains {tower_tolerance():.2g}. The index was built from other weights, or is older than "
        "they are."
    )
    _refuse(message, "Build it from these weights, or pass `force=True` to publish it as it is.", "Published", force)
    return None


def check_fingerprint(what: str, expected: str | None, found: str | None, *, force: bool) -> None:
    """
    Compare two fingerprints; where one is not known there is nothing to compare.

    Args:
        what (`str`): The part that `found` is of, for the message.
        expected (`str`, *optional*): The fingerprint that was published.
        found (`str`, *optional*): The fingerprint of what is there.
        force (`bool`): Warn instead of refusing.

    Raises:
        HubArtefactError: They differ and `force` is `False`.
    """
    if expected is None or found is None or expected == found:
        return
    message = (
        f"{what} has fingerprint {found[:16]}, but the index was published with {expected[:16]}: its answers would be "
        "wrong without a word."
    )
    _refuse(message, "Load the revision that belongs to it, publish again, or pass `force=True`.", "Loaded", force)


def query_tower_record(embedder: RealmEmbedder) -> dict[str, str]:
    """The fingerprint of a query tower, and the type of its weights, as a publication names them."""
    dtype = str(embedder.dtype).removeprefix("torch.")
    return {"query_tower": state_fingerprint(embedder.state_dict()), "query_tower_dtype": dtype}


def _refuse(message: str, remedy: str, done: str, force: bool) -> None:
    """Raise a `HubArtefactError`, or with `force` warn that it was `done` all the same."""
    if not force:
        raise HubArtefactError(f"{message} {remedy}")
    logger.warning("%s %s all the same (`force=True`).", message, done)
