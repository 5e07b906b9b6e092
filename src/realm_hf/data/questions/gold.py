"""Where the gold passages that a data set names stand in a passage store, which may have cut them otherwise.

A gold passage is a document of the knowledge corpus, by its number, or a text, as in SQuAD's `context`. A text is
compared by runs of eight wordpieces, so that case, white space and the places of the cuts do not matter.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from transformers import PreTrainedTokenizerBase

from realm_hf.data.flat_arrays import RaggedArray
from realm_hf.data.passages.store import PassageStore
from realm_hf.data.passages.words import folded
from realm_hf.data.questions.load import OpenQAExample
from realm_hf.data.vocabulary import encode_texts

__all__ = ["find_gold_rows"]

_RUN = 8
_SHARED = 0.5  # of the runs of the shorter of both: boilerplate that many texts have stays below
_RUNS_AT_ONCE = 4_000_000


def find_gold_rows(
    examples: Sequence[OpenQAExample], passages: PassageStore, tokenizer: PreTrainedTokenizerBase
) -> list[np.ndarray]:
    """
    The rows of each question's gold passages.

    Args:
        examples (sequence of Q [`OpenQAExample`]): The questions.
        passages ([`PassageStore`]): The knowledge corpus.
        tokenizer (`PreTrainedTokenizerBase`): The one that made the passages.

    Returns:
        `list` of Q `np.ndarray`: int64, each row once; in the order of the document, or best match first for a text.
        Empty where nothing is named or it is not found. Whether a row holds the answer is not asked here.

    Raises:
        ValueError: If a number is no document of the corpus; the question is named.
    """
    texts = list(dict.fromkeys(gold for example in examples for gold in example.gold if isinstance(gold, str)))
    found = dict(zip(texts, _rows_of_texts(texts, passages, tokenizer), strict=True))
    order = np.argsort(passages.documents, kind="stable")
    documents = passages.documents[order]

    def rows_of(example: OpenQAExample, gold: int | str) -> np.ndarray:
        if isinstance(gold, str):
            return found[gold]
        if not 0 <= gold <= int(documents[-1]):
            raise ValueError(
                f"The gold passage of {example.question!r} is document {gold}, but the corpus has 0 to "
                f"{documents[-1]}: name the column that numbers the documents of this corpus."
            )
        first, last = np.searchsorted(documents, [gold, gold + 1])
        return order[first:last]

    nothing = np.zeros(0, np.int64)
    rows = ([nothing, *(rows_of(example, gold) for gold in example.gold)] for example in examples)
    return [np.array(list(dict.fromkeys(np.concatenate(each).tolist())), np.int64) for each in rows]


def _rows_of_texts(texts: list[str], passages: PassageStore, tokenizer: PreTrainedTokenizerBase) -> list[np.ndarray]:
    """Rows `[n]` of the passages that share most of their runs with each text, the most similar first."""
    if not texts:
        return []
    encoded = [np.array(ids, np.int64) for ids in encode_texts(tokenizer, texts)["input_ids"]]
    runs = _runs(RaggedArray.from_rows(encoded, np.dtype(np.int64)))
    keys, text_of = map(np.concatenate, zip(*runs, strict=True))
    order = np.lexsort((text_of, keys))
    keys, text_of = keys[order], text_of[order]
    # A run that a text repeats counts once.
    new = np.ones(len(keys), bool)
    new[1:] = (keys[1:] != keys[:-1]) | (text_of[1:] != text_of[:-1])
    keys, text_of = keys[new], text_of[new]
    pairs = [np.zeros(0, np.int64)]
    for key, row in _runs(passages.body_tokens):
        first, last = np.searchsorted(keys, key), np.searchsorted(keys, key, side="right")
        hits = last - first
        at = np.repeat(first - (np.cumsum(hits) - hits), hits) + np.arange(hits.sum())
        pairs.append(text_of[at] * len(passages) + np.repeat(row, hits))
    pair, shared = np.unique(np.concatenate(pairs), return_counts=True)
    text, row = np.divmod(pair, len(passages))
    lengths = np.array([len(ids) for ids in encoded])
    kept = shared >= _SHARED * (np.minimum(lengths[text], passages.body_tokens.lengths(row)) - _RUN + 1)
    text, row, shared = text[kept], row[kept], shared[kept]
    order = np.lexsort((row, -shared, text))
    return np.split(row[order], np.searchsorted(text[order], np.arange(1, len(texts))))


def _runs(texts: RaggedArray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Hash and text of each run of wordpieces, uint64 and int64 `[R]`, in pieces that fit the memory."""
    for start in range(0, max(1, len(texts.values) - _RUN + 1), _RUNS_AT_ONCE):
        first = np.arange(start, min(start + _RUNS_AT_ONCE, len(texts.values) - _RUN + 1))
        row = np.searchsorted(texts.offsets, first, side="right") - 1
        inside = first + _RUN <= texts.offsets[row + 1]
        first, row = first[inside], row[inside]
        values = np.asarray(texts.values[start : start + _RUNS_AT_ONCE + _RUN - 1]).astype(np.uint64)
        yield folded(values, first - start, _RUN), row
