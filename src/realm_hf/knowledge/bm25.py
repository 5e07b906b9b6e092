"""BM25 over passages as flat arrays: built once a corpus, memory-mapped ever after.

    bm25.json          counts, k1, b, average length, fingerprint of the passages, files with sha256
    terms.bin          uint64 [T], ascending: a hash of each word
    weights.bin        float32 [T]: the term's inverse document frequency; 0 for stop words
    offsets.bin        int64 [T + 1]: term i has the postings offsets[i] to offsets[i + 1]
    rows.bin           int32 [P]: passages that hold the term, ascending
    scores.bin         float32 [P]: what the term adds to the passage's score
    piece_*.bin        what makes words of token ids, see TermReader

    score(x, z) = sum over the words w of x of  idf(w) tf / (tf + k1 (1 - b + b length / average length))
    idf(w) = log(1 + (N - n + 0.5) / (n + 0.5))

Numbers are those of `bm25s` (its method "lucene", which a test compares), and so is the idea of storing what a term
adds instead of counts. The library itself was left out: it tokenizes texts anew, counts in Python loops, and has no
place for passages that are edited afterwards, while these arrays are made of stored wordpieces by sorting, and are
checked like any other array when they come from a stranger. A dense array of N scores is made for each query: simple,
exact, and some ten milliseconds for a million passages.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from realm_hf.data.flat_arrays import RaggedArray
from realm_hf.data.passages.postings import postings_of, stored_texts, tokenized_texts
from realm_hf.data.passages.store import PassageStore
from realm_hf.data.passages.terms import STOP_TERMS, TermReader
from realm_hf.storage.directories import StagedDirectory
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import check_files, describe_files, read_description, write_json

__all__ = ["BM25_FILE", "BM25_FOLDER", "BM25Index", "build_bm25"]

BM25_FILE, BM25_FOLDER = "bm25.json", "bm25"
_FORMAT_VERSION = 1
_ARRAYS: dict[str, type] = {
    "terms": np.uint64,
    "weights": np.float32,
    "offsets": np.int64,
    "rows": np.int32,
    "scores": np.float32,
    "piece_hashes": np.uint64,
    "piece_lengths": np.uint8,
    "piece_kinds": np.uint8,
}


@dataclass(frozen=True, eq=False)
class BM25Index:
    """
    N passages by their words.

    Args:
        count (`int`): N.
        passages_fingerprint (`str`, *optional*): Of the [`PassageStore`]; `None` for a dataset.
        k1 (`float`): How fast a repeated word counts less.
        b (`float`): How much a long passage's words count less, 0 to 1.
        average_length (`float`): Words of a passage, stop words left out.
        reader ([`TermReader`]): Makes terms of token ids.
        terms (`np.ndarray`, uint64 `[T]`): Ascending.
        weights (`np.ndarray`, float32 `[T]`): Inverse document frequencies; 0 for stop words.
        offsets (`np.ndarray`, int64 `[T + 1]`): Where the postings of each term begin.
        rows (`np.ndarray`, int32 `[P]`): Passages.
        scores (`np.ndarray`, float32 `[P]`): What the term adds there.
        directory (`Path`, *optional*): Where the arrays are mapped from.
    """

    count: int
    passages_fingerprint: str | None
    k1: float
    b: float
    average_length: float
    reader: TermReader
    terms: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    directory: Path | None = None

    def __len__(self) -> int:
        return self.count

    def __reduce__(self) -> Any:
        if self.directory is not None:
            return type(self).open, (self.directory,)
        return super().__reduce__()

    def query_terms(self, token_ids: Sequence[np.ndarray]) -> list[np.ndarray]:
        """
        The terms of queries, without special tokens: where a query is masked, nothing stands.

        Args:
            token_ids (sequence of B `np.ndarray`): Token ids of each, special tokens included or not.

        Returns:
            list of B `np.ndarray`: uint64; a word that comes twice is there twice.
        """
        terms, rows = self.reader(RaggedArray.from_rows(token_ids, np.dtype(np.int64)))
        return np.split(terms, np.searchsorted(rows, np.arange(1, len(token_ids))))

    def score(self, terms: np.ndarray) -> np.ndarray:
        """
        The scores of all passages for one query.

        Args:
            terms (`np.ndarray`, uint64 `[n]`): Its terms, from [`query_terms`].

        Returns:
            `np.ndarray`: float32 `[N]`; 0 where no word of the query stands.
        """
        scores = np.zeros(self.count, np.float32)
        distinct, counts = np.unique(terms, return_counts=True)
        place = np.searchsorted(self.terms, distinct)
        known = place < len(self.terms)
        known[known] = self.terms[place[known]] == distinct[known]
        # Always in the order of the terms: the sums are the same to the last bit whoever asks.
        for term, count in zip(place[known].tolist(), counts[known].tolist(), strict=True):
            start, stop = self.offsets[term], self.offsets[term + 1]
            added = self.scores[start:stop]
            scores[self.rows[start:stop]] += added if count == 1 else count * added
        return scores

    def like(self, title_ids: Sequence[np.ndarray], body_ids: Sequence[np.ndarray]) -> BM25Index:
        """
        A small index of other passages with this one's frequencies and average length, as if these were some of its
        own: for passages that were added to it or stand in another's place.
        """
        dtype = np.dtype(np.int64)
        texts = [(RaggedArray.from_rows(title_ids, dtype), RaggedArray.from_rows(body_ids, dtype))]
        terms, rows, counts, lengths = postings_of(self.reader, texts, len(body_ids))
        distinct, start = np.unique(terms, return_index=True)
        weights = np.full(len(distinct), _idf(self.count, np.zeros(1)), np.float32)
        if len(self.terms):
            place = np.minimum(np.searchsorted(self.terms, distinct), len(self.terms) - 1)
            weights = np.where(self.terms[place] == distinct, self.weights[place], weights)
        offsets = np.append(start, len(terms)).astype(np.int64)
        scores = np.repeat(weights, np.diff(offsets)) * self._saturation(counts, lengths[rows])
        return replace(
            self,
            count=len(body_ids),
            terms=distinct,
            weights=weights,
            offsets=offsets,
            rows=rows,
            scores=scores.astype(np.float32),
            directory=None,
        )

    def rebuilt(self, passages: PassageStore | Dataset, tokenizer: PreTrainedTokenizerBase | None) -> BM25Index:
        """The same index of other passages; only the texts of a dataset need the tokenizer."""
        return _built(passages, self.reader, tokenizer, self.k1, self.b)

    def _saturation(self, counts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        return counts / (counts + self.k1 * (1 - self.b + self.b * lengths / self.average_length))

    # Files

    def save(self, directory: str | Path) -> None:
        """
        Write the index into a directory that appears complete or not at all; an earlier one is replaced.

        Raises:
            OSError: If the disk is full or read-only, in words.
        """
        arrays = {
            **{name: getattr(self, name) for name in ("terms", "weights", "offsets", "rows", "scores")},
            **{f"piece_{name}": getattr(self.reader, name) for name in ("hashes", "lengths", "kinds")},
        }
        with (
            explain_os_errors("write the BM25 index into", Path(directory)),
            StagedDirectory(directory, replace=True) as staged,
        ):
            for name, values in arrays.items():
                with staged.file(f"{name}.bin") as file:
                    file.write(np.ascontiguousarray(values, _ARRAYS[name]).view(np.uint8).data)
            description = {
                "format_version": _FORMAT_VERSION,
                "count": self.count,
                "passages_fingerprint": self.passages_fingerprint,
                "k1": self.k1,
                "b": self.b,
                "average_length": self.average_length,
                "files": describe_files(staged.path, staged.path),
            }
            write_json(staged.path / BM25_FILE, description, durable=False)

    @classmethod
    def open(cls, directory: str | Path, *, mmap: bool = True, verify: bool = False) -> Self:
        """
        Open what [`save`] wrote.

        Args:
            directory (`str` or `Path`): Where it is.
            mmap (`bool`, *optional*, defaults to `True`): Map the arrays instead of reading them.
            verify (`bool`, *optional*, defaults to `False`): Read all files and compare their sha256; and check that
                the arrays are what they must be, as is done for a stranger's. Sizes are always compared.

        Raises:
            FileNotFoundError: If there is no index.
            ValueError: If files are missing, cut or changed, or do not belong together.
        """
        folder = Path(directory)
        info = read_description(folder / BM25_FILE, _FORMAT_VERSION, "BM25 index", "build one with `BM25Source.build`")
        if info["files"].keys() != {f"{name}.bin" for name in _ARRAYS}:
            raise ValueError(
                f"{folder / BM25_FILE} lists {sorted(info['files'])[:10]}: it is damaged, build it again."
            )
        arrays = {name: _opened(folder / f"{name}.bin", np.dtype(kind), mmap) for name, kind in _ARRAYS.items()}
        pieces = {name.removeprefix("piece_"): arrays.pop(name) for name in list(arrays) if name.startswith("piece_")}
        index = cls(
            count=int(info["count"]),
            passages_fingerprint=info["passages_fingerprint"],
            k1=float(info["k1"]),
            b=float(info["b"]),
            average_length=float(info["average_length"]),
            reader=TermReader(**pieces),
            **arrays,
            directory=folder if mmap else None,
        )
        if len(index.offsets) != len(index.terms) + 1 or len(index.weights) != len(index.terms):
            raise ValueError(
                f"{folder}: {len(index.terms)} terms do not fit their offsets and weights: build it again"
            )
        if verify:
            check_files(folder, info["files"], verify=True)
            index.check()
        return index

    def check(self) -> None:
        """Read all arrays; a `ValueError` if a search in them could go wrong."""
        reader, postings = self.reader, len(self.rows)
        wrong = {
            "the terms are not in ascending order": (self.terms[1:] <= self.terms[:-1]).any(),
            "the postings' offsets do not ascend from 0 to their number": self.offsets[0] != 0
            or self.offsets[-1] != postings
            or (np.diff(self.offsets) < 0).any(),
            "there are not as many scores as postings": len(self.scores) != postings,
            "a posting names no passage": bool(postings) and not 0 <= self.rows.min() <= self.rows.max() < self.count,
            "a passage comes twice for one term": (_steps(self.rows, self.offsets) <= 0).any(),
            "a score is no positive number": not all(
                bool((np.isfinite(values) & (values >= 0)).all()) for values in (self.scores, self.weights)
            ),
            "the wordpieces' arrays differ in length": not len(reader.hashes)
            == len(reader.lengths)
            == len(reader.kinds),
            "k1, b or the average length is out of range": not (
                self.k1 >= 0 and 0 <= self.b <= 1 and self.average_length > 0 and np.isfinite(self.average_length)
            ),
        }
        for what, is_so in wrong.items():
            if is_so:
                raise ValueError(f"The BM25 index cannot be used, {what}: it is damaged, build it again.")


def build_bm25(
    passages: PassageStore | Dataset, tokenizer: PreTrainedTokenizerBase, *, k1: float = 1.5, b: float = 0.75
) -> BM25Index:
    """
    The BM25 index of passages: title and body, whole words joined from wordpieces, English stop words left out.

    Args:
        passages ([`PassageStore`] or `Dataset`): A store's wordpieces are read as they are; the texts of a dataset
            are tokenized once.
        tokenizer (`PreTrainedTokenizerBase`): Theirs.
        k1 (`float`, *optional*, defaults to 1.5): How fast a repeated word counts less.
        b (`float`, *optional*, defaults to 0.75): How much a long passage's words count less, 0 to 1.

    Returns:
        [`BM25Index`]: In memory; about 8 bytes for each different word of each passage.

    Raises:
        ValueError: If a number is out of range, or no passage holds a word.
    """
    if k1 < 0 or not 0 <= b <= 1:
        raise ValueError(f"k1 is {k1} and b is {b}: at least 0, and between 0 and 1 are needed.")
    return _built(passages, TermReader.of(tokenizer), tokenizer, k1, b)


def _built(
    passages: PassageStore | Dataset,
    reader: TermReader,
    tokenizer: PreTrainedTokenizerBase | None,
    k1: float,
    b: float,
) -> BM25Index:
    texts = stored_texts(passages) if isinstance(passages, PassageStore) else tokenized_texts(passages, tokenizer)
    terms, rows, counts, lengths = postings_of(reader, texts, len(passages))
    if not len(terms):
        raise ValueError("No passage holds a word that is no stop word: there is nothing to search by words.")
    distinct, found = np.unique(terms, return_counts=True)
    # A stop word is known, and weighs nothing.
    known = np.union1d(distinct, STOP_TERMS)
    frequency = np.zeros(len(known), np.int64)
    frequency[np.searchsorted(known, distinct)] = found
    weights = np.where(np.isin(known, STOP_TERMS), 0.0, _idf(len(lengths), frequency)).astype(np.float32)
    index = BM25Index(
        count=len(lengths),
        passages_fingerprint=passages.fingerprint if isinstance(passages, PassageStore) else None,
        k1=float(k1),
        b=float(b),
        average_length=float(lengths.mean()),
        reader=reader,
        terms=known,
        weights=weights,
        offsets=np.concatenate([[0], np.cumsum(frequency)]),
        rows=rows,
        scores=np.zeros(0, np.float32),
    )
    scores = np.repeat(weights[frequency > 0], found) * index._saturation(counts, lengths[rows])
    return replace(index, scores=scores.astype(np.float32))


def _idf(count: int, frequency: np.ndarray) -> np.ndarray:
    return np.log1p((count - frequency + 0.5) / (frequency + 0.5))


def _opened(path: Path, dtype: np.dtype, mmap: bool) -> np.ndarray:
    size = path.stat().st_size
    if size % dtype.itemsize:
        raise ValueError(f"{path} has {size} bytes, no whole number of {dtype} values: it is damaged, build it again.")
    if mmap and size:
        return np.asarray(np.memmap(path, dtype, mode="r"))
    return np.fromfile(path, dtype)


def _steps(rows: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """From each posting to the next of the same term, int64."""
    inside = np.ones(max(0, len(rows) - 1), bool)
    ends = offsets[1:-1]
    inside[ends[(ends > 0) & (ends < len(rows))] - 1] = False
    return np.diff(rows.astype(np.int64))[inside]
