"""Documents -> sentences with salient spans, tokenized once: the queries of pre-training.

    SENTENCES/sentences.json   counts (skips by reason), lengths, fingerprints, files with sha256
    SENTENCES/rows/            `datasets` rows: text, input_ids, span_starts, span_ends, span_labels, document, heldout

Splitting and tagging are cached on disk under the fingerprint of documents, splitter and tagger; a visit then costs
one row. The release draws a span from a whole passage and takes its sentence; here each sentence with a span is an
example of its own, so that data order can be permuted and resumed by row number.
"""

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, Features, List, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter
from transformers import PreTrainedTokenizerBase
from transformers.utils import logging

from realm_hf.data.cache import cached_map
from realm_hf.data.documents import Documents, readable_documents
from realm_hf.data.ranges import Part, build_in_ranges, helpers_for
from realm_hf.data.sentences.store import FORMAT_VERSION, Sentence, SentenceStore, write_views
from realm_hf.data.splitter import Splitter, split_sentences, splitter_key
from realm_hf.data.taggers.names import tags_by_rules
from realm_hf.data.taggers.spans import Span, Tagger, spans_to_wordpieces
from realm_hf.data.vocabulary import encode_texts, require_fast_tokenizer, token_dtype, tokenizer_fingerprint
from realm_hf.models.cut_lengths import MAX_QUERY_LENGTH
from realm_hf.storage.errors import explain_os_errors
from realm_hf.storage.files import describe_files, json_sha256, write_json

__all__ = ["Sentence", "SentenceStore", "build_sentences"]

logger = logging.get_logger(__name__)

_ROWS_FILE = "rows.arrow"
SKIP_REASONS = ("no_wordpieces", "no_salient_span", "spans_outside_query")

_NUMBERS, _WORDS = List(Value("int64")), List(Value("string"))
_SPLIT_FEATURES = Features({"text": Value("large_string"), "document": Value("int64"), "heldout": Value("bool")})
_TAGGED_FEATURES = Features({**_SPLIT_FEATURES, "char_starts": _NUMBERS, "char_ends": _NUMBERS, "span_labels": _WORDS})


def build_sentences(
    documents: Documents | Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    tagger: Tagger,
    output_dir: str | Path,
    *,
    max_query_length: int = MAX_QUERY_LENGTH,
    heldout_fraction: float = 0.01,
    text_column: str = "text",
    num_proc: int = 1,
    tagger_num_proc: int | None = None,
    splitter: Splitter = split_sentences,
    cache_dir: str | Path | None = None,
) -> SentenceStore:
    """
    Split documents into sentences, tag them, tokenize them, and store those in which a salient span can be masked.

    A sentence is skipped, and counted by reason, when it has no wordpieces, no salient span, or no span within
    `[CLS] x [SEP]` of `max_query_length`. A sentence longer than that is kept if a span fits: masking cuts it (counted
    as `longer_than_query`). The other masking modes use the same sentences, so that they can be compared.

    Args:
        documents (`Dataset`, `IterableDataset`, iterable of mappings, or `Sequence[str]`): The pre-training corpus X;
            it may differ from the passages'. Of a stream 16,384 are in memory at once, in each process.
        tokenizer (`PreTrainedTokenizerBase`): A fast BERT-like tokenizer.
        tagger (`Tagger`): See [`~realm_hf.data.tagger_from_name`].
        output_dir (`str` or `Path`): Where the store shall appear, in one rename. Must be absent or empty.
        max_query_length (`int`, *optional*, defaults to `MAX_QUERY_LENGTH`): Lq, special tokens included.
        heldout_fraction (`float`, *optional*, defaults to 0.01): Share of the documents to hold out, in [0, 1). Chosen
            by the hash of a document's text: the same in every run, and equal documents share a side.
        text_column (`str`, *optional*, defaults to `"text"`): Column of the text.
        num_proc (`int`, *optional*, defaults to 1): Processes that split and tokenize. The result does not depend on
            it, nor on how many others make the same call at this time on nodes that share the directory.
        tagger_num_proc (`int`, *optional*): Processes that tag; by default `num_proc` for the taggers without a model
            (rules and dates), and 1 for all others.
        splitter (`Splitter`, *optional*): Text -> character spans of its sentences.
        cache_dir (`str` or `Path`, *optional*): Where split and tagged sentences are kept for the next build; defaults
            to `realm_hf` in the cache of `datasets`.

    Returns:
        [`SentenceStore`]

    Raises:
        ValueError: If the corpus is empty, a column is missing, or no sentence is left.
        FileExistsError: If `output_dir` already holds something.
        OSError: The disk is full or read-only. The next call goes on from the ranges that were ready.
    """
    if isinstance(documents, Sequence) and not any(isinstance(row, Mapping) for row in documents[:1]):
        documents = Dataset.from_dict({text_column: list(documents)})
    chosen = readable_documents(documents, [text_column])
    require_fast_tokenizer(tokenizer)
    if not 0 <= heldout_fraction < 1:
        raise ValueError(f"heldout_fraction is {heldout_fraction}: it must lie in [0, 1)")
    if max_query_length < 3:
        raise ValueError(f"max_query_length is {max_query_length}: `[CLS] x [SEP]` needs at least 3 wordpieces")
    output_dir = Path(output_dir)
    if tagger_num_proc is None:
        tagger_num_proc = num_proc if tags_by_rules(tagger) else 1
    helpers = helpers_for(chosen, tagger_num_proc)
    processes = (1, 1) if helpers else (num_proc, tagger_num_proc)
    prepare = _PrepareRange(
        tokenizer, tagger, max_query_length, heldout_fraction, text_column, splitter, cache_dir, *processes
    )
    key = {
        "kind": "sentences",
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "tagger": tagger.fingerprint,
        "max_query_length": max_query_length,
        "heldout_fraction": heldout_fraction,
        "column": text_column,
        "splitter": splitter_key(splitter),
    }
    with explain_os_errors("write the sentences into", output_dir):
        build_in_ranges(chosen, output_dir, key=key, prepare=prepare, join=_JoinRanges(prepare), helpers=helpers)
    store = SentenceStore(output_dir)
    logger.debug("%s: %s", output_dir, store.statistics)
    if heldout_fraction and not len(store.heldout):
        logger.warning(
            "no document was held out (heldout_fraction=%s of %d)", heldout_fraction, store.statistics["documents"]
        )
    return store


