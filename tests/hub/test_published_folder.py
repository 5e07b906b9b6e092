"""A publication as a directory: what is written, and what comes back of it, without a server."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, load_dataset
from published_folder import Folder

from realm_hf import RealmRetriever
from realm_hf.hub.export import ExportSettings
from realm_hf.hub.manifest import HubManifest
from realm_hf.hub.retriever import add_retriever, parse_size
from realm_hf.index.faiss_index import build_index
from realm_hf.models.places import DESCRIPTION


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_description_reads_back_as_it_was(honest):
    content = json.loads((honest / DESCRIPTION).read_text())

    assert json.loads(HubManifest.from_dict(content, "here").to_json()) == content


def test_a_dataset_without_wordpieces_comes_back(tmp_path, tokenizer, vectors):
    dataset = Dataset.from_dict({"text": [f"Text {n}." for n in range(48)], "id": list(range(48))})
    add_retriever(Folder(tmp_path / "out"), RealmRetriever(dataset, tokenizer, embeddings=vectors), ExportSettings())

    found = RealmRetriever.from_pretrained(tmp_path / "out", cache_dir=tmp_path / "cache")

    assert found.passages["text"][:2] == ["Text 0.", "Text 1."]
    assert found.passages["title"][:2] == ["", ""]
    np.testing.assert_array_equal(found.embeddings, vectors)
    assert found.embedder is None


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_embeddings_keep_their_type_and_every_bit(tmp_path, tokenizer, tiny_passages, vectors, dtype):
    exact = vectors.astype(dtype)
    retriever = RealmRetriever(tiny_passages, tokenizer, embeddings=exact)
    add_retriever(Folder(tmp_path / "out"), retriever, ExportSettings(shard_bytes=2000))

    found = RealmRetriever.from_pretrained(tmp_path / "out", cache_dir=tmp_path / "cache")

    np.testing.assert_array_equal(found.embeddings, exact, strict=True)
    assert len(list((tmp_path / "out/data").iterdir())) > 2


def test_the_rows_are_plain_parquet(honest, tmp_path):
    files = [str(path) for path in sorted((honest / "data").iterdir())]
    dataset = load_dataset("parquet", data_files=files, split="train", cache_dir=str(tmp_path))

    assert dataset.column_names == ["title", "text", "embeddings"]
    assert [str(kind) for kind in pq.read_schema(files[0]).types[:2]] == ["string", "string"]


def test_equal_content_gives_equal_bytes(honest, tmp_path, tokenizer, tiny_passages, vectors):
    from tiny_worlds import tiny_model

    retriever = RealmRetriever(tiny_passages, tokenizer, embeddings=vectors, embedder=tiny_model(seed=1).embedder)
    add_retriever(Folder(tmp_path / "again"), retriever, ExportSettings())

    names = sorted(path.relative_to(honest) for path in honest.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(tmp_path / "again") for path in Path(tmp_path, "again").rglob("*.*"))
    assert [(honest / name).read_bytes() for name in names] == [
        (tmp_path / "again" / name).read_bytes() for name in names
    ]


def test_an_index_of_other_embeddings_is_not_written(tmp_path, tokenizer, tiny_passages, vectors):
    retriever = RealmRetriever(tiny_passages, tokenizer, embeddings=vectors)
    settings = ExportSettings(variants={"short": build_index(vectors[:40])})

    with pytest.raises(ValueError, match="Index 'short' holds 40 rows"):
        add_retriever(Folder(tmp_path), retriever, settings)


def test_without_embeddings_nothing_is_published(tmp_path, tokenizer, tiny_passages, vectors):
    retriever = RealmRetriever(tiny_passages, tokenizer, index=build_index(vectors))

    with pytest.raises(ValueError, match="made without embeddings"):
        add_retriever(Folder(tmp_path), retriever, ExportSettings())


def test_too_little_room_is_told_before_anything_is_read(honest, tmp_path, monkeypatch):
    from collections import namedtuple

    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage(10, 10, 0))

    with pytest.raises(OSError, match=r"needs .* where 0 bytes are free"):
        RealmRetriever.from_pretrained(honest, cache_dir=tmp_path / "cache")


@pytest.mark.parametrize(("size", "expected"), [("500MB", 500_000_000), ("1.5kb", 1500), (7, 7), ("3GB", 3 * 10**9)])
def test_sizes_in_words(size, expected):
    assert parse_size(size) == expected


@pytest.mark.parametrize("size", ["many", "5", "MB", "-3MB"])
def test_sizes_that_are_none(size):
    with pytest.raises(ValueError, match="max_shard_size"):
        parse_size(size)
