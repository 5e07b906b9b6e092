"""Documents -> sentences with salient spans, tokenized once: the queries of pre-training.

    SENTENCES/sentences.json   counts (skips by reason), lengths, fingerprints, files with sha256
    SENTENCES/rows/            `datasets` rows: text, input_ids, span_starts, span_ends, span_labels, document, heldout

Splitting and tagging are cached on disk under the fingerprint of documents, splitter and tagger; a visit then costs
one row. The release draws a span from a whole passage and takes its sentence; here each sentence with a span is an
example of its own, so that data order can be permuted and resumed by row number.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value
from datasets.arrow_writer import ArrowWriter
from datasets.fingerprint import Hasher
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from realm_hf.data.cache import cached_map
from realm_hf.data.documents import check_documents
from realm_hf.data.sentences.store import FORMAT_VERSION, Sentence, SentenceStore
from realm_hf.data.splitter import SPLITTER_NAME, SPLITTER_VERSION, Splitter, split_sentences
from realm_hf.data.taggers.spans import Span, Tagger, spans_to_wordpieces
from realm_hf.data.vocabulary import encode_texts, require_fast_tokenizer, token_dtype, tokenizer_fingerprint
from realm_hf.models.cut_lengths import MAX_QUERY_LENGTH
from realm_hf.storage.directories import StagedDirectory
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import describe_files, json_sha256, write_json

__all__ = ["Sentence", "SentenceStore", "build_sentences"]

logger = logging.get_logger(__name__)

SKIP_REASONS = ("no_wordpieces", "no_salient_span", "spans_outside_query")

_NUMBERS, _WORDS = List(Value("int64")), List(Value("string"))
_SPLIT_FEATURES = Features({"text": Value("large_string"), "document": Value("int64"), "heldout": Value("bool")})
_TAGGED_FEATURES = Features({**_SPLIT_FEATURES, "char_starts": _NUMBERS, "char_ends": _NUMBERS, "span_labels": _WORDS})


def build_sentences(
    documents: Dataset | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    tagger: Tagger,
    output_dir: str | Path,
    *,
    max_query_length: int = MAX_QUERY_LENGTH,
    heldout_fraction: float = 0.01,
    text_column: str = "text",
    num_proc: int = 1,
    tagger_num_proc: int = 1,
    splitter: Splitter = split_sentences,
    cache_dir: str | Path | None = None,
) -> SentenceStore:
    """
    Split documents into sentences, tag them, tokenize them, and store those in which a salient span can be masked.

    A sentence is skipped, and counted by reason, when it has no wordpieces, no salient span, or no span within
    `[CLS] x [SEP]` of `max_query_length`. A sentence longer than that is kept if a span fits: masking cuts it (counted
    as `longer_than_query`). The other masking modes use the same sentences, so that they can be compared.

    Args:
        documents (`Dataset` or `Sequence[str]`): The pre-training corpus X; it may differ from the passages'.
        tokenizer (`PreTrainedTokenizerBase`): A fast BERT-like tokenizer.
        tagger (`Tagger`): See [`~realm_hf.data.tagger_from_name`].
        output_dir (`str` or `Path`): Where the store shall appear, in one rename. Must be absent or empty.
        max_query_length (`int`, *optional*, defaults to `MAX_QUERY_LENGTH`): Lq, special tokens included.
        heldout_fraction (`float`, *optional*, defaults to 0.01): Share of the documents to hold out, in [0, 1). Chosen
            by the hash of a document's text: the same in every run, and equal documents share a side.
        text_column (`str`, *optional*, defaults to `"text"`): Column of the text.
        num_proc (`int`, *optional*, defaults to 1): Processes that split and tokenize.
        tagger_num_proc (`int`, *optional*, defaults to 1): Processes that tag. Leave 1 for a tagger with a model in
            it.
        splitter (`Splitter`, *optional*): Text -> character spans of its sentences.
        cache_dir (`str` or `Path`, *optional*): Where split and tagged sentences are kept for the next build; defaults
            to `realm_hf` in the cache of `datasets`.

    Returns:
        [`SentenceStore`]

    Raises:
        ValueError: If the corpus is empty, a column is missing, or no sentence is left.
        FileExistsError: If `output_dir` already holds something.
    """
    if not isinstance(documents, Dataset | dict) and isinstance(documents, Sequence):
        documents = Dataset.from_dict({text_column: list(documents)})
    check_documents(documents, [text_column])
    require_fast_tokenizer(tokenizer)
    if not 0 <= heldout_fraction < 1:
        raise ValueError(f"heldout_fraction is {heldout_fraction}: it must lie in [0, 1)")
    if max_query_length < 3:
        raise ValueError(f"max_query_length is {max_query_length}: `[CLS] x [SEP]` needs at least 3 wordpieces")
    output_dir = Path(output_dir)
    with explain_os_errors("write the sentences into", output_dir), StagedDirectory(output_dir) as staged:
        work = staged.path
        split = cached_map(
            documents,
            _Split(text_column, splitter, heldout_fraction),
            name="sentences",
            key=(text_column, *_splitter_key(splitter), heldout_fraction),
            features=_SPLIT_FEATURES,
            cache_dir=cache_dir,
            num_proc=num_proc,
            batch_size=256,
            with_indices=True,
            desc="Splitting sentences",
        )
        tagged = cached_map(
            split,
            _Tag(tagger),
            name="tagged",
            key=(tagger.fingerprint,),
            features=_TAGGED_FEATURES,
            cache_dir=cache_dir,
            num_proc=tagger_num_proc,
            batch_size=1000,
            desc="Tagging salient spans",
        )
        # Not cached: it is in the store afterwards.
        encoded = tagged.map(
            _Encode(tokenizer, max_query_length),
            batched=True,
            num_proc=num_proc if num_proc > 1 else None,
            remove_columns=tagged.column_names,
            features=_encoded_features(token_dtype(len(tokenizer))),
            cache_file_name=str(work / "encoded.arrow"),
            load_from_cache_file=False,
            new_fingerprint=f"realm-encoded-{tagged._fingerprint}",
            desc="Tokenizing sentences",
        )
        info = _write_store(encoded, len(documents), work)
        for leftover in work.glob("encoded*.arrow"):
            leftover.unlink()
        identity = {
            "format_version": FORMAT_VERSION,
            "tokenizer_fingerprint": tokenizer_fingerprint(tokenizer),
            "max_query_length": max_query_length,
            "content": info.pop("content"),
        }
        fingerprint = json_sha256(identity)[:16]
        settings = {"tagger_fingerprint": tagger.fingerprint, "heldout_fraction": heldout_fraction}
        content = {"fingerprint": fingerprint, **identity, **settings, **info}
        write_json(work / "sentences.json", content, durable=False)
    store = SentenceStore(output_dir)
    logger.debug("%s: %s", output_dir, store.statistics)
    if heldout_fraction and not len(store.heldout):
        logger.warning("no document was held out (heldout_fraction=%s of %d)", heldout_fraction, len(documents))
    return store


def _splitter_key(splitter: Splitter) -> tuple[str, str]:
    """Which splitter it is, and the version of the rules here, which one of somebody else's may call."""
    # `datasets` hashes a function by its module's name, which must be free to change.
    name = SPLITTER_NAME if splitter is split_sentences else Hasher.hash(splitter)
    return name, SPLITTER_VERSION


