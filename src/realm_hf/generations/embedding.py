"""Passages -> embeddings `[N, D]`, on one process or a share on each rank.

Rows are sorted by length within windows and cut into batches that are padded only to their own longest row: on a
corpus of mixed lengths a fixed batch size would spend much of the time on padding. Windows, and not one sort over the
corpus, keep the reads of the memory-mapped tokens near each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import torch

from realm_hf.index.faiss_index import check_finite
from realm_hf.models.modeling_bert_tower import padding_mask
from realm_hf.models.prompts import prompt_ids, room_beside_prompt
from realm_hf.models.ragged_encoding import CHUNK_TOKENS, plan_chunks
from realm_hf.models.transfer import to_device
from realm_hf.progress import progress_bar

if TYPE_CHECKING:
    from realm_hf.data.passages.tokens import PassageTokens
    from realm_hf.models.modeling_realm import RealmEmbedder

__all__ = ["ROWS_A_WINDOW", "embed_passages", "evaluating", "pad_passages", "shard"]

ROWS_A_WINDOW = 16_384
"""Rows that are sorted by length and cut into batches together."""


def shard(n: int, rank: int, world: int) -> slice:
    """
    The rows of one rank: contiguous, and of equal size up to one row.

    Args:
        n (`int`): Rows of the corpus.
        rank (`int`): This rank, from 0.
        world (`int`): Number of ranks. With more ranks than rows the last ranks get none.

    Returns:
        `slice`: Over all ranks in order these cover `range(n)` once.
    """
    if not 0 <= rank < world:
        raise ValueError(f"Rank {rank} is not one of {world} ranks (0 to {world - 1}).")
    return slice(n * rank // world, n * (rank + 1) // world)


@torch.inference_mode()
def embed_passages(
    embedder: RealmEmbedder,
    passages: PassageTokens,
    out: np.ndarray | None = None,
    *,
    rows: slice | np.ndarray = slice(None),
    max_tokens_per_batch: int | None = None,
    device: str | torch.device | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> np.ndarray:
    """
    Embed passages without gradient and without dropout (section 3.3: the index over Embed_doc(z)).

    The arithmetic is the embedder's own, float32 as a rule. Under `torch.autocast` it is that of the context, several
    times faster on a GPU; bfloat16 moves entries by about 0.03.

    Args:
        embedder ([`RealmEmbedder`]): The passage tower. Its training mode is restored.
        passages ([`PassageStore`] or [`PassagesInMemory`]): The passages.
        out (`np.ndarray` of shape `[N, D]`, *optional*): Filled in place at `rows`; float32 or float16, may be
            memory-mapped.
        rows (`slice` or `np.ndarray` of row numbers, *optional*): Which passages; all by default. See [`shard`].
        max_tokens_per_batch (`int`, *optional*): Largest batch, padding included. Defaults to 4,096 on CPU and 65,536
            on GPU.
        device (`str` or `torch.device`, *optional*): Where to run; the embedder is moved there. Its own by default.
        progress (`Callable`, *optional*): Called after each batch with the rows done and the rows to do; a bar by
            default, see [`progress_bar`].

    Returns:
        `np.ndarray`: `out`, or a float32 array `[number of rows, D]` if there is none.

    Raises:
        ValueError: If `out` does not fit, a passage is longer than the embedder's positions, or an embedding holds NaN
            or infinity (the row is named).
    """
    if device is not None:
        torch.nn.Module.to(embedder, device)
    numbers = np.arange(len(passages))[rows]
    _check_fits(embedder, passages, out, numbers)
    result = np.empty((len(numbers), embedder.config.retriever_proj_size), np.float32) if out is None else out
    smallest, largest = CHUNK_TOKENS.get(embedder.device.type, CHUNK_TOKENS["cuda"])
    done = 0
    shown = None if progress is None else False
    with evaluating(embedder), progress_bar(len(numbers), "embedding", "passages", shown) as bar:
        for positions in _batches(passages.lengths[numbers], max_tokens_per_batch or largest, smallest):
            batch = numbers[positions]
            padded = pad_passages(embedder, passages, batch)
            inputs: dict[str, torch.Tensor | None] = {**to_device(padded, embedder.device)}
            mask = None if padded["attention_mask"].all() else inputs["attention_mask"]
            inputs["attention_mask"] = padding_mask(embedder.realm, mask)
            embeddings = embedder(**inputs).projected_score.float().cpu().numpy()
            bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
            if len(bad):
                check_finite(embeddings[bad[:1]], int(batch[bad[0]]))
            result[positions if out is None else batch] = embeddings
            done += len(batch)
            bar.update(len(batch))
            if progress is not None:
                progress(done, len(numbers))
    return result


def pad_passages(embedder: RealmEmbedder, passages: PassageTokens, rows: np.ndarray) -> dict[str, torch.Tensor]:
    """
    The padded inputs `[R, L]` of passage rows on the host, as the embedder reads them: see [`with_prompt`].

    Raises:
        ValueError: Titles and bodies are to be joined, and the tokenizer's tokens cannot be.
    """
    config = embedder.config
    room = room_beside_prompt(config, "document", passages.max_length)
    padded = to_device(passages.pad_candidates(rows, room), None)
    if config.document_format == "joined" and passages.special_tokens.first_word_differs:
        raise ValueError(
            "The embedder joins titles and texts (document_format='joined'), but the passages' tokenizer has other "
            "tokens for a word behind a space than at the beginning of a text: use document_format='pair'."
        )
    as_it_is = config.document_format == "pair" and not prompt_ids(config, "document")
    return padded if as_it_is else embedder.with_prompt("document", padded)[0]


def _check_fits(embedder: RealmEmbedder, passages: PassageTokens, out: np.ndarray | None, numbers: np.ndarray) -> None:
    shape = (len(passages), embedder.config.retriever_proj_size)
    if out is not None and out.shape != shape:
        raise ValueError(
            f"out has shape {list(out.shape)}, but {shape[0]} passages of dimension {shape[1]} need it all."
        )
    longest = int(passages.lengths[numbers].max(initial=0))
    if longest > embedder.config.max_position_embeddings:
        raise ValueError(
            f"A passage has {longest} wordpieces, the embedder {embedder.config.max_position_embeddings} positions: "
            f"build the passages with max_length={embedder.config.max_position_embeddings} or less."
        )


def _batches(lengths: np.ndarray, max_tokens: int, min_tokens: int) -> Iterator[np.ndarray]:
    """Positions within `lengths`, batch by batch."""
    for start in range(0, len(lengths), ROWS_A_WINDOW):
        window = lengths[start : start + ROWS_A_WINDOW].tolist()
        for chunk in plan_chunks(window, max_tokens, min_tokens):
            yield start + np.array(chunk)


@contextmanager
def evaluating(embedder: RealmEmbedder) -> Iterator[None]:
    """Inside, a tower is in evaluation mode; afterwards in the one it was in."""
    was_training = embedder.training
    embedder.eval()
    try:
        yield
    finally:
        embedder.train(was_training)
