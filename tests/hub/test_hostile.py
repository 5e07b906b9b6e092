"""Descriptions, names, rows and pins that strangers may publish: each is refused in words, and nothing is run."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
from published_folder import ROWS, SHARD, describe, put, put_rows, rows

from realm_hf import RealmRetriever
from realm_hf.models.places import DESCRIPTION, PUBLICATION
from realm_hf.untrusted.checks import HubArtefactError, check_name


def test_the_honest_one_loads(load, vectors):
    retriever = load()

    np.testing.assert_array_equal(retriever.embeddings, vectors)
    assert len(retriever.index) == ROWS


@pytest.mark.parametrize(
    "name",
    [
        "../out",
        "/etc/passwd",
        "a/../../b",
        "a/..",
        "..\\out",
        "C:/x",
        ".git/config",
        "a//b",
        "",
        "a\nb",
        "a\0b",
        "x" * 300,
        7,
    ],
)
def test_names_that_lead_elsewhere(folder, load, name):
    with pytest.raises(HubArtefactError, match="outside the repository"):
        check_name(name)
    if isinstance(name, str):
        describe(folder, lambda content: content["files"].update({name: {"bytes": 1, "sha256": "0" * 64}}))
        with pytest.raises(HubArtefactError, match="outside the repository"):
            load()


@pytest.mark.parametrize("name", ["shards", "indexes"])
def test_names_in_lists_are_checked_too(folder, load, name):
    def change(content):
        if name == "shards":
            content["shards"][0]["file"] = "../../secret"
        else:
            content["indexes"]["default"]["parts"] = ["../../secret"]

    describe(folder, change)
    with pytest.raises(HubArtefactError, match="outside the repository"):
        load()


@pytest.mark.parametrize(
    "content",
    [b"{", b"[]", b"[" * 100_000, b'"text"', b"\xff\xfe", b'{"format_version": 1}', b'{"format_version": 2}'],
    ids=["cut", "list", "deep", "text", "no text", "empty", "newer"],
)
def test_descriptions_that_are_none(folder, load, content):
    (folder / DESCRIPTION).write_bytes(content)

    with pytest.raises(HubArtefactError, match=DESCRIPTION):
        load()


def test_an_oversized_description_is_not_parsed(folder, load):
    (folder / DESCRIPTION).write_bytes(b'{"a": "' + b"x" * (9 << 20) + b'"}')

    with pytest.raises(HubArtefactError, match=r"has 9\.4 MB; a description has at most"):
        load()


def test_a_description_that_was_changed_without_its_hash(folder, load):
    content = json.loads((folder / DESCRIPTION).read_text())
    content["generation_name"] = "step-1-00000000"
    (folder / DESCRIPTION).write_text(json.dumps(content))

    with pytest.raises(HubArtefactError, match="does not have its own hash"):
        load()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("rows", -1), ("rows", 10**30), ("rows", True), ("rows", 48.0), ("rows", "48"), ("rows", 0), ("rows", 49),
        ("dimension", 10**12), ("dimension", -16), ("dtype", "object"), ("dtype", "O8"), ("shards", []),
        ("shards", {"file": SHARD}), ("indexes", []), ("default_index", "none"), ("fingerprints", [1]), ("store", 5),
        ("files", {}),
    ],
)  # fmt: skip
def test_absurd_numbers_and_shapes(folder, load, field, value):
    describe(folder, lambda content: content.update({field: value}))

    with pytest.raises(HubArtefactError, match=DESCRIPTION):
        load()


def test_a_link_out_of_the_directory(folder, load, tmp_path):
    secret = tmp_path / "secret.parquet"
    shutil.move(folder / SHARD, secret)
    (folder / SHARD).symlink_to(secret)

    with pytest.raises(HubArtefactError, match="is a link out of"):
        load()


def test_a_directory_that_is_a_link_out(folder, load, tmp_path):
    shutil.move(folder / "tokenizer", tmp_path / "elsewhere")
    (folder / "tokenizer").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(HubArtefactError, match="is a link out of"):
        load()


def test_files_that_were_cut_changed_or_removed(folder, load):
    content = (folder / SHARD).read_bytes()
    (folder / SHARD).write_bytes(content[:-10])
    with pytest.raises(HubArtefactError, match="it is cut or was changed"):
        load()
    (folder / SHARD).write_bytes(content[:-10] + bytes(10))
    with pytest.raises(HubArtefactError, match="does not have the SHA-256"):
        load()
    (folder / SHARD).unlink()
    with pytest.raises(HubArtefactError, match="it is incomplete"):
        load()


@pytest.mark.parametrize("place", [0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1.0])
def test_parquet_that_is_damaged_but_signed(folder, load, place, tmp_path):
    content = bytearray((folder / SHARD).read_bytes())
    start = min(int(place * len(content)), len(content) - 40)
    content[start : start + 40] = bytes(range(200, 240))
    put(folder, SHARD, bytes(content))

    try:
        retriever = load()
    except HubArtefactError:
        return
    assert len(retriever) == ROWS  # the bytes fell where only numbers are, which any stranger may choose
    assert np.isfinite(retriever.embeddings).all()


def test_parquet_of_noise(folder, load):
    put(folder, SHARD, b"PAR1" + bytes(range(256)) * 40 + b"PAR1")

    with pytest.raises(HubArtefactError, match="Parquet files are damaged"):
        load()


def test_parquet_with_other_columns_dimension_or_rows(folder, load, vectors):
    for table, words in [
        (rows(vectors).drop_columns(["text"]), "has columns"),
        (rows(vectors).append_column("code", pa.array(["x"] * ROWS)), "has columns"),
        (rows(vectors[:, :8].copy(), dimension=8), "has columns"),
        (rows(vectors[:40], 40), "has 40 rows"),
        (rows(np.full_like(vectors, np.nan)), "NaN or infinity"),
    ]:
        put_rows(folder, table)
        with pytest.raises(HubArtefactError, match=words):
            load()


def test_parquet_with_missing_embeddings(folder, load, vectors):
    table = rows(vectors)
    holes = pa.array([None, *table["embeddings"].to_pylist()[1:]], type=table.schema.field("embeddings").type)
    put_rows(folder, pa.table([table["title"], table["text"], holes], schema=table.schema))

    with pytest.raises(HubArtefactError, match="lack embeddings"):
        load()


@pytest.mark.parametrize("kind", ["backwards", "past the end", "negative"])
def test_offsets_that_overlap_or_end_elsewhere(folder, load, kind):
    name = "passages/body_tokens_offsets.bin"
    offsets = np.frombuffer((folder / name).read_bytes(), np.int64).copy()
    if kind == "backwards":
        offsets[3] = offsets[10]
    elif kind == "past the end":
        offsets[-1] += 10_000
    else:
        offsets[5] = -(2**40)
    put(folder, name, offsets.tobytes())

    with pytest.raises(HubArtefactError, match="rows would overlap or end"):
        load()


def test_arrays_of_another_length(folder, load):
    put(folder, "passages/duplicate_group.bin", bytes(4 * (ROWS - 1)))

    with pytest.raises(HubArtefactError, match="must have 192 bytes"):
        load()


@pytest.mark.parametrize(
    "pin",
    [
        {"folder": "../elsewhere", "repo_id": None, "revision": None},
        {"folder": "/etc", "repo_id": None, "revision": None},
        {"folder": None, "repo_id": "../../etc", "revision": "main"},
        {"folder": None, "repo_id": "/etc", "revision": "main"},
        {"folder": None, "repo_id": 7, "revision": "main"},
        {"folder": None, "repo_id": "a/b", "revision": None},
        {},
    ],
)
def test_a_model_that_pins_something_else(folder, tmp_path, pin):
    model = tmp_path / "model"
    model.mkdir()
    content = {"format_version": 1, "retriever": {**pin, "content": "0"}, "fingerprints": {}}
    (model / PUBLICATION).write_text(json.dumps(content))

    with pytest.raises(HubArtefactError):
        RealmRetriever.from_pretrained(model)


def test_a_pinned_retriever_that_is_not_the_one_that_was_published(folder, tmp_path):
    model = tmp_path / "model"
    shutil.copytree(folder, model / "retriever")
    pin = {"folder": "retriever", "repo_id": None, "revision": None, "content": "0" * 64}
    content = {"format_version": 1, "retriever": pin, "fingerprints": {}}
    (model / PUBLICATION).write_text(json.dumps(content))

    with pytest.raises(HubArtefactError, match="was published with"):
        RealmRetriever.from_pretrained(model, cache_dir=tmp_path / "cache")