@dataclass
class _PrepareRange:
    """Documents of a range -> its sentences with spans in wordpieces."""

    tokenizer: PreTrainedTokenizerBase
    tagger: Tagger
    max_query_length: int
    heldout_fraction: float
    text_column: str
    splitter: Splitter
    cache_dir: str | Path | None
    num_proc: int
    tagger_num_proc: int

    def __call__(self, documents: Dataset, first: int, folder: Path) -> dict[str, Any]:
        split = cached_map(
            documents,
            _Split(self.text_column, self.splitter, self.heldout_fraction, first),
            name="sentences",
            key=(self.text_column, *splitter_key(self.splitter), self.heldout_fraction, *([first] if first else [])),
            features=_SPLIT_FEATURES,
            cache_dir=self.cache_dir,
            num_proc=self.num_proc,
            batch_size=256,
            with_indices=True,
            desc="Splitting sentences",
        )
        tagged = cached_map(
            split,
            _Tag(self.tagger),
            name="tagged",
            key=(self.tagger.fingerprint,),
            features=_TAGGED_FEATURES,
            cache_dir=self.cache_dir,
            num_proc=self.tagger_num_proc,
            batch_size=1000,
            desc="Tagging salient spans",
        )
        # Not cached: it is in the store afterwards.
        encoded = tagged.map(
            _Encode(self.tokenizer, self.max_query_length),
            batched=True,
            num_proc=self.num_proc if self.num_proc > 1 else None,
            remove_columns=tagged.column_names,
            features=_encoded_features(token_dtype(len(self.tokenizer))),
            cache_file_name=str(folder / "encoded.arrow"),
            load_from_cache_file=False,
            new_fingerprint=f"realm-encoded-{tagged._fingerprint}",
            desc="Tokenizing sentences",
        )
        facts = _write_part(encoded, len(documents), folder)
        for leftover in folder.glob("encoded*.arrow"):
            leftover.unlink()
        return facts


@dataclass
class _JoinRanges:
    """Parts of all ranges -> the store."""

    made_by: _PrepareRange

    def __call__(self, parts: Sequence[Part], work: Path) -> None:
        names = parts[0].facts["statistics"]
        statistics = {name: sum(part.facts["statistics"][name] for part in parts) for name in names}
        count = statistics["kept"]
        if not count:
            raise ValueError(
                f"no sentence with a maskable salient span came out of {statistics['documents']} documents "
                f"({statistics}): check the text, the tagger and max_query_length"
            )
        filled = [Dataset.from_file(str(part.path / _ROWS_FILE)) for part in parts if part.facts["statistics"]["kept"]]
        rows = concatenate_datasets(filled)
        rows.save_to_disk(str(work / "rows"))
        write_views(rows, work)
        digests = [part.facts["content"] for part in parts]
        identity = {
            # The fingerprint of one part is that of format 1, from before there were parts.
            "format_version": 1 if len(parts) == 1 else FORMAT_VERSION,
            "tokenizer_fingerprint": tokenizer_fingerprint(self.made_by.tokenizer),
            "max_query_length": self.made_by.max_query_length,
            "content": digests[0] if len(parts) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest(),
        }
        content = {
            "fingerprint": json_sha256(identity)[:16],
            **identity,
            "tagger_fingerprint": self.made_by.tagger.fingerprint,
            "heldout_fraction": self.made_by.heldout_fraction,
            "count": count,
            "statistics": statistics,
            "files": describe_files(work, work),
        }
        write_json(work / "sentences.json", content, durable=False)


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
    first_document: int

    def __call__(self, batch: dict[str, list[Any]], indices: list[int]) -> dict[str, list[Any]]:
        rows: dict[str, list[Any]] = {"text": [], "document": [], "heldout": []}
        for document, text in zip(indices, batch[self.text_column], strict=True):
            text = text or ""
            spans = self.splitter(text)
            rows["text"] += [text[start:end] for start, end in spans]
            rows["document"] += [self.first_document + document] * len(spans)
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


def _write_part(encoded: Dataset, documents: int, folder: Path) -> dict[str, Any]:
    """Keep the rows of a range without a reason to skip, stream them to a file, and count."""
    names = [name for name in encoded.column_names if name not in ("skipped", "longer_than_query")]
    features = Features({name: encoded.features[name] for name in names})
    counts: Counter[str] = Counter(dict.fromkeys((*SKIP_REASONS, "longer_than_query", "heldout", "spans"), 0))
    digest, count, with_sentences = hashlib.sha256(), 0, 0
    last_document = -1
    with ArrowWriter(path=str(folder / _ROWS_FILE), features=features) as writer:
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
    return {"content": digest.hexdigest(), "statistics": statistics}


def _unit_hash(text: str) -> float:
    """Hash of a text as a number in [0, 1)."""
    data = hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(data, "big") >> 11) / 2.0**53