def _encoded_features(dtype: np.dtype) -> Features:
    """One row a sentence; `skipped` is empty for those that are kept."""
    return Features(
        {
            **_SPLIT_FEATURES,
            "input_ids": List(Value(dtype.name)),
            "span_starts": List(Value("int32")),
            "span_ends": List(Value("int32")),
            "span_labels": _WORDS,
            "skipped": Value("string"),
            "longer_than_query": Value("bool"),
        }
    )


@dataclass
class _Split:
    """Batch of documents -> batch of sentences."""

    text_column: str
    splitter: Splitter
    heldout_fraction: float

    def __call__(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {"text": [], "document": [], "heldout": []}
        for document, text in zip(indices, batch[self.text_column], strict=True):
            text = text or ""
            spans = self.splitter(text)
            rows["text"] += [text[start:end] for start, end in spans]
            rows["document"] += [document] * len(spans)
            rows["heldout"] += [_unit_hash(text) < self.heldout_fraction] * len(spans)
        return rows


@dataclass
class _Tag:
    """Batch of sentences -> the same with character spans."""

    tagger: Tagger

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        found: list[list[Span]] = self.tagger(batch["text"])
        return {
            **batch,
            "char_starts": [[span.start for span in spans] for spans in found],
            "char_ends": [[span.end for span in spans] for spans in found],
            "span_labels": [[span.label for span in spans] for spans in found],
        }


@dataclass
class _Encode:
    """Batch of tagged sentences -> wordpieces, spans in wordpieces, and the reason to skip, if any."""

    tokenizer: PreTrainedTokenizerBase
    max_query_length: int

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        encoded = encode_texts(self.tokenizer, batch["text"], return_offsets_mapping=True)
        room = self.max_query_length - 2
        rows: dict[str, list[Any]] = {name: [] for name in ("span_starts", "span_ends", "span_labels", "skipped")}
        spans = zip(batch["char_starts"], batch["char_ends"], batch["span_labels"], strict=True)
        for ids, offsets, found in zip(encoded["input_ids"], encoded["offset_mapping"], spans, strict=True):
            bounds = np.asarray(offsets, np.int64).reshape(-1, 2)
            pieces, labels = spans_to_wordpieces(map(Span, *found), bounds)
            if not ids:
                reason = "no_wordpieces"
            elif not len(pieces):
                reason = "no_salient_span"
            else:
                reason = "" if pieces[:, 1].min() <= room else "spans_outside_query"
            rows["span_starts"].append(pieces[:, 0])
            rows["span_ends"].append(pieces[:, 1])
            rows["span_labels"].append(labels)
            rows["skipped"].append(reason)
        kept = {name: batch[name] for name in ("text", "document", "heldout")}
        longer = [len(ids) > room for ids in encoded["input_ids"]]
        return {**kept, **rows, "input_ids": encoded["input_ids"], "longer_than_query": longer}


def _write_store(encoded: Dataset, documents: int, work: Path) -> dict[str, Any]:
    """Keep the rows without a reason to skip, stream them to `rows/`, and count."""
    names = [name for name in encoded.column_names if name not in ("skipped", "longer_than_query")]
    features = Features({name: encoded.features[name] for name in names})
    counts: Counter[str] = Counter(dict.fromkeys((*SKIP_REASONS, "longer_than_query", "heldout", "spans"), 0))
    digest, count, with_sentences = hashlib.sha256(), 0, 0
    last_document = -1
    rows_file = work / "encoded_rows.arrow"
    with ArrowWriter(path=str(rows_file), features=features) as writer:
        for batch in encoded.with_format("arrow").iter(batch_size=1000):
            reasons = batch["skipped"].to_numpy()
            counts.update(str(reason) for reason in reasons if reason)
            of_document = batch["document"].to_numpy()
            with_sentences += int((np.diff(of_document, prepend=last_document) != 0).sum())
            last_document = int(of_document[-1])
            kept = batch.filter(pa.array(reasons == "")).select([*names, "longer_than_query"])
            counts["longer_than_query"] += int(kept["longer_than_query"].to_numpy().sum())
            counts["heldout"] += int(kept["heldout"].to_numpy().sum())
            counts["spans"] += len(kept["span_starts"].combine_chunks().flatten())
            kept = kept.select(names).combine_chunks()
            count += kept.num_rows
            for name in ("document", "heldout"):
                digest.update(kept[name].to_numpy().astype(np.int64).tobytes())
            for name in ("input_ids", "span_starts", "span_ends"):
                lists = kept[name].combine_chunks()
                digest.update(lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
                digest.update(lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
            writer.write_table(kept)
        writer.finalize()
    statistics = {
        "documents": documents,
        "documents_without_sentences": documents - with_sentences,
        "sentences": len(encoded),
        "kept": count,
        **counts,
    }
    if not count:
        raise ValueError(
            f"no sentence with a maskable salient span came out of {documents} documents ({statistics}): check the "
            "text, the tagger and max_query_length"
        )
    Dataset.from_file(str(rows_file)).save_to_disk(str(work / "rows"))
    return {
        "count": count,
        "content": digest.hexdigest(),
        "statistics": statistics,
        "files": describe_files(work / "rows", work),
    }


def _unit_hash(text: str) -> float:
    """Hash of a text as a number in [0, 1)."""
    data = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(data, "big") >> 11) / 2.0**53
