"""Builds a [`PassageStore`]: documents -> packed passages, or ready-made passages taken as they are.

`datasets.map` does the work in `num_proc` processes into a temporary Arrow file; one pass over that file then writes
the flat arrays. Memory stays bounded by a batch (plus 20 bytes a passage), and a killed build leaves no half store.
"""

import hashlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from realm_hf.data.documents import check_documents
from realm_hf.data.flat_arrays import RaggedWriter
from realm_hf.data.passages.packing import COUNTS, LONGEST_WORD, PassagePacker
from realm_hf.data.passages.store import FORMAT_VERSION, NULL_PASSAGE, PassageStore
from realm_hf.data.splitter import Splitter, split_sentences
from realm_hf.data.vocabulary import SpecialTokens, require_fast_tokenizer, token_dtype, tokenizer_fingerprint
from realm_hf.models.cut_lengths import MAX_PASSAGE_LENGTH
from realm_hf.storage.directories import StagedDirectory
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import describe_files, json_sha256, write_json

__all__ = ["NULL_PASSAGE", "PassageStore", "build_passages", "passages_from_rows"]

logger = logging.get_logger(__name__)

_ROW_FEATURES = Features({"title": Value("large_string"), "text": Value("large_string"), "document": Value("int64")})
_DOCUMENTS_A_BATCH = 64


def build_passages(
    documents: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    max_length: int = MAX_PASSAGE_LENGTH,
    min_sentences: int = 1,
    title_column: str | None = "title",
    text_column: str = "text",
    num_proc: int = 1,
    splitter: Splitter = split_sentences,
) -> PassageStore:
    """
    Cut documents into passages of whole sentences (greedy packing, section 4.1 and ORQA's preprocessing) and store
    them.

    A passage takes sentences in order while `[CLS] title [SEP] body [SEP]` has at most `max_length` wordpieces, and
    never crosses documents. Its text is the exact slice of the document. A sentence that alone is too long is split at
    the last white space within the limit; a title takes half of `max_length` at most. Of a run of more than 65,536
    characters without white space the rest is left out. Empty documents, cut words, split sentences, cut titles and
    dropped passages are counted in `statistics`.

    Args:
        documents (`Dataset`): One document a row; see [`~realm_hf.data.load_documents`].
        tokenizer (`PreTrainedTokenizerBase`): A fast BERT-like tokenizer.
        output_dir (`str` or `Path`): Where the store shall appear, in one rename. Must be absent or empty.
        max_length (`int`, *optional*, defaults to `MAX_PASSAGE_LENGTH`): Most wordpieces of a candidate input.
        min_sentences (`int`, *optional*, defaults to 1): Passages with fewer sentences are dropped, and counted.
        title_column (`str` or `None`, *optional*, defaults to `"title"`): Column of the title; `None` for none.
        text_column (`str`, *optional*, defaults to `"text"`): Column of the text.
        num_proc (`int`, *optional*, defaults to 1): Processes that split and tokenize. The result does not depend on
            it.
        splitter (`Splitter`, *optional*): Text -> character spans of its sentences.

    Returns:
        [`PassageStore`]

    Raises:
        ValueError: If the corpus is empty, a column is missing, or no passage is left.
        FileExistsError: If `output_dir` already holds something.
    """
    packer = PassagePacker(tokenizer, max_length, min_sentences, title_column, text_column, splitter)
    return _build(documents, packer, Path(output_dir), num_proc)


def passages_from_rows(
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    output_dir: str | Path,
    *,
    max_length: int = MAX_PASSAGE_LENGTH,
    title_column: str | None = "title",
    text_column: str = "text",
    num_proc: int = 1,
    splitter: Splitter = split_sentences,
) -> PassageStore:
    """
    Store passages that somebody else has cut: one row becomes one passage, truncated to `max_length` wordpieces.

    Truncated rows and skipped empty rows are counted; column `document` of the stored rows is the row of the source,
    so that references to source rows survive a skip. The arguments are those of [`build_passages`].
    """
    packer = PassagePacker(tokenizer, max_length, 1, title_column, text_column, splitter, whole=True)
    return _build(rows, packer, Path(output_dir), num_proc)


