"""A saved retriever of a million passages: real texts, repeated; synthetic embeddings; the index of "auto".

Tokenizing a million passages would take longer than all rows together. The store is written from the wordpieces of the
corpus instead, over and over, each copy with duplicate groups of its own, so that its files have their true sizes. It
is kept in .cache/bench.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import disable_progress_bars

from realm_hf import RealmRetriever
from realm_hf.data.passages.packing import COUNTS
from realm_hf.data.passages.parts import packed_features, write_store
from realm_hf.data.passages.store import PassageStore
from realm_hf.index.default_index import AUTO
from realm_hf.index.faiss_index import build_index
from realm_hf.storage.directories import StagedDirectory
from realm_hf.storage.files import write_json

from .inputs import SCRATCH, describe_inputs, load_passages, load_tokenizer
from .rows import Settings
from .vectors import passages as synthetic_embeddings

PASSAGES, QUICK_PASSAGES = 1_000_000, 110_000
SEED = 0
_A_BATCH = 2048


def passage_count(settings: Settings) -> int:
    """A million, or for --quick the smallest round number for which "auto" is no exact index."""
    return QUICK_PASSAGES if settings.quick else PASSAGES


def saved_retriever(settings: Settings) -> Path:
    """The retriever's directory; made where it is not there (about two minutes, 1.6 GB)."""
    corpus = "factbook" if settings.corpus is None else settings.corpus.stem
    folder = SCRATCH / f"retriever-{corpus}-{passage_count(settings)}"
    if (folder / "retriever.json").exists():
        return folder
    print(f"making a retriever of {passage_count(settings):,} passages in {folder}", file=sys.stderr, flush=True)
    disable_progress_bars()
    tokenizer = load_tokenizer()
    sample = load_passages(settings, tokenizer)
    store = SCRATCH / f"store-{corpus}-{passage_count(settings)}"
    if not store.exists():
        repeat_passages(sample, passage_count(settings), store)
    embeddings = synthetic_embeddings(passage_count(settings), SEED).astype(np.float16)
    index = build_index(embeddings, AUTO, threads=settings.threads)
    RealmRetriever(PassageStore.load(store), tokenizer, index=index, embeddings=embeddings).save_pretrained(folder)
    return folder


def repeat_passages(sample: PassageStore, count: int, target: Path) -> None:
    """Write a store of `count` passages that are those of `sample`, again and again."""
    with StagedDirectory(target) as staged:
        info = write_store(
            _packed(sample, count),
            staged.path,
            tokenizer_name=sample.tokenizer_fingerprint,
            special_tokens=sample.special_tokens,
            dtype=sample.dtype,
            max_length=sample.max_length,
            if_none="take a larger sample",
        )
        for leftover in staged.path.glob("packed*.arrow"):
            leftover.unlink()
        write_json(staged.path / "passages.json", info, durable=False)


def _packed(sample: PassageStore, count: int) -> Iterator[pa.Table]:
    """Batches of one-passage documents, as the packer of `build_passages` hands them on."""
    schema = packed_features(sample.dtype).arrow_schema
    hashes = schema.get_field_index("text_hashes")
    batches = []
    for start in range(0, len(sample), _A_BATCH):
        rows = range(start, min(start + _A_BATCH, len(sample)))
        stored = sample.rows[rows.start : rows.stop]
        columns = {
            "title": stored["title"],
            "texts": [[text] for text in stored["text"]],
            "title_tokens": [sample.title_ids(row) for row in rows],
            "body_tokens": [sample.body_ids(row) for row in rows],
            "body_lengths": [[len(sample.body_ids(row))] for row in rows],
            "sentence_starts": [sample.sentence_starts(row) for row in rows],
            "sentence_counts": [[len(sample.sentence_starts(row))] for row in rows],
            "text_hashes": [[row] for row in rows],
            "content_hashes": [[row] for row in rows],
            **{name: [0] * len(rows) for name in COUNTS},
        }
        batches.append(pa.table({name: columns[name] for name in schema.names}, schema=schema))
    written = 0
    while written < count:
        for batch in batches:
            taken = min(len(batch), count - written)
            if not taken:
                return
            own = pa.array([[written + place] for place in range(taken)], schema.field(hashes).type)
            yield batch.slice(0, taken).set_column(hashes, schema.field(hashes), own).combine_chunks()
            written += taken


def describe_million(settings: Settings) -> str:
    """What was searched, in a few words."""
    return (
        f"{passage_count(settings):,} synthetic embeddings (seed {SEED}) over texts of the {describe_inputs(settings)}"
    )
