"""Builds a [`PassageStore`]: documents -> packed passages, or ready-made passages taken as they are.

Ranges of documents are packed by `num_proc` processes, and by all others that make the same call on nodes that share
the directory; one of them joins the parts. Memory stays bounded by a batch (plus 40 bytes a passage while they are
joined). A killed build leaves no half store, and the next one goes on from its finished ranges.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from realm_hf.data.documents import Documents, readable_documents
from realm_hf.data.passages.packing import LONGEST_WORD, PassagePacker
from realm_hf.data.passages.parts import DOCUMENTS_A_BATCH, join_parts, packed_features, write_part
from realm_hf.data.passages.store import NULL_PASSAGE, PassageStore
from realm_hf.data.ranges import Part, build_in_ranges, helpers_for
from realm_hf.data.splitter import Splitter, split_sentences, splitter_key
from realm_hf.data.vocabulary import SpecialTokens, require_fast_tokenizer, token_dtype, tokenizer_fingerprint
from realm_hf.models.cut_lengths import MAX_PASSAGE_LENGTH
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import write_json

__all__ = ["NULL_PASSAGE", "PassageStore", "build_passages", "passages_from_rows"]

logger = logging.get_logger(__name__)


def build_passages(
    documents: Documents,
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
        documents (`Dataset`, `IterableDataset` or iterable of mappings): One document a row; see
            [`~realm_hf.data.load_documents`]. Of a stream 16,384 documents are in memory at once, in each process;
            the store is that of the same rows in a `Dataset`.
        tokenizer (`PreTrainedTokenizerBase`): A fast BERT-like tokenizer.
        output_dir (`str` or `Path`): Where the store shall appear, in one rename. Must be absent or empty.
        max_length (`int`, *optional*, defaults to `MAX_PASSAGE_LENGTH`): Most wordpieces of a candidate input.
        min_sentences (`int`, *optional*, defaults to 1): Passages with fewer sentences are dropped, and counted.
        title_column (`str` or `None`, *optional*, defaults to `"title"`): Column of the title; `None` for none.
        text_column (`str`, *optional*, defaults to `"text"`): Column of the text.
        num_proc (`int`, *optional*, defaults to 1): Processes that split and tokenize. The result does not depend on
            it, nor on how many others make the same call at this time on nodes that share the directory.
        splitter (`Splitter`, *optional*): Text -> character spans of its sentences.

    Returns:
        [`PassageStore`]

    Raises:
        ValueError: If the corpus is empty, a column is missing, or no passage is left.
        FileExistsError: If `output_dir` already holds something.
        OSError: The disk is full or read-only. The ranges that were ready stay beside `output_dir`, and the next call
            goes on from them.
    """
    packer = PassagePacker(tokenizer, max_length, min_sentences, title_column, text_column, splitter)
    return _build(documents, packer, Path(output_dir), num_proc)


def passages_from_rows(
    rows: Documents,
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


def _build(rows: Documents, packer: PassagePacker, output_dir: Path, num_proc: int) -> PassageStore:
    documents = readable_documents(rows, [packer.text_column, *([packer.title_column] if packer.title_column else [])])
    require_fast_tokenizer(packer.tokenizer)
    if packer.max_length < 8:
        raise ValueError(f"max_length is {packer.max_length}: at least 8 wordpieces are needed for a title and a body")
    key = {
        "kind": "passages",
        "tokenizer": tokenizer_fingerprint(packer.tokenizer),
        "max_length": packer.max_length,
        "min_sentences": packer.min_sentences,
        "columns": [packer.title_column, packer.text_column],
        "splitter": splitter_key(packer.splitter),
        "whole": packer.whole,
    }
    helpers = helpers_for(documents, num_proc)
    with explain_os_errors("write the passages into", output_dir):
        build_in_ranges(
            documents,
            output_dir,
            key=key,
            prepare=_PackRange(packer, num_proc=1 if helpers else num_proc),
            join=_JoinRanges(packer),
            helpers=helpers,
        )
    store = PassageStore(output_dir)
    _report(store.statistics, output_dir)
    return store


@dataclass
class _PackRange:
    """Documents of a range -> a part."""

    packer: PassagePacker
    num_proc: int

    def __call__(self, documents: Dataset, first: int, folder: Path) -> dict[str, Any]:
        dtype = token_dtype(len(self.packer.tokenizer))
        packed = documents.map(
            self.packer,
            batched=True,
            batch_size=DOCUMENTS_A_BATCH,
            writer_batch_size=DOCUMENTS_A_BATCH,
            num_proc=self.num_proc if self.num_proc > 1 else None,
            remove_columns=documents.column_names,
            features=packed_features(dtype),
            cache_file_name=str(folder / "packed.arrow"),
            load_from_cache_file=False,
            # Nothing is looked up by it; without it, `datasets` would pickle and hash the tokenizer.
            new_fingerprint=f"realm-packed-{documents._fingerprint}",
            desc="Packing passages",
        )
        facts = write_part(_arrow_batches(packed), folder, dtype=dtype, first_document=first)
        for leftover in folder.glob("packed*.arrow"):
            leftover.unlink()
        return facts


@dataclass
class _JoinRanges:
    """Parts of all ranges -> the store."""

    packer: PassagePacker

    def __call__(self, parts: Sequence[Part], work: Path) -> None:
        packer = self.packer
        info = join_parts(
            parts,
            work,
            tokenizer_name=tokenizer_fingerprint(packer.tokenizer),
            special_tokens=SpecialTokens.from_tokenizer(packer.tokenizer),
            dtype=token_dtype(len(packer.tokenizer)),
            max_length=packer.max_length,
            if_none=f"check the text column {packer.text_column!r} and min_sentences={packer.min_sentences}",
        )
        write_json(work / "passages.json", info, durable=False)


def _arrow_batches(packed: Dataset) -> Iterator[pa.Table]:
    for batch in packed.with_format("arrow").iter(batch_size=DOCUMENTS_A_BATCH):
        yield batch.combine_chunks()


def _report(counts: dict[str, int], output_dir: Path) -> None:
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