def _build(documents: Dataset, packer: PassagePacker, output_dir: Path, num_proc: int) -> PassageStore:
    check_documents(documents, [packer.text_column, *([packer.title_column] if packer.title_column else [])])
    require_fast_tokenizer(packer.tokenizer)
    if packer.max_length < 8:
        raise ValueError(f"max_length is {packer.max_length}: at least 8 wordpieces are needed for a title and a body")
    with explain_os_errors("write the passages into", output_dir), StagedDirectory(output_dir) as staged:
        work = staged.path
        packed_file = work / "packed.arrow"
        packed = documents.map(
            packer,
            batched=True,
            batch_size=_DOCUMENTS_A_BATCH,
            writer_batch_size=_DOCUMENTS_A_BATCH,
            num_proc=num_proc if num_proc > 1 else None,
            remove_columns=documents.column_names,
            features=packed_features(token_dtype(len(packer.tokenizer))),
            cache_file_name=str(packed_file),
            load_from_cache_file=False,
            # Nothing is looked up by it; without it, `datasets` would pickle and hash the tokenizer.
            new_fingerprint=f"realm-packed-{documents._fingerprint}",
            desc="Packing passages",
        )
        info = write_store(
            _arrow_batches(packed),
            work,
            documents=len(packed),
            tokenizer_name=tokenizer_fingerprint(packer.tokenizer),
            special_tokens=SpecialTokens.from_tokenizer(packer.tokenizer),
            dtype=token_dtype(len(packer.tokenizer)),
            max_length=packer.max_length,
            if_none=f"check the text column {packer.text_column!r} and min_sentences={packer.min_sentences}",
        )
        for leftover in work.glob("packed*.arrow"):
            leftover.unlink()
        write_json(work / "passages.json", info, durable=False)
    _report(info, output_dir)
    return PassageStore(output_dir)


def packed_features(dtype: np.dtype) -> Features:
    """One row a document. `List` offsets are 32-bit, which is ample for the passages of one batch of documents."""
    tokens, number = List(Value(dtype.name)), List(Value("int64"))
    columns: dict[str, Any] = {
        "title": Value("large_string"),
        "texts": List(Value("large_string")),
        "title_tokens": tokens,
        "body_tokens": tokens,
        "body_lengths": number,
        "sentence_starts": number,
        "sentence_counts": number,
        "text_hashes": number,
        "content_hashes": number,
    }
    return Features(columns | {name: Value("int64") for name in COUNTS})


@dataclass
class _ContentDigest:
    """Running hash of what the store says, apart from how its files happen to be laid out."""

    sha256: Any = field(default_factory=hashlib.sha256)

    def update(self, *arrays: np.ndarray) -> None:
        for array in arrays:
            self.sha256.update(np.ascontiguousarray(array, np.int64).tobytes())


