"""From passages as wordpieces to postings: which passage holds which word, and how often."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from realm_hf.data.flat_arrays import RaggedArray
from realm_hf.data.passages.store import PassageStore
from realm_hf.data.passages.terms import STOP_TERMS, TermReader
from realm_hf.data.vocabulary import encode_texts
from realm_hf.progress import progress_bar

__all__ = ["postings_of", "stored_texts", "tokenized_texts"]

_ROWS_A_CHUNK = 16_384

Texts = tuple[RaggedArray, RaggedArray]
"""Titles and bodies of some passages, as wordpieces."""


def postings_of(
    reader: TermReader, texts: Iterable[Texts], count: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """
    Which passage holds which term.

    Args:
        reader ([`TermReader`]): Makes terms of wordpieces.
        texts (iterable of titles and bodies): The passages, piece by piece.
        count (`int`): How many passages they are.

    Returns:
        `tuple` of terms uint64 `[P]`, ascending; passages int32 `[P]`, ascending for each term; how often float32
        `[P]`; and the terms of each passage int64 `[N]`. Stop words are left out.
    """
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    lengths: list[np.ndarray] = []
    done = 0
    bar = progress_bar(count, "reading words", "passages")
    for titles, bodies in texts:
        pairs = [reader(titles), reader(bodies)]
        terms, rows = (np.concatenate(both) for both in zip(*pairs, strict=True))
        kept = ~np.isin(terms, STOP_TERMS)
        terms, rows = terms[kept], rows[kept]
        lengths.append(np.bincount(rows, minlength=len(bodies)))
        order = np.lexsort((rows, terms))
        terms, rows = terms[order], rows[order]
        first = np.ones(len(terms), bool)
        first[1:] = (terms[1:] != terms[:-1]) | (rows[1:] != rows[:-1])
        counts = np.diff(np.append(np.flatnonzero(first), len(terms)))
        parts.append((terms[first], (done + rows[first]).astype(np.int32), counts.astype(np.float32)))
        done += len(bodies)
        bar.update(len(bodies))
    bar.close()
    joined = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.argsort(joined[0], kind="stable")
    return joined[0][order], joined[1][order], joined[2][order], np.concatenate(lengths)


def stored_texts(passages: PassageStore) -> Iterator[Texts]:
    """The wordpieces of a store, some thousand passages at a time."""
    for start in range(0, len(passages), _ROWS_A_CHUNK):
        stop = min(len(passages), start + _ROWS_A_CHUNK)
        yield _slice(passages.title_tokens, start, stop), _slice(passages.body_tokens, start, stop)


def _slice(array: RaggedArray, start: int, stop: int) -> RaggedArray:
    offsets = array.offsets[start : stop + 1]
    return RaggedArray.from_flat(array.values[offsets[0] : offsets[-1]], offsets - offsets[0])


def tokenized_texts(passages: Dataset, tokenizer: PreTrainedTokenizerBase | None) -> Iterator[Texts]:
    """The wordpieces of a dataset's columns `title`, if there is one, and `text`; a `ValueError` without tokenizer."""
    if tokenizer is None:
        raise ValueError("The passages are a dataset, whose texts must be tokenized: give the retriever a tokenizer.")

    def encoded(texts: list[str | None]) -> RaggedArray:
        ids = encode_texts(tokenizer, [text or "" for text in texts])["input_ids"]
        return RaggedArray.from_rows([np.asarray(row, np.int64) for row in ids], np.dtype(np.int64))

    for batch in passages.iter(1000):
        yield encoded(batch.get("title") or [""] * len(batch["text"])), encoded(batch["text"])