def write_store(
    batches: Iterable[pa.Table],
    work: Path,
    *,
    documents: int,
    tokenizer_name: str,
    special_tokens: SpecialTokens,
    dtype: np.dtype,
    max_length: int,
    if_none: str,
) -> dict[str, Any]:
    """
    Stream packed documents into the flat arrays and the rows of a store.

    Args:
        batches (iterable of `pa.Table`): One row a document, with the columns of [`packed_features`]; a column
            `document` gives each document another number than its place.
        work (`Path`): The directory to write into.
        documents (`int`): How many documents there are in all.
        tokenizer_name (`str`): Fingerprint of the tokenizer.
        special_tokens ([`SpecialTokens`]): Its special tokens.
        dtype (`np.dtype`): Type of the ids.
        max_length (`int`): Most wordpieces of a candidate input.
        if_none (`str`): What to do if no passage comes out.

    Returns:
        `dict[str, Any]`: The content of `passages.json`, which the caller writes last.

    Raises:
        ValueError: If there is no passage.
    """
    names = ("title_tokens", "body_tokens", "sentence_starts")
    writers = {name: RaggedWriter(work, name, dtype) for name in names}
    counts: Counter[str] = Counter(dict.fromkeys(COUNTS, 0))
    digest, text_hashes, first_document = _ContentDigest(), [], 0
    rows_file = work / "packed_rows.arrow"
    with ArrowWriter(path=str(rows_file), features=_ROW_FEATURES) as rows:
        for batch in batches:
            passages = pc.list_value_length(batch["texts"]).to_numpy()
            of_document = np.repeat(np.arange(batch.num_rows), passages)
            numbers = first_document + np.arange(batch.num_rows)
            if "document" in batch.column_names:
                numbers = batch["document"].to_numpy()
            title_lengths = pc.list_value_length(batch["title_tokens"]).to_numpy()
            body_lengths, sentence_counts = _flat(batch["body_lengths"]), _flat(batch["sentence_counts"])
            titles = _repeat_rows(_flat(batch["title_tokens"]), title_lengths, passages)
            writers["title_tokens"].append(titles, title_lengths[of_document])
            writers["body_tokens"].append(_flat(batch["body_tokens"]), body_lengths)
            writers["sentence_starts"].append(_flat(batch["sentence_starts"]), sentence_counts)
            rows.write_table(
                pa.table(
                    {
                        "title": batch["title"].take(pa.array(of_document)),
                        "text": batch["texts"].combine_chunks().flatten(),
                        "document": pa.array(numbers[of_document]),
                    }
                )
            )
            text_hashes.append(_flat(batch["text_hashes"]))
            digest.update(
                _flat(batch["content_hashes"]), body_lengths, sentence_counts, _flat(batch["sentence_starts"])
            )
            digest.update(titles, _flat(batch["body_tokens"]))
            counts.update({name: int(pc.sum(batch[name]).as_py()) for name in COUNTS})
            first_document += batch.num_rows
        rows.finalize()
    files: dict[str, dict[str, Any]] = {}
    for writer in writers.values():
        files |= writer.close()
    count = writers["body_tokens"].rows
    if not count:
        raise ValueError(f"no passage came out of {documents} documents ({dict(counts)}): {if_none}")
    groups = _duplicate_groups(np.concatenate(text_hashes))
    stored = Dataset.from_file(str(rows_file)).add_column("duplicate_group", groups)
    stored.save_to_disk(str(work / "rows"))
    files |= describe_files(work / "rows", work)
    identity = {
        "format_version": FORMAT_VERSION,
        "tokenizer_fingerprint": tokenizer_name,
        "max_length": max_length,
        "content": digest.sha256.hexdigest(),
    }
    return {
        "count": count,
        "fingerprint": json_sha256(identity)[:16],
        **identity,
        "dtype": dtype.name,
        "special_tokens": special_tokens.to_dict(),
        "statistics": {
            "documents": documents,
            "passages": count,
            "wordpieces": writers["body_tokens"].values,
            "duplicate_passages": count - int(groups.max()) - 1,
            **counts,
        },
        "files": files,
    }


def _arrow_batches(packed: Dataset) -> Iterator[pa.Table]:
    for batch in packed.with_format("arrow").iter(batch_size=_DOCUMENTS_A_BATCH):
        yield batch.combine_chunks()


def _flat(column: pa.ChunkedArray) -> np.ndarray:
    """All values of a list column as one numpy array."""
    return column.combine_chunks().flatten().to_numpy(zero_copy_only=False)


def _repeat_rows(values: np.ndarray, lengths: np.ndarray, repeats: np.ndarray) -> np.ndarray:
    """Ragged `np.repeat`: row `i` of `values` comes `repeats[i]` times, rows one after the other."""
    starts = np.repeat(np.cumsum(lengths) - lengths, repeats)
    sizes = np.repeat(lengths, repeats)
    within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return values[np.repeat(starts, sizes) + within]


def _duplicate_groups(hashes: np.ndarray) -> np.ndarray:
    """Number the distinct hashes 0, 1, ... in order of their first passage, int32 `[N]`."""
    _, first, inverse = np.unique(hashes, return_index=True, return_inverse=True)
    rank = np.empty(len(first), np.int32)
    rank[np.argsort(first)] = np.arange(len(first), dtype=np.int32)
    return rank[inverse]


def _report(info: dict[str, Any], output_dir: Path) -> None:
    counts = info["statistics"]
    logger.debug("%s: %s", output_dir, counts)
    if counts["empty_documents"]:
        logger.warning(
            "%d of %d documents have no text and were skipped", counts["empty_documents"], counts["documents"]
        )
    if counts["long_words_cut"]:
        logger.warning(
            "%d runs of more than %d characters without white space were cut there: are they texts?",
            counts["long_words_cut"],
            LONGEST_WORD,
        )
